"""Convolutions, and Col2Im."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, checked_shape, ints, nx, traced
from ..registry import op
from ._window import Window, explicit_pads, extents, per_axis, split, taps, window
from .norm import per_channel, wide

_DEPTHWISE_TAPS = 64


@op("Conv")
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):
    """Convolution over any number of spatial axes. https://onnx.ai/onnx/operators/onnx__Conv.html"""
    y = _convolved(x, w, auto_pad, dilations, group, pads, strides)
    return y if b is None else y + per_channel(b, y.ndim)


def _convolved(
    x: Any, w: Any, auto_pad: str, dilations: Any, group: int, pads: Any, strides: Any, precision: Any = None
) -> jax.Array:
    if x.shape[1] != w.shape[1] * group:
        raise ValueError(
            f"X has {x.shape[1]} channels, but W takes {w.shape[1]} for each of {group} group(s)"
        )
    frame = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if 1 < group == w.shape[0] and w.shape[1] == 1 and math.prod(frame.kernel) <= _DEPTHWISE_TAPS:
        return _depthwise(x, w, frame)
    return lax.conv_general_dilated(
        x,
        w,
        frame.strides,
        frame.pads,
        rhs_dilation=frame.dilations,
        feature_group_count=group,
        precision=precision,
    )


def _depthwise(x: Any, w: Any, frame: Window) -> jax.Array:
    """A convolution with one kernel for each channel, as a sum over the taps of the kernel.

    XLA's own grouped convolution is some forty times slower on a CPU.
    """
    given = wide(x)
    kernel = cast(nx.reshape(w, (w.shape[0], -1)), given.dtype)
    parts = (
        part * per_channel(kernel[:, tap : tap + 1], x.ndim) for tap, part in enumerate(taps(given, frame, 0))
    )
    return cast(functools.reduce(operator.add, parts), x.dtype)


@op("ConvInteger", since=10)
def conv_integer(
    x,
    w,
    x_zero_point=None,
    w_zero_point=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    pads=None,
    strides=None,
):
    """Convolution of 8-bit integers, in int32. https://onnx.ai/onnx/operators/onnx__ConvInteger.html"""
    return _convolved_integers(x, w, x_zero_point, w_zero_point, auto_pad, dilations, group, pads, strides)


def _convolved_integers(x: Any, w: Any, x_zero_point: Any, w_zero_point: Any, *geometry: Any) -> jax.Array:
    """Exact sums of products of 8-bit integers.

    They are computed in float32 if it holds them exactly, since XLA's int32 convolution is slow on a CPU.
    """
    x, w = _centered(x, x_zero_point), _centered(w, w_zero_point)
    if math.prod(w.shape[1:]) * 255 * 255 < 1 << 24:
        return cast(
            _convolved(cast(x, np.float32), cast(w, np.float32), *geometry, precision=lax.Precision.HIGHEST),
            np.int32,
        )
    return _convolved(x, w, *geometry)


def _centered(x: Any, zero_point: Any) -> Any:
    """Integers minus their zero point, a scalar or one value for each entry of the first axis."""
    x = cast(x, np.int32)
    return (
        x if zero_point is None else x - nx.reshape(cast(zero_point, np.int32), (-1,) + (1,) * (x.ndim - 1))
    )


@op("QLinearConv", since=10)
def qlinear_conv(
    x,
    x_scale,
    x_zero_point,
    w,
    w_scale,
    w_zero_point,
    y_scale,
    y_zero_point,
    b=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    pads=None,
    strides=None,
):
    """Convolution of quantized tensors, summed in int32.

    https://onnx.ai/onnx/operators/onnx__QLinearConv.html
    """
    total = _convolved_integers(x, w, x_zero_point, w_zero_point, auto_pad, dilations, group, pads, strides)
    total = total if b is None else total + per_channel(b, total.ndim)
    scale = nx.reshape(x_scale, (1,)) * nx.reshape(w_scale, (-1,)) / nx.reshape(y_scale, (1,))
    limits = np.iinfo(y_zero_point.dtype)
    y = jnp.round(cast(total, np.float32) * per_channel(scale, total.ndim)) + nx.reshape(
        cast(y_zero_point, np.float32), (1,) * total.ndim
    )
    return cast(jnp.clip(y, limits.min, limits.max), y_zero_point.dtype)


