"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, ints, nx, traced
from ..registry import op
from ._window import Window, window


@op("AveragePool")
def average_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, pads=None, strides=None
):  # fmt: skip
    """Mean of each window; pads count only with `count_include_pad`. https://onnx.ai/onnx/operators/onnx__AveragePool.html"""
    frame = window(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )  # fmt: skip
    total = _sums(x, frame)
    counts = frame.counts(bool(count_include_pad))
    same = counts.size and np.ptp(counts) == 0
    divisor = counts.flat[0].item() if same else counts.reshape(1, 1, *counts.shape).astype(total.dtype)
    return cast(total / divisor, x.dtype)


@op("MaxPool")
def max_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, pads=None, storage_order=0, strides=None, n_outputs
):  # fmt: skip
    """Largest element of each window, and where it was. https://onnx.ai/onnx/operators/onnx__MaxPool.html"""
    frame = window(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )  # fmt: skip
    lowest = np.array(jnp.finfo(x.dtype).min if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min, x.dtype)
    init = np.array(-np.inf, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else lowest
    largest = _reduce(x, init, lax.max, frame)
    if n_outputs == 1:
        return largest
    return largest, _positions(lax.stop_gradient(traced(x)), init, frame, storage_order)


def _positions(x: jax.Array, init: np.ndarray, frame: Window, storage_order: int) -> jax.Array:
    """Index of each window's first largest element in the flattened input (in Fortran order with `storage_order`)."""
    inside = np.arange(math.prod(frame.spatial)).reshape(frame.spatial, order="F" if storage_order else "C")
    images = np.arange(math.prod(x.shape[:2])).reshape(x.shape[0], x.shape[1], *(1,) * len(frame.spatial))
    index_type = np.int32 if x.size < 1 << 31 else np.int64
    index = jnp.asarray((images * inside.size + inside[None, None]).astype(index_type))

    def later(a: Any, b: Any) -> Any:
        wins = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
        return jnp.where(wins, b[0], a[0]), jnp.where(wins, b[1], a[1])

    last = np.array(np.iinfo(index_type).max, index_type)
    return cast(_reduce((x, index), (init, last), later, frame)[1], np.int64)


def _reduce(x: Any, init: Any, function: Any, frame: Window) -> Any:
    kernel, strides, dilations = ((1, 1, *values) for values in (frame.kernel, frame.strides, frame.dilations))
    return lax.reduce_window(x, init, function, kernel, strides, ((0, 0), (0, 0), *frame.pads), window_dilation=dilations)


def _sums(x: Any, frame: Window) -> jax.Array:
    wide = cast(x, np.float32) if jnp.finfo(x.dtype).bits < 32 else x
    return _reduce(wide, np.zeros((), wide.dtype), lax.add, frame)


@op("LpPool")
def lp_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, p=2, pads=None, strides=None
):  # fmt: skip
    """p-norm of each window. https://onnx.ai/onnx/operators/onnx__LpPool.html"""
    frame = window(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )  # fmt: skip
    if p == 1:
        return cast(_sums(nx.abs(x), frame), x.dtype)
    if p == 2:
        return cast(jnp.sqrt(_sums(nx.square(x), frame)), x.dtype)
    return cast(_sums(nx.abs(x) ** p, frame) ** (1 / p), x.dtype)


@op("GlobalAveragePool")
def global_average_pool(x):
    """Mean over all spatial axes. https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html"""
    return nx.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalMaxPool")
def global_max_pool(x):
    """Maximum over all spatial axes. https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html"""
    return nx.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalLpPool")
def global_lp_pool(x, *, p=2):
    """p-norm over all spatial axes. https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html"""
    axes = tuple(range(2, x.ndim))
    if p == 2:
        return nx.sqrt(nx.sum(nx.square(x), axis=axes, keepdims=True))
    return nx.sum(nx.abs(x) ** p, axis=axes, keepdims=True) ** (1 / p)
