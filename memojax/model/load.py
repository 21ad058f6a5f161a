"""Path, bytes, file object or ModelProto -> a checked `Model`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path

import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from .._types import Source
from ..errors import ModelLoadError
from .crvo import AssetData, onnx_bytes
from .expand import functions_of, inline
from .graph import Graph, domain_of, graph_of, prune

LATEST_REVIEWED_OPSET = 28
"""Newest ai.onnx opset whose changes were read; a newer model is refused by name."""

_DEFAULTS_SINCE = 4
"""Before this IR version every initializer is listed as an input, and no runtime lets a caller replace it."""

MAX_BYTES = 1 << 31
"""protobuf's own limit for one message."""

_NOT_ONNX = {
    b"<!DOCTYPE": "an HTML page (was the file viewed rather than downloaded?)",
    b"<html": "an HTML page (was the file viewed rather than downloaded?)",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
    b"PK\x03\x04": "a ZIP archive (a PyTorch or SB3 checkpoint must be exported to ONNX first)",
    b"\x89HDF": "an HDF5 file (a Keras model must be converted with tf2onnx first)",
    b"TFL3": "a TensorFlow Lite model",
    b"{": "JSON text",
}


@dataclass(frozen=True)
class Model:
    """A loaded model: its graph (functions inlined, unused parts dropped), and what the file says about itself."""

    graph: Graph = field(repr=False)
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    producer: str
    ir_version: int
    name: str
    content: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's content, as hex."""
        return hashlib.sha256(self.content).hexdigest()


def load_model(source: Source, *, outputs: tuple[str, ...] | None = None) -> Model:
    """Load and check a model; `outputs` keeps only those and what they need.

    Raises:
        ModelLoadError: the file is missing, empty, truncated, no ONNX, cyclic, newer than what is known here, or its external
            data lies outside its folder.
    """
    proto, raw, name, base_dir = _read(source)
    opsets = _opsets(proto, name)
    try:
        _check_external_data(proto, base_dir)
        graph = graph_of(proto.graph, opsets, base_dir)
        graph = prune(inline(graph, functions_of(proto)), outputs)
    except ModelLoadError as cause:
        raise ModelLoadError(f"{name}: {cause}") from cause
    except RecursionError as cause:
        raise ModelLoadError(f"{name}: subgraphs nest too deeply") from cause
    if proto.ir_version < _DEFAULTS_SINCE:
        graph = replace(graph, defaults={})
    if not graph.outputs:
        raise ModelLoadError(f"{name}: the model has no output that can be computed")
    producer = f"{proto.producer_name} {proto.producer_version}".strip() or "unknown"
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return Model(graph, opsets, metadata, producer, proto.ir_version, name, _content(raw, proto, base_dir))


def _read(source: Source) -> tuple[onnx.ModelProto, bytes | None, str, Path | None]:
    """The message, the bytes it came in, a name for error messages, and the folder of external data."""
    if isinstance(source, onnx.ModelProto):
        return source, None, source.graph.name or "ModelProto", None
    if isinstance(source, (str, PathLike)):
        path = Path(fspath(source))
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise ModelLoadError(
                    f"{path}: {size:,} bytes, more than protobuf allows ({MAX_BYTES:,}); save with external data"
                )
            raw = onnx_bytes(path.read_bytes(), str(path))
        except OSError as cause:
            raise ModelLoadError(f"{path}: cannot be read: {cause.strerror or cause}") from cause
        return _parse(raw, str(path)), raw, str(path), path.resolve().parent
    if isinstance(source, AssetData):
        source = source.serialize()
    if isinstance(source, (bytes, bytearray, memoryview)):
        raw = onnx_bytes(bytes(source), "<bytes>")
        return _parse(raw, "<bytes>"), raw, "<bytes>", None
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "<file>"))
        raw = source.read()
        if not isinstance(raw, bytes):
            raise ModelLoadError(f"{name}: opened as text; open it in mode 'rb'")
        raw = onnx_bytes(raw, name)
        return _parse(raw, name), raw, name, None
    raise ModelLoadError(
        f"cannot load a model from {type(source).__name__}: give a path, bytes, a file object or a ModelProto"
    )


def _parse(raw: bytes, name: str) -> onnx.ModelProto:
    if not raw:
        raise ModelLoadError(f"{name}: the file is empty")
    for magic, what in _NOT_ONNX.items():
        if raw.lstrip()[: len(magic)].lower() == magic.lower():
            raise ModelLoadError(f"{name}: this is not an ONNX model but {what}")
    try:
        proto = onnx.ModelProto.FromString(raw)
    except DecodeError as cause:
        raise ModelLoadError(
            f"{name}: not an ONNX model, or a truncated one ({len(raw):,} bytes): {cause}"
        ) from cause
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelLoadError(
            f"{name}: parsed, but there is no graph in it; not an ONNX model, or a truncated one"
        )
    return proto


def _opsets(proto: onnx.ModelProto, name: str) -> dict[str, int]:
    opsets = {domain_of(entry.domain): entry.version for entry in proto.opset_import}
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelLoadError(
            f"{name}: IR version {proto.ir_version}, newer than onnx {onnx.__version__} knows ({onnx.IR_VERSION})"
        )
    newest = min(LATEST_REVIEWED_OPSET, onnx.defs.onnx_opset_version())
    if opsets.get("", 0) > newest:
        raise ModelLoadError(
            f"{name}: ai.onnx opset {opsets['']} is newer than the newest one known here ({newest}); "
            "export with a lower opset_version, or update memojax and onnx"
        )
    opsets.setdefault("", 1)
    return opsets


def _check_external_data(proto: onnx.ModelProto, base_dir: Path | None) -> None:
    for tensor in onnx.external_data_helper._get_all_tensors(proto):  # pyright: ignore[reportPrivateUsage]
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if base_dir is None:
            raise ModelLoadError(
                f"tensor {tensor.name!r} lies in the external file {location!r}: load the model by its path"
            )
        path = base_dir / location
        if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(base_dir):
            raise ModelLoadError(
                f"tensor {tensor.name!r} wants external data outside the model's folder: {location!r}"
            )
        if not path.is_file():
            raise ModelLoadError(
                f"tensor {tensor.name!r}: its external file {location!r} is missing beside the model"
            )
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise ModelLoadError(
                f"tensor {tensor.name!r}: {location!r} is shorter than its offset {offset} and length {length}"
            )


def _content(raw: bytes | None, proto: onnx.ModelProto, base_dir: Path | None) -> bytes:
    """The model as bytes that stand alone: as read, or with its external data put in."""
    if base_dir is not None and any(map(uses_external_data, proto.graph.initializer)):
        onnx.load_external_data_for_model(proto, str(base_dir))
        raw = None
    return proto.SerializeToString() if raw is None else raw
