"""Cast, CastLike, BitCast, IsInf and IsNaN."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from ..._types import GraphValue
from ...model.tensor import dtype_of
from .._common import cast, is_static, nx
from ..registry import op

_FLOAT8 = frozenset(
    map(
        np.dtype,
        (
            ml_dtypes.float8_e4m3fn,
            ml_dtypes.float8_e4m3fnuz,
            ml_dtypes.float8_e5m2,
            ml_dtypes.float8_e5m2fnuz,
        ),
    )
)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_SMALL_INTEGERS = frozenset(
    map(
        np.dtype,
        (
            np.int8,
            np.int16,
            np.uint8,
            np.uint16,
            ml_dtypes.int2,
            ml_dtypes.uint2,
            ml_dtypes.int4,
            ml_dtypes.uint4,
        ),
    )
)


@op("Cast", since=6)
def cast_to(input: GraphValue, *, to: int, saturate: int = 1, round_mode: str = "up") -> GraphValue:
    """Cast to another element type; strings only while tracing.

    https://onnx.ai/onnx/operators/onnx__Cast.html
    """
    return convert(input, dtype_of(to), bool(saturate), round_mode)


@op("CastLike", since=15)
def cast_like(
    input: GraphValue, target_type: GraphValue, *, saturate: int = 1, round_mode: str = "up"
) -> GraphValue:
    """Cast to the element type of another tensor. https://onnx.ai/onnx/operators/onnx__CastLike.html"""
    return convert(input, np.dtype(target_type.dtype), bool(saturate), round_mode)


def convert(x: GraphValue, dtype: np.dtype, saturate: bool = True, round_mode: str = "up") -> GraphValue:
    """`x` as `dtype` by the rules of Cast: 8-bit floats saturate, and small integers wrap.

    Raises:
        ValueError: a traced number would become a string, or a string is not a number.
    """
    if "O" in (dtype.kind, x.dtype.kind):
        return _convert_text(x, dtype)
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    if dtype in _FLOAT8 and saturate and x.dtype != dtype:
        limit = float(jnp.finfo(dtype).max)
        return cast(nx.clip(x if is_float else cast(x, np.float32), -limit, limit), dtype)
    if dtype == _E8M0 and x.dtype != dtype:
        return _to_e8m0(cast(x, np.float32), saturate, round_mode)
    if dtype in _SMALL_INTEGERS and is_float:
        x = cast(x, np.int32)  # XLA would saturate; NumPy and onnxruntime wrap
    return cast(x, dtype)


def _to_e8m0(x: GraphValue, saturate: bool, round_mode: str) -> GraphValue:
    # The result is the exponent field of the float32, rounded by an addition to the mantissa.
    bits = _bitcast(x, np.dtype(np.uint32)) & np.uint32(0x7FFFFFFF)
    increment = {"up": 0x7FFFFF, "nearest": 0x400000, "down": 0}[round_mode]
    code = nx.minimum((bits + np.uint32(increment)) >> np.uint32(23), np.uint32(254 if saturate else 255))
    below_minimum = (bits < np.uint32(0x400000)) & (not saturate)
    return _bitcast(cast(nx.where(nx.isnan(x) | below_minimum, np.uint32(255), code), np.uint8), _E8M0)


def _convert_text(x: GraphValue, dtype: np.dtype) -> np.ndarray:
    if not is_static(x):
        raise ValueError(
            "a number that depends on data cannot become a string, since an XLA executable has no strings"
        )
    if x.dtype == dtype:
        return x
    read = _text if dtype.kind == "O" else _integer if np.issubdtype(dtype, np.integer) else float
    values = [read(item) for item in x.ravel().tolist()]
    return np.array(values, object if dtype.kind == "O" else None).astype(dtype).reshape(x.shape)


def _integer(item: str) -> int:
    return int(item) if item.strip().lstrip("+-").isdigit() else int(float(item))


def _text(item: Any) -> str:
    if isinstance(item, float):
        return (
            "NaN"
            if math.isnan(item)
            else ("INF" if item > 0 else "-INF")
            if math.isinf(item)
            else f"{item:.8g}"
        )
    return str(int(item))


@op("BitCast", since=26)
def bit_cast(input: GraphValue, *, to: int) -> GraphValue:
    """Read the bits as another element type of the same width.

    https://onnx.ai/onnx/operators/onnx__BitCast.html
    """
    return _bitcast(input, dtype_of(to))


def _bitcast(x: GraphValue, dtype: np.dtype) -> GraphValue:
    if is_static(x):
        return np.ascontiguousarray(x).view(dtype).reshape(x.shape)
    if dtype == np.bool_:
        return _bitcast(x, np.dtype(np.uint8)) != 0
    x = x.astype(np.uint8) if x.dtype == np.bool_ else x
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"BitCast to {dtype} needs 64-bit numbers, but this trace has only 32-bit ones: set "
            "jax_enable_x64"
        )
    return lax.bitcast_convert_type(x, dtype)


@op("IsInf", since=10)
def is_inf(x: GraphValue, *, detect_negative: int = 1, detect_positive: int = 1) -> GraphValue:
    """Whether elements are infinite, with a detected sign. https://onnx.ai/onnx/operators/onnx__IsInf.html"""
    if detect_negative and detect_positive:
        return nx.isinf(x)
    if not detect_negative and not detect_positive:
        return np.zeros(x.shape, np.bool_)
    return nx.isinf(x) & (x > 0 if detect_positive else x < 0)


@op("IsNaN", since=9)
def is_nan(x: GraphValue) -> GraphValue:
    """Whether elements are NaN. https://onnx.ai/onnx/operators/onnx__IsNaN.html"""
    return nx.isnan(x)
