"""Load a path, bytes, a file object or a ModelProto as a checked `Model`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import onnx
import onnx.defs
from google.protobuf.message import DecodeError, EncodeError

from .._types import Source
from ..errors import MemojaxError, ModelLoadError
from . import external
from .crvo import Asset, onnx_bytes
from .expand import functions_of, inline
from .files import path_of, read_file
from .formats import other_format
from .graph import Graph, domain_of, graph_of, prune
from .names import string
from .scope import check_graph

LATEST_REVIEWED_OPSET = 28
"""The newest ai.onnx opset whose changes were reviewed; a model of a newer one is refused."""

_IR_WITH_IMPORTS = 3
"""The IR version from which a model must import its operators' versions; an older one has version 1."""

_DEFAULTS_SINCE = 4
"""Before this IR version every initializer is also an input, and no runtime lets a caller replace it."""


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        graph: the graph, with functions inlined and unused parts dropped.
        opsets: domain -> version.
        metadata: `metadata_props` of the file.
        producer: name and version of the exporter.
        ir_version: the file's IR version.
        name: path or other name of the source, for messages.
        content: bytes of the file; empty if external data make it too large for one message.
        data_digest: SHA-256 of the external data; empty if there are none.
    """

    graph: Graph = field(repr=False)
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    producer: str
    ir_version: int
    name: str
    content: bytes = field(repr=False)
    data_digest: str = field(default="", repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256, as hex, of the file and its external data, which together decide the model's values."""
        return hashlib.sha256(self.content + self.data_digest.encode()).hexdigest()


def load_model(source: Source, *, outputs: tuple[str, ...] | None = None) -> Model:
    """Load and check a model; with `outputs`, only these outputs and the nodes that they need are kept.

    Raises:
        ModelLoadError: the file is missing, empty, truncated, not ONNX, cyclic or too new, or its external
            data lie outside its folder.
        LimitError: the file needs more than a limit allows; see `memojax.xla.limits`.
    """
    try:
        proto, raw, name, path = _read(source)
    except UnicodeError as cause:
        raise ModelLoadError(f"a name in the model is not UTF-8: {cause}") from cause
    try:
        return _model(proto, raw, name, path, outputs)
    except ModelLoadError as cause:
        raise type(cause)(f"{name}: {cause}") from cause
    except MemojaxError:
        raise
    except RecursionError as cause:
        raise ModelLoadError(f"{name}: subgraphs nest too deeply") from cause
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        ArithmeticError,
        MemoryError,
    ) as cause:
        # No check names this fault: the protobuf message parses, but no exporter would write its content.
        raise ModelLoadError(f"{name}: a damaged model: {type(cause).__name__}: {cause}") from cause


def _model(
    proto: onnx.ModelProto, raw: bytes | None, name: str, path: Path | None, outputs: tuple[str, ...] | None
) -> Model:
    opsets = _opsets(proto)
    data_digest = external.put_in(proto, path) if raw is None or b"location" in raw else ""
    external.check_sparse(proto)
    graph = graph_of(proto.graph, opsets)
    graph = prune(inline(graph, functions_of(proto)), outputs)
    if proto.ir_version < _DEFAULTS_SINCE:
        graph = replace(graph, defaults={})
    if not graph.outputs:
        raise ModelLoadError("the model has no output that its nodes compute")
    check_graph(graph)
    producer = f"{string(proto.producer_name)} {string(proto.producer_version)}".strip() or "unknown"
    metadata = {string(entry.key): string(entry.value) for entry in proto.metadata_props}
    content = _serialize(proto) if raw is None or data_digest else raw
    return Model(graph, opsets, metadata, producer, proto.ir_version, name, content, data_digest)


def _read(source: Source) -> tuple[onnx.ModelProto, bytes | None, str, Path | None]:
    """The protobuf message, its bytes, a name for errors, and its path."""
    if isinstance(source, onnx.ModelProto):
        return source, None, string(source.graph.name) or "ModelProto", None
    if isinstance(source, (str, PathLike)):
        path = path_of(source)
        raw = onnx_bytes(read_file(path), str(path))
        return _parse(raw, str(path)), raw, str(path), path
    if isinstance(source, Asset):
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
    trained = callable(source) or hasattr(source, "policy")
    hint = "; export a trained model to ONNX first, as the page on recipes shows" if trained else ""
    raise ModelLoadError(
        f"cannot load a model from {type(source).__name__}: give a path, bytes, a file object or a "
        f"ModelProto{hint}"
    )


def _parse(raw: bytes, name: str) -> onnx.ModelProto:
    if not raw:
        raise ModelLoadError(f"{name}: the file is empty")
    if other := other_format(raw[:300]):
        raise ModelLoadError(f"{name}: this is not an ONNX model but {other}")
    try:
        proto = onnx.ModelProto.FromString(raw)
    except DecodeError as cause:
        raise ModelLoadError(
            f"{name}: not an ONNX model, or a truncated one ({len(raw):,} bytes): {cause}"
        ) from cause
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelLoadError(f"{name}: not an ONNX model, or a truncated one: it parses, but has no graph")
    return proto


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    opsets = {domain_of(string(entry.domain)): entry.version for entry in proto.opset_import}
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelLoadError(
            f"IR version {proto.ir_version} is newer than onnx {onnx.__version__} supports "
            f"({onnx.IR_VERSION}): update onnx, or export with a lower opset_version"
        )
    newest = min(LATEST_REVIEWED_OPSET, onnx.defs.onnx_opset_version())
    if opsets.get("", 0) > newest:
        raise ModelLoadError(
            f"ai.onnx opset {opsets['']} is newer than the newest supported one ({newest}): export with a "
            "lower opset_version, or update memojax and onnx"
        )
    for domain, version in opsets.items():
        if not 0 <= version < 1 << 31:
            raise ModelLoadError(
                f"the model imports opset {version} of the domain {domain or 'ai.onnx'!r}, which does not "
                "exist"
            )
    if "" not in opsets and proto.ir_version >= _IR_WITH_IMPORTS and _uses_ai_onnx(proto.graph):
        raise ModelLoadError(
            "the model imports no version of ai.onnx, and its operators mean different things in different "
            "versions: add the version of the export to opset_import (onnx.helper.make_opsetid('', N))"
        )
    opsets.setdefault("", 1)
    return opsets


def _uses_ai_onnx(graph: onnx.GraphProto) -> bool:
    return any(domain_of(string(node.domain)) == "" for node in graph.node)


def _serialize(proto: onnx.ModelProto) -> bytes:
    """The model as one message; empty if it is too large for one."""
    try:
        return proto.SerializeToString()
    except (EncodeError, ValueError):
        return b""
