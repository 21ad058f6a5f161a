"""Convolutions of images with few channels, as convolutions of more channels.

XLA:CPU is slow at few channels. With a stride, each patch of stride x stride pixels becomes one pixel with
all their channels, and the window shrinks by the stride. Without one, patches of 2 x 2 pixels do,
and four pixels of the result are made at once, by four windows side by side. Both apply to shapes for which
they were measured to take less time: 0.3 to 0.9 of it with a stride, 0.1 to 0.7 without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from .hoist import Step, flattened

_MOST_CHANNELS = 8
_FAST_ALREADY = 4
"""Number of channels for which the rewrite gains nothing."""

_SLOW = (3, 5, 7)
"""Numbers of channels for which the rewrite pays even if the window grows to a multiple of the stride."""

_MANY_PLACES = 1024
"""From this many places of the window on (in all images of a batch), it pays even if the window grows."""

_MOST_COPIED = 1 << 17
"""Numbers of all images of a batch up to which patches are copied channel by channel, in runs of pixels.

Whole policies with strides of 4 then take 0.87 to 0.95 of the time; with more images, up to 1.15.
"""

_MOST_PAIRS = 160
_LARGEST_WINDOW = 5
_LEAST_SIDE = 8
"""Pairs of channels, windows, and sides of the result for which four at once were measured to pay."""

_IMAGE = (0, 1, 2, 3)
"""The file's order of axes: batch, channels, height, width."""


def with_more_channels(closed: Any) -> Any:
    """A closed jaxpr with such convolutions rewritten, or `closed` itself if it has none.

    The caller holds the tracing lock.
    """
    arguments, steps, outputs = flattened(closed)
    if not any(map(_is_plain, steps)):
        return closed

    def run(*given: Any) -> list[Any]:
        env: dict[int, Any] = dict(zip(arguments, given, strict=True))
        for step in steps:
            read = [env[atom] if isinstance(atom, int) else atom.value for atom in step.inputs]
            way = _way(step, *map(np.shape, read)) if _is_plain(step) else None
            env.update(zip(step.outputs, [way(step, *read)] if way else step.bind(read), strict=True))
        return [env[atom] if isinstance(atom, int) else atom.value for atom in outputs]

    return jax.make_jaxpr(run)(*(var.aval for var in closed.jaxpr.invars))


def _is_plain(step: Step) -> bool:
    """Whether a step is a plain convolution of images: float32, no groups, no dilation."""
    if step.primitive.name != "conv_general_dilated" or step.avals[0].dtype != np.float32:
        return False
    params = step.params
    axes = params["dimension_numbers"]
    return (
        axes.lhs_spec == axes.rhs_spec == _IMAGE
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) | set(params["rhs_dilation"]) == {1}
        and min(map(min, params["padding"])) >= 0
    )


def _way(step: Step, image: Sequence[int], window: Sequence[int]) -> Callable[..., Any] | None:
    """How a plain convolution is rewritten, if that pays."""
    strides = step.params["window_strides"]
    if min(strides) > 1:
        return _convolved if _pays(step, image, window) else None
    if max(strides) > 1 or step.params["dimension_numbers"].out_spec != _IMAGE:
        return None
    made, channels, *sizes = window
    few = channels <= _MOST_CHANNELS and channels * made <= _MOST_PAIRS
    small = min(sizes) >= 3 and max(sizes) <= _LARGEST_WINDOW
    return _four_at_once if few and small and min(step.avals[0].shape[2:]) >= _LEAST_SIDE else None


def _pays(step: Step, image: Sequence[int], window: Sequence[int]) -> bool:
    channels, strides, out = image[1], step.params["window_strides"], step.avals[0].shape
    if channels > _MOST_CHANNELS or channels == _FAST_ALREADY or not math.prod(out):
        return False
    if all(size % stride == 0 for size, stride in zip(window[2:], strides, strict=True)):
        return True
    places = math.prod(out) // window[0]
    return (
        channels in _SLOW
        and places >= _MANY_PLACES
        and all(size > stride for size, stride in zip(window[2:], strides, strict=True))
    )


