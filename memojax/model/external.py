"""External data: tensors whose bytes are in a file beside the model. They are read once, at load.

The folder is that of the given path. If the path is a symbolic link, as in the cache of a model hub, a data
file may be a link too. Its target must lie in the folder of the model's link, or beside the model's own
target.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import onnx
from onnx import SparseTensorProto, TensorProto

from ..errors import ModelLoadError
from ..xla.limits import ELEMENTS, EXTERNAL
from .files import OpenFile
from .formats import is_lfs_pointer
from .tensor import dtype_of


def put_in(model: onnx.ModelProto, path: Path | None) -> str:
    """Read all external data of `model` into it; return their SHA-256, or "" if there are none.

    Args:
        model: a message that memojax parsed; it is changed.
        path: the model's file; None for bytes and messages.

    Raises:
        ModelLoadError: a data file is missing, too short, outside the folder, or changes while it is read.
        LimitError: tensors that share bytes, or files with holes, ask for too many.
    """
    digest = hashlib.sha256()
    found = False
    with contextlib.ExitStack() as stack:
        folder = _Folder(path, stack) if path is not None else None
        for tensor in tensors_of(model):
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            found = True
            data = _read(tensor, folder)
            digest.update(f"{tensor.name!r} {len(data)} ".encode("utf-8", "backslashreplace"))
            digest.update(data)
            tensor.raw_data = data
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
        if folder is not None:
            folder.check_unchanged()
    return digest.hexdigest() if found else ""


def check_sparse(model: onnx.ModelProto) -> None:
    """Check that all sparse tensors of a model together are not too large as dense arrays.

    Raises:
        LimitError: they are too large.
    """
    sparse = [tensor for tensor in _parts(model) if isinstance(tensor, SparseTensorProto)]
    ELEMENTS.check(
        sum(abs(math.prod(tensor.dims)) for tensor in sparse),
        "the total of the sparse tensors of this model, as dense arrays,",
    )


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: of graphs, sparse tensors, attributes, subgraphs and functions."""
    for part in _parts(model):
        yield from (part.values, part.indices) if isinstance(part, SparseTensorProto) else (part,)


def _parts(model: onnx.ModelProto) -> Iterator[TensorProto | SparseTensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)


def _of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto | SparseTensorProto]:
    yield from graph.initializer
    yield from graph.sparse_initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto | SparseTensorProto]:
    for node in nodes:
        if node.attribute:
            yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[TensorProto | SparseTensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _of_graph(graph)


class _Folder:
    """The folder of a model's data files; each file is opened once."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        link = Path(os.path.abspath(path))
        self.root = link.parent
        self.allowed = {self.root.resolve(), link.resolve().parent}
        self._stack = stack
        self._open: dict[str, OpenFile] = {}
        self._asked = 0

    def file(self, location: str, tensor: str) -> OpenFile:
        """The open file at `location`, for the external data of `tensor`.

        Raises:
            ModelLoadError: the model may not read it, or it cannot be read.
        """
        if location in self._open:
            return self._open[location]
        if not _is_inside(location):
            raise ModelLoadError(
                f"tensor {tensor!r} has external data outside the model's folder, which is refused: "
                f"{location!r}"
            )
        path = self.root / location
        try:
            real = path.resolve()
            if not any(real.is_relative_to(folder) for folder in self.allowed):
                raise ModelLoadError(
                    f"tensor {tensor!r} has external data outside the model's folder, which is refused: "
                    f"{location!r} is a link to {str(real)!r}; copy that file beside the model"
                )
            file = self._stack.enter_context(
                OpenFile(real, f"tensor {tensor!r}: its external file {location!r}")
            )
            start = file.read(0, min(file.size, 64))
        except FileNotFoundError:
            raise ModelLoadError(
                f"tensor {tensor!r}: its external file {location!r} is missing: put it beside the model"
            ) from None
        except (OSError, RuntimeError) as cause:
            raise ModelLoadError(
                f"tensor {tensor!r}: its external file {location!r} cannot be read: {cause}"
            ) from cause
        if is_lfs_pointer(start):
            raise ModelLoadError(
                f"tensor {tensor!r}: its external file {location!r} is a Git LFS pointer: run `git lfs pull`"
            )
        self._open[location] = file
        return file

    def ask(self, count: int) -> None:
        """See that `count` more bytes may be read: tensors that share bytes, and files with holes, make much
        out of little.

        Raises:
            LimitError: they may not.
        """
        self._asked += count
        stored = sum(file.stored for file in self._open.values())
        EXTERNAL.check(self._asked - 2 * stored, "the external data of this model")

    def check_unchanged(self) -> None:
        """Check that no data file changed while others were read."""
        for file in self._open.values():
            file.check_unchanged()


def _read(tensor: Any, folder: _Folder | None) -> bytes:
    name = tensor.name
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not all(isinstance(text, str) for text in (name, location, *entries)):
        raise ModelLoadError(f"tensor {name!r}: the names of its external data are not UTF-8")
    if folder is None:
        raise ModelLoadError(
            f"the data of tensor {name!r} are in the external file {location!r}: load the model by its path"
        )
    dtype = dtype_of(tensor.data_type)
    if dtype.kind == "O":
        raise ModelLoadError(f"tensor {name!r} holds strings, which cannot be in an external file")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelLoadError(f"tensor {name!r} has shape {list(tensor.dims)} with a negative dimension")
    wanted = (math.prod(tensor.dims) * _bits(dtype) + 7) // 8
    offset = _number(entries, "offset", name) or 0
    length = _number(entries, "length", name)
    file = folder.file(location, name)
    if offset + (wanted if length is None else length) > file.size:
        raise ModelLoadError(
            f"tensor {name!r}: {location!r} has {file.size:,} bytes, too few for its offset {offset} and "
            f"length {wanted if length is None else length}"
        )
    if length is not None and length != wanted:
        raise ModelLoadError(
            f"tensor {name!r} ({dtype}, shape {list(tensor.dims)}) has {wanted:,} bytes, but its external "
            f"data have {length:,}"
        )
    folder.ask(wanted)
    try:
        return file.read(offset, wanted)
    except OSError as cause:
        raise ModelLoadError(f"tensor {name!r}: {location!r} cannot be read: {cause}") from cause


def _bits(dtype: Any) -> int:
    try:
        return int(ml_dtypes.iinfo(dtype).bits)
    except ValueError:
        pass
    try:
        return int(ml_dtypes.finfo(dtype).bits)
    except ValueError:
        return dtype.itemsize * 8


def _number(entries: dict[str, Any], key: str, tensor: str) -> int | None:
    text = entries.get(key)
    if text is None or text == "":
        return None
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 19:
        raise ModelLoadError(
            f"tensor {tensor!r}: the {key} of its external data is {str(text)[:40]!r}, expected a number of "
            "bytes"
        )
    return int(text)


def _is_inside(location: str) -> bool:
    """Whether a location is a relative path that does not lead upwards, on any system."""
    if not location or "\0" in location or len(location) > 4096:
        return False
    windows = PureWindowsPath(location)
    absolute = PurePosixPath(location).is_absolute() or windows.drive or windows.root
    return not absolute and ".." not in windows.parts and ".." not in PurePosixPath(location).parts
