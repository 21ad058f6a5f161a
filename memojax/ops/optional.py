"""Optionals, which exist only while tracing: an optional is its value, or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._types import GraphValue
from .registry import op


@op("Optional", since=15)
def optional(input: GraphValue = None, *, type: Any = None) -> tuple[GraphValue]:
    """The input as an optional, or an empty one. https://onnx.ai/onnx/operators/onnx__Optional.html"""
    return (input,)


@op("OptionalHasElement", since=15, shape_only=True)
def optional_has_element(input: GraphValue = None) -> GraphValue:
    """Whether there is a value. https://onnx.ai/onnx/operators/onnx__OptionalHasElement.html"""
    return np.asarray(input is not None)


@op("OptionalGetElement", since=15)
def optional_get_element(input: GraphValue) -> tuple[GraphValue]:
    """The value in an optional. https://onnx.ai/onnx/operators/onnx__OptionalGetElement.html"""
    if input is None:
        raise ValueError("the optional is empty, so it has no element")
    return (input,)