class _Axis(NamedTuple):
    """How one axis is divided into blocks.

    Attributes:
        stride: pixels of a block.
        before: pixels of padding before the axis; a negative number crops.
        after: pixels of padding after the axis; a negative number crops.
        blocks: the number of blocks.
        window: the number of blocks in a window.
        growth: pixels by which the window of blocks is larger than the original window.
    """

    stride: int
    before: int
    after: int
    blocks: int
    window: int
    growth: int

    @classmethod
    def of(cls, size: int, window: int, stride: int, padding: Sequence[int]) -> _Axis:
        before, after = padding
        places = (size + before + after - window) // stride + 1
        blocks = -(-window // stride)
        needed = places - 1 + blocks
        return cls(stride, before, needed * stride - size - before, needed, blocks, blocks * stride - window)


def _convolved(step: Step, image: Any, weights: Any) -> Any:
    params = step.params
    strides, padding = params["window_strides"], params["padding"]
    high = _Axis.of(image.shape[2], weights.shape[2], strides[0], padding[0])
    wide = _Axis.of(image.shape[3], weights.shape[3], strides[1], padding[1])
    count, channels = image.shape[:2]
    made = weights.shape[0]
    zero = np.float32(0)
    if high[1:3] + wide[1:3] != (0, 0, 0, 0):
        image = lax.pad(image, zero, ((0, 0, 0), (0, 0, 0), (*high[1:3], 0), (*wide[1:3], 0)))
    if high.growth or wide.growth:
        weights = lax.pad(weights, zero, ((0, 0, 0), (0, 0, 0), (0, high.growth, 0), (0, wide.growth, 0)))
    image = lax.reshape(image, (count, channels, high.blocks, high.stride, wide.blocks, wide.stride))
    weights = lax.reshape(weights, (made, channels, high.window, high.stride, wide.window, wide.stride))
    deep = high.stride * wide.stride * channels
    inner = (1, 3, 5) if image.size <= _MOST_COPIED else (3, 5, 1)
    return lax.conv_general_dilated(
        lax.reshape(lax.transpose(image, (0, 2, 4, *inner)), (count, high.blocks, wide.blocks, deep)),
        lax.reshape(lax.transpose(weights, (2, 4, *inner, 0)), (high.window, wide.window, deep, made)),
        (1, 1),
        "VALID",
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, 3, 1, 2), (3, 2, 0, 1), params["dimension_numbers"].out_spec
        ),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )


def _four_at_once(step: Step, image: Any, weights: Any) -> Any:
    params = step.params
    (top, bottom), (left, right) = params["padding"]
    count, channels, height, width = image.shape
    made, _, *window = weights.shape
    places = height + top + bottom - window[0] + 1, width + left + right - window[1] + 1
    # In blocks of 2 x 2 pixels: the result, the window around one block of it, and the image.
    blocks = [-(-size // 2) for size in places]
    around = [-(-(size + 1) // 2) for size in window]
    high, wide = (block - 1 + size for block, size in zip(blocks, around, strict=True))
    zero = np.float32(0)
    image = lax.pad(
        image,
        zero,
        ((0, 0, 0), (0, 0, 0), (top, 2 * high - height - top, 0), (left, 2 * wide - width - left, 0)),
    )
    image = lax.reshape(image, (count, channels, high, 2, wide, 2))
    spare = [2 * size - own for size, own in zip(around, window, strict=True)]
    shifted = [
        lax.pad(weights, zero, ((0, 0, 0), (0, 0, 0), (y, spare[0] - y, 0), (x, spare[1] - x, 0)))
        for y in range(2)
        for x in range(2)
    ]
    weights = lax.reshape(lax.concatenate(shifted, 0), (4 * made, channels, around[0], 2, around[1], 2))
    result = lax.conv_general_dilated(
        lax.reshape(lax.transpose(image, (0, 2, 4, 3, 5, 1)), (count, high, wide, 4 * channels)),
        lax.reshape(lax.transpose(weights, (2, 4, 3, 5, 1, 0)), (*around, 4 * channels, 4 * made)),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    result = lax.transpose(lax.reshape(result, (count, *blocks, 2, 2, made)), (0, 5, 1, 3, 2, 4))
    result = lax.reshape(result, (count, made, 2 * blocks[0], 2 * blocks[1]))
    return lax.slice(result, (0, 0, 0, 0), (count, made, *places))
