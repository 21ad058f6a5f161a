"""Operators lowered by a jaxonnxruntime handler; the only file that imports jaxonnxruntime.

A handler is called at a named version, never through its global `SINCE_VERSION`. It must pass all cases of
every version for which it is registered (`tests/ops/test_delegated.py`), in both x64 settings. It must also
cost no more than ours to trace and to run.

Operators of shape arithmetic (Shape, Gather, Slice, Concat, ...) are ours even if a handler is right, since
it would turn known values into traced ones. The activations and ArgMax of most policies are ours too, since
they are not worth the import of jaxonnxruntime (0.1 s).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from onnx import helper

from .registry import OpDef, add

FOUND_WANTING = {
    ("AveragePool", 19): "has no ceil_mode",
    ("BatchNormalization", 15): "has no training mode",
    ("Cast", 19): "reads the input's type from jaxonnxruntime's own graph",
    ("Clip", 13): "calls jnp.clip with argument names that JAX has dropped",
    ("ConstantOfShape", 9): "treats the default of `value` as a given attribute",
    ("Conv", 11): "refuses auto_pad=NOTSET without pads",
    ("Div", 14): "rounds integers down, but ONNX truncates",
    ("Dropout", 13): "its ratio cannot be traced",
    ("GatherElements", 13): "assumes indices as large as the data",
    ("Gemm", 13): "treats an alpha or beta of 0 as absent",
    ("LRN", 13): "cannot be differentiated",
    ("LogSoftmax", 11): "normalizes one axis, but opset 11 flattens to two dimensions",
    ("MaxPool", 12): "has no ceil_mode and no second output",
    ("OneHot", 11): "accepts only a scalar depth",
    ("Pad", 19): "passes a tuple to jnp.size, which makes JAX warn",
    ("ReduceMax", 18): "refuses to reduce an empty tensor",
    ("Softmax", 11): "normalizes one axis, but opset 11 flattens to two dimensions",
    ("Squeeze", 11): "ignores the attribute axes",
    ("Sum", 13): "stacks its inputs instead of broadcasting them",
    ("TopK", 11): "returns the last of equal values first",
    ("Trilu", 14): "its diagonal cannot be traced",
}
"""(operator, version of its handler) -> why ours is used. A test shows each fault, so a repair is noticed."""


def delegate(
    op_type: str,
    handler: str,
    handler_version: int,
    since: int,
    until: int | None = None,
    *,
    inputs: tuple[str, ...] = ("inputs",),
    attributes: Iterable[str] = (),
    static: Iterable[str] = (),
) -> None:
    """Register jaxonnxruntime's `onnx_ops.<handler>` at `handler_version` for `since <= opset < until`."""
    add(
        OpDef(
            "",
            op_type,
            since,
            until,
            lowering(op_type, handler, handler_version),
            frozenset(static),
            origin="delegated",
            positional=inputs,
            variadic=inputs == ("inputs",),
            attributes=frozenset(attributes),
            injected=frozenset({"output_names"}),
        )
    )


def lowering(op_type: str, handler: str, handler_version: int) -> Callable[..., Any]:
    """A function of inputs and attributes that calls one version of a handler."""

    def lower(*values: Any, output_names: tuple[str, ...], **given: Any) -> Any:
        while values and values[-1] is None:
            values = values[:-1]
        names = ["" if value is None else f"input_{position}" for position, value in enumerate(values)]
        node = _node(helper.make_node(op_type, names, output_names, name=op_type, **given))
        function = getattr(_handler(handler, op_type), f"version_{handler_version}")(node, values)
        result = function(*values, **node.attrs_dict)
        return tuple(result) if isinstance(result, (list, tuple)) else result

    return lower


@functools.cache
def _handler(module: str, op_type: str) -> Any:
    found = importlib.import_module(f"jaxonnxruntime.onnx_ops.{module}")
    return next(
        value
        for value in vars(found).values()
        if isinstance(value, type) and getattr(value, "OP_TYPE", None) == op_type
    )


def _node(proto: Any) -> Any:
    from jaxonnxruntime.core import onnx_node

    return onnx_node.OnnxNode(proto)


delegate("BitShift", "bitshift", 11, since=11, inputs=("X", "Y"), attributes=("direction",))
delegate("Einsum", "einsum", 12, since=12, attributes=("equation",))
delegate("PRelu", "prelu", 16, since=7, inputs=("X", "slope"))
