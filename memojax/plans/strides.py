"""Convolutions of images with few channels and a stride, as convolutions of more channels without one.

XLA:CPU is slow at few channels. Here each patch of stride x stride pixels becomes one pixel with all their
channels, and the window shrinks by the stride. This applies to shapes for which it was measured to take less
time: 0.3 to 0.9 of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

_IMAGE = (0, 1, 2, 3)
"""The file's order of axes: batch, channels, height, width."""


def without_strides(closed: Any) -> Any:
    """A closed jaxpr with such convolutions rewritten, or `closed` itself if it has none.

    The caller holds the tracing lock.
    """
    arguments, steps, outputs = flattened(closed)
    if not any(_is_strided(step) for step in steps):
        return closed

    def run(*given: Any) -> list[Any]:
        env: dict[int, Any] = dict(zip(arguments, given, strict=True))
        for step in steps:
            read = [env[atom] if isinstance(atom, int) else atom.value for atom in step.inputs]
            pays = _is_strided(step) and _pays(step, *map(np.shape, read))
            env.update(zip(step.outputs, [_convolved(step, *read)] if pays else step.bind(read), strict=True))
        return [env[atom] if isinstance(atom, int) else atom.value for atom in outputs]

    return jax.make_jaxpr(run)(*(var.aval for var in closed.jaxpr.invars))


def _is_strided(step: Step) -> bool:
    """Whether a step is a plain convolution of images with a stride: float32, no groups, no dilation."""
    if step.primitive.name != "conv_general_dilated" or step.avals[0].dtype != np.float32:
        return False
    params = step.params
    axes = params["dimension_numbers"]
    return (
        axes.lhs_spec == axes.rhs_spec == _IMAGE
        and min(params["window_strides"]) > 1
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) | set(params["rhs_dilation"]) == {1}
        and min(map(min, params["padding"])) >= 0
    )


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
    return lax.conv_general_dilated(
        lax.reshape(lax.transpose(image, (0, 2, 4, 3, 5, 1)), (count, high.blocks, wide.blocks, deep)),
        lax.reshape(lax.transpose(weights, (2, 4, 3, 5, 1, 0)), (high.window, wide.window, deep, made)),
        (1, 1),
        "VALID",
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, 3, 1, 2), (3, 2, 0, 1), params["dimension_numbers"].out_spec
        ),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
