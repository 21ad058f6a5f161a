"""Pools over windows, whole images and regions."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, checked_shape, ints, nx, traced
from ..registry import op
from ._window import Window, explicit_pads, per_axis, window
from .norm import wide


@op("AveragePool")
def average_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    count_include_pad=0,
    dilations=None,
    pads=None,
    strides=None,
):
    """Mean of each window; pads count only with `count_include_pad`.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    frame = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    total = _sums(x, frame)
    counts = frame.counts(bool(count_include_pad))
    same = counts.size and np.ptp(counts) == 0
    divisor = counts.flat[0].item() if same else counts.reshape(1, 1, *counts.shape).astype(total.dtype)
    return cast(total / divisor, x.dtype)


@op("MaxPool")
def max_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=None,
    pads=None,
    storage_order=0,
    strides=None,
    n_outputs,
):
    """Largest element of each window, and its index. https://onnx.ai/onnx/operators/onnx__MaxPool.html"""
    frame = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if max(frame.dilations, default=1) > 1:  # JAX has no gradient of reduce_window with dilation
        largest = _largest(x, frame)
    else:
        largest = _reduce(x, _lowest(x.dtype), lax.max, frame)
    return (
        largest
        if n_outputs == 1
        else (largest, _positions(lax.stop_gradient(traced(x)), frame, storage_order))
    )


def _largest(x: Any, frame: Window) -> jax.Array:
    """The largest element of each window.

    It is the largest along one axis of the largest along the others, so a window of 100 x 48 takes 148 steps.
    """
    x = lax.pad(x, _lowest(x.dtype), [(0, 0, 0), (0, 0, 0), *((*pads, 0) for pads in frame.pads)])
    axes = zip(frame.kernel, frame.dilations, frame.strides, frame.output, strict=True)
    for axis, (length, dilation, stride, size) in enumerate(axes, start=2):
        starts = [tap * dilation for tap in range(length)]
        reach = (size - 1) * stride + 1
        parts = [lax.slice_in_dim(x, start, start + reach, stride, axis) for start in starts]
        x = functools.reduce(lax.max, parts)
    return x


def _lowest(dtype: Any) -> np.ndarray:
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _positions(x: jax.Array, frame: Window, storage_order: int) -> jax.Array:
    """Index in the flattened input of each window's first largest element; `storage_order` is the order."""
    inside = np.arange(math.prod(frame.spatial)).reshape(frame.spatial, order="F" if storage_order else "C")
    images = np.arange(math.prod(x.shape[:2])).reshape(x.shape[0], x.shape[1], *(1,) * len(frame.spatial))
    index_type = np.int32 if x.size < 1 << 31 else np.int64
    index = jnp.asarray((images * inside.size + inside[None, None]).astype(index_type))

    def later(a: Any, b: Any) -> Any:
        wins = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
        return jnp.where(wins, b[0], a[0]), jnp.where(wins, b[1], a[1])

    last = np.array(np.iinfo(index_type).max, index_type)
    return cast(_reduce((x, index), (_lowest(x.dtype), last), later, frame)[1], np.int64)


def _reduce(x: Any, init: Any, function: Any, frame: Window) -> Any:
    kernel, strides, dilations = (
        (1, 1, *values) for values in (frame.kernel, frame.strides, frame.dilations)
    )
    return lax.reduce_window(
        x, init, function, kernel, strides, ((0, 0), (0, 0), *frame.pads), window_dilation=dilations
    )


def _sums(x: Any, frame: Window) -> jax.Array:
    x = wide(x)
    return _reduce(x, np.zeros((), x.dtype), lax.add, frame)


@op("LpPool")
def lp_pool(x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, p=2, pads=None, strides=None):
    """p-norm of each window. https://onnx.ai/onnx/operators/onnx__LpPool.html"""
    frame = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    total = _sums(_powers(wide(x), p), frame)
    return cast(jnp.sqrt(total) if p == 2 else total ** (1 / p), x.dtype)


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
    total = nx.sum(_powers(wide(x), p), axis=tuple(range(2, x.ndim)), keepdims=True)
    return cast(nx.sqrt(total) if p == 2 else total ** (1 / p), x.dtype)


def _powers(x: Any, p: float) -> Any:
    return nx.square(x) if p == 2 else nx.abs(x) ** p


@op("MaxUnpool", since=9, static=("output_shape",))
def max_unpool(x, indices, output_shape=None, *, kernel_shape, pads=None, strides=None):
    """Put elements back where MaxPool found them, and zeros elsewhere.

    Indices refer to the shape that the attributes imply, even if `output_shape` is larger.

    https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
    """
    rank = x.ndim - 2
    strides, cropped = per_axis("strides", strides, rank), explicit_pads(pads, "NOTSET", rank)
    sizes = zip(x.shape[2:], strides, kernel_shape, cropped, strict=True)
    shape = *x.shape[:2], *((size - 1) * stride + kernel - sum(crop) for size, stride, kernel, crop in sizes)
    flat = jnp.zeros(math.prod(shape), x.dtype)
    y = jnp.reshape(flat.at[jnp.ravel(indices)].set(jnp.ravel(x), mode="drop"), shape)
    if output_shape is None:
        return y
    wanted = checked_shape(ints(output_shape))
    return lax.pad(
        y, np.zeros((), x.dtype), [(0, want - size, 0) for want, size in zip(wanted, shape, strict=True)]
    )


@op("MaxRoiPool")
def max_roi_pool(x, rois, *, pooled_shape, spatial_scale=1.0):
    """Maximum of each bin of each region `(batch, x1, y1, x2, y2)`; empty bins give 0.

    https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html
    """
    corners = cast(jnp.floor(wide(rois)[:, 1:] * spatial_scale + 0.5), np.int32)
    rows = _in_bins(corners[:, 1], corners[:, 3], pooled_shape[0], x.shape[2])
    columns = _in_bins(corners[:, 0], corners[:, 2], pooled_shape[1], x.shape[3])
    y = jnp.take(x, cast(rois[:, 0], np.int32), axis=0, mode="clip")
    y = jnp.max(jnp.where(columns[:, None, None], y[:, :, :, None], -jnp.inf), axis=-1)
    y = jnp.max(jnp.where(rows[:, None, :, None], jnp.swapaxes(y, 2, 3)[:, :, None], -jnp.inf), axis=-1)
    return cast(jnp.where(y == -jnp.inf, 0, y), x.dtype)


def _in_bins(start: Any, end: Any, bins: int, size: int) -> jax.Array:
    """Whether each of `size` pixels belongs to each bin: (regions, bins, size)."""
    step = cast(jnp.maximum(end - start + 1, 1), np.float32)[:, None] / bins
    index, pixel = np.arange(bins, dtype=np.float32)[None], np.arange(size, dtype=np.int32)[None, None]
    first = cast(jnp.floor(index * step), np.int32) + start[:, None]
    last = cast(jnp.ceil((index + 1) * step), np.int32) + start[:, None]
    return (pixel >= first[:, :, None]) & (pixel < last[:, :, None])
