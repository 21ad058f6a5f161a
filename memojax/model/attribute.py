"""Convert an AttributeProto to a Python value, by its declared type and not by the field that is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto

from .names import string
from .tensor import to_dense, to_numpy


@dataclass(frozen=True)
class Reference:
    """An attribute of a function body whose value is the attribute `name` of the call."""

    name: str


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


_READERS: dict[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.FLOAT: lambda a: float(a.f),
    AttributeProto.INT: lambda a: int(a.i),
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.TENSOR: lambda a: to_numpy(a.t),
    AttributeProto.FLOATS: lambda a: tuple(map(float, a.floats)),
    AttributeProto.INTS: lambda a: tuple(map(int, a.ints)),
    AttributeProto.STRINGS: lambda a: tuple(map(_text, a.strings)),
    AttributeProto.TENSORS: lambda a: tuple(to_numpy(t) for t in a.tensors),
    AttributeProto.TYPE_PROTO: lambda a: a.tp,
}


def value_of(attribute: AttributeProto, graph_of: Callable[[onnx.GraphProto], Any]) -> Any:
    """The value of an attribute; `graph_of` converts a subgraph.

    Raises:
        ValueError: the attribute has a type that no operator here takes.
    """
    if attribute.ref_attr_name:
        return Reference(string(attribute.ref_attr_name))
    if attribute.type == AttributeProto.GRAPH:
        return graph_of(attribute.g)
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return to_dense(attribute.sparse_tensor)
    reader = _READERS.get(attribute.type)
    if reader is None:
        raise ValueError(
            f"attribute {attribute.name!r} has type {type_name(attribute.type)}, which is not supported"
        )
    return reader(attribute)


def type_name(number: int) -> str:
    """ONNX's name of an attribute type; its number if the type is unknown."""
    known = AttributeProto.AttributeType.values()
    return AttributeProto.AttributeType.Name(number) if number in known else str(number)
