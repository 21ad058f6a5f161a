"""Convolutions."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, nx, traced
from ..registry import op
from ._window import explicit_pads, per_axis, split, window


@op("Conv")
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):  # fmt: skip
    """Convolution over any number of spatial axes. https://onnx.ai/onnx/operators/onnx__Conv.html"""
    frame = window(x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    y = lax.conv_general_dilated(x, w, frame.strides, frame.pads, rhs_dilation=frame.dilations, feature_group_count=group)
    return y if b is None else y + per_channel(b, y.ndim)


def per_channel(values, rank):
    """A vector over channels, broadcastable against N x C x ..."""
    return nx.reshape(values, (1, -1) + (1,) * (rank - 2))


@op("ConvTranspose")
def conv_transpose(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None, output_shape=None,
    pads=None, strides=None,
):  # fmt: skip
    """Transposed convolution, as a convolution of the input spread out by `strides`.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    rank = x.ndim - 2
    strides, dilations = per_axis("strides", strides, rank), per_axis("dilations", dilations, rank)
    extra = per_axis("output_padding", output_padding, rank, default=0)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(w.shape[2:], dilations, strict=True)]
    full = [(size - 1) * stride + extent for size, stride, extent in zip(x.shape[2:], strides, extents, strict=True)]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape[-rank:] if output_shape else [s * stride for s, stride in zip(x.shape[2:], strides, strict=True)]
        crops = [split(max(0, f + e - want), auto_pad) for f, e, want in zip(full, extra, wanted, strict=True)]
    else:
        crops = explicit_pads(pads, auto_pad, rank)
        wanted = [f + e - sum(crop) for f, e, crop in zip(full, extra, crops, strict=True)]
    padding = [(extent - 1 - low, want - f + low + extent - 1) for extent, (low, _), want, f in zip(extents, crops, wanted, full, strict=True)]
    y = lax.conv_general_dilated(
        x, _transposed_kernel(w, group), (1,) * rank, padding, lhs_dilation=strides, rhs_dilation=dilations, feature_group_count=group
    )
    return y if b is None else y + per_channel(b, y.ndim)


def _transposed_kernel(w, group):
    """(C, M / group, ...) -> (M, C / group, ...), spatial axes flipped."""
    channels, outputs, *spatial = w.shape
    grouped = nx.reshape(w, (group, channels // group, outputs, *spatial))
    swapped = nx.reshape(nx.swapaxes(grouped, 1, 2), (group * outputs, channels // group, *spatial))
    return nx.flip(swapped, tuple(range(2, w.ndim)))
