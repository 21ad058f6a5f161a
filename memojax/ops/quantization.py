"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .._types import GraphValue, Shape
from ..model.tensor import dtype_of
from ._common import cast, normalize_axis, nx
from .registry import op
from .tensor.cast import convert


@op("QuantizeLinear", since=10)
def quantize_linear(
    x: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> GraphValue:
    """`round(x / scale) + zero_point`, saturated, with a scale for each tensor, channel or block.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    dtype = (
        y_zero_point.dtype
        if y_zero_point is not None
        else dtype_of(output_dtype)
        if output_dtype
        else np.dtype(np.uint8)
    )
    divided = dtype_of(precision) if precision else y_scale.dtype
    divided = divided if divided in _DIVISIBLE else np.dtype(np.float32)
    y = cast(x, divided) / cast(_spread(y_scale, x.shape, axis, block_size), divided)
    if not jnp.issubdtype(dtype, jnp.integer):
        return convert(y, dtype, bool(saturate))
    y = cast(nx.rint(y), np.float32)
    if y_zero_point is not None:
        y = y + cast(_spread(y_zero_point, x.shape, axis, block_size), np.float32)
    return cast(nx.clip(y, float(jnp.iinfo(dtype).min), float(jnp.iinfo(dtype).max)), dtype)


_DIVISIBLE = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))


@op("DequantizeLinear", since=10)
def dequantize_linear(
    x: GraphValue,
    x_scale: GraphValue,
    x_zero_point: GraphValue = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> GraphValue:
    """`(x - zero_point) * scale`, with a scale for each tensor, channel or block.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    if x_zero_point is not None and jnp.issubdtype(x.dtype, jnp.integer):
        x = cast(x, np.int32) - cast(_spread(x_zero_point, x.shape, axis, block_size), np.int32)
    y = cast(x, np.float32) * cast(_spread(x_scale, x.shape, axis, block_size), np.float32)
    return cast(y, dtype_of(output_dtype) if output_dtype else x_scale.dtype)


def _spread(values: GraphValue, shape: Shape, axis: int, block_size: int) -> GraphValue:
    """Scales or zero points in a shape that broadcasts against `shape`."""
    if values.size == 1 and values.ndim <= 1:
        return nx.reshape(values, ())
    axis = normalize_axis(axis, len(shape))
    if values.ndim == 1 and not block_size:
        return nx.reshape(values, [-1 if i == axis else 1 for i in range(len(shape))])
    if not block_size:
        raise ValueError(f"a scale of shape {list(values.shape)} needs the attribute block_size")
    spread = nx.repeat(values, block_size, axis=axis)
    return spread[tuple(slice(shape[i]) if i == axis else slice(None) for i in range(len(shape)))]


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: GraphValue) -> tuple[GraphValue, GraphValue, GraphValue]:
    """Quantize to uint8 with the scale and zero point of the input's own range, which are outputs as well.

    https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """
    low, high = nx.minimum(nx.min(x), np.float32(0)), nx.maximum(nx.max(x), np.float32(0))
    scale = nx.where(high == low, np.float32(1), (high - low) / np.float32(255))
    zero = nx.rint(nx.clip(-low / scale, 0.0, 255.0))
    return cast(nx.clip(nx.rint(x / scale) + zero, 0.0, 255.0), np.uint8), scale, cast(zero, np.uint8)