@op("ConvTranspose")
def conv_transpose(
    x,
    w,
    b=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    output_padding=None,
    output_shape=None,
    pads=None,
    strides=None,
):
    """Transposed convolution: a convolution of the input, spread out by `strides`, with the flipped kernel.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    rank = x.ndim - 2
    strides, dilations = per_axis("strides", strides, rank), per_axis("dilations", dilations, rank)
    reach = extents(w.shape[2:], dilations)
    spread = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], strides, strict=True)]
    full = [
        s + r - 1 + more
        for s, r, more in zip(spread, reach, per_axis("output_padding", output_padding, rank, 0), strict=True)
    ]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = (
            output_shape[-rank:]
            if output_shape
            else [s * stride for s, stride in zip(x.shape[2:], strides, strict=True)]
        )
        starts = [split(max(0, size - want), auto_pad)[0] for size, want in zip(full, wanted, strict=True)]
    else:
        crops = explicit_pads(pads, auto_pad, rank)
        wanted = [size - sum(crop) for size, crop in zip(full, crops, strict=True)]
        starts = [start for start, _ in crops]
    padding = [
        (r - 1 - start, want + start - s)
        for s, r, start, want in zip(spread, reach, starts, wanted, strict=True)
    ]
    y = lax.conv_general_dilated(
        x,
        _flipped(w, group),
        (1,) * rank,
        padding,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=group,
    )
    return y if b is None else y + per_channel(b, y.ndim)


def _flipped(w: Any, group: int) -> Any:
    """(C, M / group, ...) -> (M, C / group, ...), with the spatial axes reversed."""
    channels, outputs, *spatial = w.shape
    grouped = nx.swapaxes(nx.reshape(w, (group, channels // group, outputs, *spatial)), 1, 2)
    return nx.flip(
        nx.reshape(grouped, (group * outputs, channels // group, *spatial)), tuple(range(2, w.ndim))
    )


@op("DeformConv", since=19)
def deform_conv(
    x,
    w,
    offset,
    b=None,
    mask=None,
    *,
    dilations=None,
    group=1,
    kernel_shape=None,
    offset_group=1,
    pads=None,
    strides=None,
):
    """Convolution at positions moved by `offset` and weighted by `mask`, interpolated between pixels.

    https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """
    frame = window(x.shape[2:], w.shape[2:], strides, dilations, pads, "NOTSET")
    batch, rank, count, output = x.shape[0], x.ndim - 2, math.prod(frame.kernel), frame.output
    moved = nx.reshape(wide(offset), (batch, offset_group, count, rank, *output))
    points = []
    for axis, kernel_index in enumerate(np.indices(frame.kernel).reshape(rank, count)):
        start = np.indices(output)[axis] * frame.strides[axis] - frame.declared[axis][0]
        grid = kernel_index.reshape(-1, *(1,) * rank) * frame.dilations[axis] + start
        points.append(
            nx.reshape(
                moved[:, :, :, axis] + cast(grid, moved.dtype)[None, None], (batch, offset_group, 1, -1)
            )
        )
    sampled = _interpolated(
        nx.reshape(x, (batch, offset_group, x.shape[1] // offset_group, -1)), frame.spatial, points
    )
    sampled = jnp.reshape(sampled, (batch, offset_group, -1, count, math.prod(output)))
    if mask is not None:
        sampled *= nx.reshape(wide(mask), (batch, offset_group, 1, count, -1))
    columns = jnp.reshape(sampled, (batch, group, x.shape[1] // group, count, -1))
    kernel = cast(nx.reshape(w, (group, w.shape[0] // group, w.shape[1], count)), columns.dtype)
    y = jnp.reshape(jnp.einsum("ngckl,gock->ngol", columns, kernel), (batch, w.shape[0], *output))
    return cast(y if b is None else y + per_channel(cast(b, y.dtype), y.ndim), x.dtype)


def _interpolated(images: Any, spatial: tuple[int, ...], points: list[Any]) -> Any:
    """Values of `images` (..., pixels) at real positions, one array (..., count) for each spatial axis.

    Outside the image the value is zero.
    """
    total = 0
    floors = [jnp.floor(point) for point in points]
    for corner in itertools.product((0, 1), repeat=len(spatial)):
        index, weight = 0, jnp.ones((), points[0].dtype)
        for step, size, point, floor in zip(corner, spatial, points, floors, strict=True):
            place = floor + step
            weight = weight * jnp.where((place >= 0) & (place < size), 1 - jnp.abs(point - place), 0)
            index = index * size + cast(jnp.clip(place, 0, size - 1), np.int32)
        total = total + weight * cast(
            jnp.take_along_axis(traced(images), index, axis=-1, mode="clip"), weight.dtype
        )
    return total


@op("Col2Im", since=18, static=("image_shape", "block_shape"))
def col2im(x, image_shape, block_shape, *, dilations=None, pads=None, strides=None):
    """Add columns of blocks to an image, where blocks may overlap.

    https://onnx.ai/onnx/operators/onnx__Col2Im.html
    """
    image, block = checked_shape(ints(image_shape)), checked_shape(ints(block_shape))
    frame = window(image, block, strides, dilations, pads, "NOTSET")
    blocks = jnp.reshape(x, (x.shape[0], -1, math.prod(block), *frame.output))
    total = jnp.zeros((*blocks.shape[:2], *image), x.dtype)
    for tap, place in enumerate(np.ndindex(*block)):
        padding = [(0, 0, 0), (0, 0, 0)]
        for axis, index in enumerate(place):
            start = index * frame.dilations[axis] - frame.declared[axis][0]
            stop = start + (frame.output[axis] - 1) * frame.strides[axis] + 1
            padding.append((start, image[axis] - stop, frame.strides[axis] - 1))
        total += lax.pad(blocks[:, :, tap], np.zeros((), x.dtype), padding)
    return total
