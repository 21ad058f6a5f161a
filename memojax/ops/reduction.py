"""Reductions and ArgMax/ArgMin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._types import Shape
from ._common import cast, ints, normalize_axes, normalize_axis, nx, traced
from .math.elementwise import divide
from .registry import op


def _sum(x: Any, axes: Shape, keepdims: bool) -> Any:
    return nx.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _mean(x: Any, axes: Shape, keepdims: bool) -> Any:
    count = math.prod(x.shape[axis] for axis in axes)
    if count and not np.issubdtype(x.dtype, np.integer):
        return nx.mean(x, axis=axes, keepdims=keepdims)
    return divide(_sum(x, axes, keepdims), np.array(count, x.dtype))


def _max(x: Any, axes: Shape, keepdims: bool) -> Any:
    return nx.max(x, axis=axes, keepdims=keepdims, **({} if x.size else {"initial": _limit(x.dtype, "min")}))


def _min(x: Any, axes: Shape, keepdims: bool) -> Any:
    return nx.min(x, axis=axes, keepdims=keepdims, **({} if x.size else {"initial": _limit(x.dtype, "max")}))


def _limit(dtype: np.dtype, side: str) -> Any:
    if dtype == np.bool_:
        return side == "max"
    return (
        int(getattr(np.iinfo(dtype), side))
        if np.issubdtype(dtype, np.integer)
        else {"min": -np.inf, "max": np.inf}[side]
    )


def _in_float(function: Callable[[Any, Shape, bool], Any]) -> Callable[[Any, Shape, bool], Any]:
    """`function`, computed in float32 for half precision and in float64 for integers."""

    def wrapped(x: Any, axes: Shape, keepdims: bool) -> Any:
        if x.dtype in (np.float32, np.float64):
            return function(x, axes, keepdims)
        wide = np.float64 if np.issubdtype(x.dtype, np.integer) else np.float32
        return cast(function(cast(x, wide), axes, keepdims), x.dtype)

    return wrapped


def _register(op_type: str, reduce: Callable[[Any, Shape, bool], Any], input_since: int) -> None:
    """Register `reduce(x, axes, keepdims)`: `axes` is an attribute, and from `input_since` on an input."""

    @op(op_type, until=input_since)
    def by_attribute(data, *, axes=(), keepdims=1):
        return by_input(data, axes, keepdims=keepdims)

    @op(op_type, since=input_since, static=("axes",))
    def by_input(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        given = () if axes is None or data.ndim == 0 else normalize_axes(ints(axes), data.ndim)
        return reduce(
            data, given or (() if noop_with_empty_axes else tuple(range(data.ndim))), bool(keepdims)
        )


_register("ReduceL1", lambda x, axes, keepdims: _sum(nx.abs(x), axes, keepdims), 18)
_register("ReduceL2", _in_float(lambda x, axes, keepdims: nx.sqrt(_sum(x * x, axes, keepdims))), 18)
_register("ReduceLogSum", _in_float(lambda x, axes, keepdims: nx.log(_sum(x, axes, keepdims))), 18)
_register(
    "ReduceLogSumExp",
    _in_float(lambda x, axes, keepdims: jax.nn.logsumexp(traced(x), axes, keepdims=keepdims)),
    18,
)
_register("ReduceMax", _max, 18)
_register("ReduceMean", _mean, 18)
_register("ReduceMin", _min, 18)
_register("ReduceProd", lambda x, axes, keepdims: nx.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype), 18)
_register("ReduceSum", _sum, 13)
_register("ReduceSumSquare", lambda x, axes, keepdims: _sum(x * x, axes, keepdims), 18)


@op("ArgMax")
def arg_max(data, *, axis=0, keepdims=1, select_last_index=0):
    """Position of the greatest value along `axis`. https://onnx.ai/onnx/operators/onnx__ArgMax.html"""
    return _position(nx.argmax, data, axis, keepdims, select_last_index)


@op("ArgMin")
def arg_min(data, *, axis=0, keepdims=1, select_last_index=0):
    """Position of the least value along `axis`. https://onnx.ai/onnx/operators/onnx__ArgMin.html"""
    return _position(nx.argmin, data, axis, keepdims, select_last_index)


def _position(function, data, axis, keepdims, last):
    axis = normalize_axis(axis, data.ndim)
    if last:
        position = data.shape[axis] - 1 - function(nx.flip(data, axis), axis, keepdims=bool(keepdims))
    else:
        position = function(data, axis, keepdims=bool(keepdims))
    return cast(position, np.int64)
