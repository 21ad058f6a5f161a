"""Check a node against ONNX's specification: types of attributes, numbers of inputs and outputs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.defs
from onnx import AttributeProto

from ..errors import ModelLoadError
from .graph import Graph, Node

_TYPES: dict[int, tuple[type, str]] = {
    AttributeProto.FLOAT: (float, "a float"),
    AttributeProto.INT: (int, "an int"),
    AttributeProto.STRING: (str, "a string"),
    AttributeProto.TENSOR: (np.ndarray, "a tensor"),
    AttributeProto.SPARSE_TENSOR: (np.ndarray, "a sparse tensor"),
    AttributeProto.GRAPH: (Graph, "a graph"),
    AttributeProto.FLOATS: (tuple, "floats"),
    AttributeProto.INTS: (tuple, "ints"),
    AttributeProto.STRINGS: (tuple, "strings"),
}
_ITEMS: dict[int, type] = {
    AttributeProto.FLOATS: float,
    AttributeProto.INTS: int,
    AttributeProto.STRINGS: str,
}


@dataclass(frozen=True)
class _Call:
    """The signature of one op-version, from ONNX's specification."""

    types: dict[str, int]
    required: tuple[str, ...]
    inputs: tuple[str, ...]
    needed: int
    most_inputs: int
    most_outputs: int


def check_call(node: Node) -> None:
    """Check a node against the specification; a node whose operator ONNX does not define passes.

    Raises:
        ModelLoadError: an attribute has the wrong type, a required attribute or input is missing, or there
            are too many inputs or outputs.
    """
    call = _call(node.op_type, node.opset, node.domain)
    if call is None:
        return
    for name, value in node.attributes.items():
        wanted = call.types.get(name)
        if wanted in _TYPES and not _fits(value, wanted):
            raise _bad(
                node,
                f"attribute {name!r} is {_described(value)}, but ONNX requires {_TYPES[wanted][1]}",
            )
    for name in call.required:
        if name not in node.attributes:
            raise _bad(node, f"its required attribute {name!r} is missing")
    inputs = node.inputs
    for place in range(call.needed):
        if call.inputs[place] and (place >= len(inputs) or not inputs[place]):
            raise _bad(node, f"its required input {call.inputs[place]!r} is missing")
    if len(inputs) > call.most_inputs:
        raise _bad(node, f"it has {len(inputs)} inputs, but ONNX allows {call.most_inputs}")
    if len(node.outputs) > call.most_outputs:
        raise _bad(node, f"it has {len(node.outputs)} outputs, but ONNX allows {call.most_outputs}")


@functools.lru_cache(4096)
def _call(op_type: str, opset: int, domain: str) -> _Call | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    optional = onnx.defs.OpSchema.FormalParameterOption.Single
    names = tuple(formal.name if formal.option == optional else "" for formal in schema.inputs)
    return _Call(
        types={name: _number(attribute.type) for name, attribute in schema.attributes.items()},
        required=tuple(name for name, attribute in schema.attributes.items() if attribute.required),
        inputs=names,
        needed=len(names),
        most_inputs=schema.max_input,
        most_outputs=schema.max_output,
    )


def _number(attribute_type: Any) -> int:
    return int(attribute_type.value)


def _fits(value: Any, wanted: int) -> bool:
    if not isinstance(value, _TYPES[wanted][0]):
        return False
    return wanted not in _ITEMS or not value or isinstance(value[0], _ITEMS[wanted])


def _described(value: Any) -> str:
    for kind, what in _TYPES.values():
        if isinstance(value, kind) and kind is not tuple:
            return what
    if isinstance(value, tuple):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return f"a {type(value).__name__}"


def _bad(node: Node, what: str) -> ModelLoadError:
    return ModelLoadError(f"node {node.name!r} ({node.op_type}, opset {node.opset}): {what}")
