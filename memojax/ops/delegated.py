"""Operators lowered by a jaxonnxruntime handler; the only file that imports jaxonnxruntime.

A handler is called at a named version, never through its global `SINCE_VERSION`, and only where it passes ONNX's own cases for every
version it is registered for (`tests/ops/test_delegated.py`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from typing import Any

from onnx import helper

from .registry import OpDef, add


def delegate(
    op_type: str, handler: str, handler_version: int, since: int, until: int | None = None, *,
    inputs: tuple[str, ...] = ("inputs",), attributes: Iterable[str] = (), static: Iterable[str] = (),
) -> None:  # fmt: skip
    """Register jaxonnxruntime's `onnx_ops.<handler>` at `handler_version` for `since <= opset < until`."""

    def lower(*values: Any, output_names: tuple[str, ...], **given: Any) -> Any:
        while values and values[-1] is None:
            values = values[:-1]
        names = ["" if value is None else f"input_{position}" for position, value in enumerate(values)]
        node = _node(helper.make_node(op_type, names, output_names, name=op_type, **given))
        function = getattr(_handler(handler, op_type), f"version_{handler_version}")(node, values)
        result = function(*values, **node.attrs_dict)
        return tuple(result) if isinstance(result, (list, tuple)) else result

    add(
        OpDef(
            "", op_type, since, until, lower, frozenset(static), origin="delegated", positional=inputs,
            variadic=inputs == ("inputs",), attributes=frozenset(attributes), injected=frozenset({"output_names"}),
        )
    )  # fmt: skip


@functools.cache
def _handler(module: str, op_type: str) -> Any:
    found = importlib.import_module(f"jaxonnxruntime.onnx_ops.{module}")
    return next(value for value in vars(found).values() if isinstance(value, type) and getattr(value, "OP_TYPE", None) == op_type)


def _node(proto: Any) -> Any:
    from jaxonnxruntime.core import onnx_node

    return onnx_node.OnnxNode(proto)
