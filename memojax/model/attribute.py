"""AttributeProto -> Python value, by its declared type (never by which field happens to be set)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from .tensor import to_numpy


@dataclass(frozen=True)
class Reference:
    """An attribute of a function body that takes its value from the attribute `name` of the caller."""

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
    """Value of an attribute; `graph_of` converts a subgraph.

    Raises:
        ValueError: an attribute type that no operator of ours can take (sparse tensors).
    """
    if attribute.ref_attr_name:
        return Reference(attribute.ref_attr_name)
    if attribute.type == AttributeProto.GRAPH:
        return graph_of(attribute.g)
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor)
    reader = _READERS.get(attribute.type)
    if reader is None:
        raise ValueError(
            f"attribute {attribute.name!r} has type {AttributeProto.AttributeType.Name(attribute.type)}"
        )
    return reader(attribute)


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values, indices = to_numpy(sparse.values), to_numpy(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    where = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)
    dense[where] = values
    return dense
