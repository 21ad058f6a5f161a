"""Convolutions, and Col2Im."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, checked_shape, ints, nx, traced
from ..registry import op
from ._window import explicit_pads, extents, per_axis, split, window
from .norm import per_channel


@op("Conv")
def conv(x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
    """Convolution over any number of spatial axes. https://onnx.ai/onnx/operators/onnx__Conv.html"""
    frame = window(x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    y = lax.conv_general_dilated(x, w, frame.strides, frame.pads, rhs_dilation=frame.dilations, feature_group_count=group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("ConvInteger", since=10)
def conv_integer(x, w, x_zero_point=None, w_zero_point=None, **attributes):
    """Convolution of 8-bit integers in int32. https://onnx.ai/onnx/operators/onnx__ConvInteger.html"""
