"""Elementwise math; operators without attributes are rows of tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common import cast, checked_shape, ints, is_static, nx, scalar, traced
from ..registry import elementwise, op

_MAX_UNROLLED_POWER = 16


def divide(a: Any, b: Any) -> Any:
    """The quotient, truncated toward zero for integers. https://onnx.ai/onnx/operators/onnx__Div.html"""
    if not np.issubdtype(a.dtype, np.integer):
        return nx.divide(a, b)
    if is_static(a, b):
        return nx.floor_divide(a - np.fmod(a, b), b)
    return jax.lax.div(*jnp.broadcast_arrays(a, b))


def power(x: Any, y: Any) -> Any:
    """`x` to the power `y`, in the dtype of `x`. https://onnx.ai/onnx/operators/onnx__Pow.html"""
    if is_static(y) and y.size == 1 and y.ndim <= x.ndim:
        exponent = scalar(y)
        if float(exponent).is_integer() and 0 <= exponent <= _MAX_UNROLLED_POWER:
            return x ** int(exponent)
    if not np.issubdtype(x.dtype, np.integer):
        return nx.power(x, cast(y, x.dtype))
    if not np.issubdtype(y.dtype, np.integer):
        return cast(nx.power(cast(x, np.float64), cast(y, np.float64)), x.dtype)
    y = cast(y, x.dtype)
    result = nx.power(x, nx.abs(y))
    return nx.where(y < 0, divide(nx.ones_like(result), result), result)


def before_7(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A binary operator before opset 7; `broadcast` aligns `B` with `axis`, or the last axes, of `A`."""

    def legacy(A: Any, B: Any, *, axis: int | None = None, broadcast: int = 0) -> Any:
        if broadcast and axis is not None:
            B = nx.reshape(B, B.shape + (1,) * (A.ndim - axis % A.ndim - B.ndim))
        return function(A, B)

    return legacy


def _mean(*inputs: Any) -> Any:
    return functools.reduce(nx.add, inputs) / len(inputs)


def _erf(x: Any) -> Any:
    return cast(
        jax.lax.erf(traced(x if jnp.issubdtype(x.dtype, jnp.floating) else cast(x, np.float32))), x.dtype
    )


elementwise(
    {
        "Abs": nx.abs,
        "Ceil": nx.ceil,
        "Exp": nx.exp,
        "Floor": nx.floor,
        "Log": nx.log,
        "Neg": nx.negative,
        "Reciprocal": lambda x: 1 / x,
        "Sqrt": nx.sqrt,
        "Max": lambda *inputs: functools.reduce(nx.maximum, inputs),
        "Mean": _mean,
        "Min": lambda *inputs: functools.reduce(nx.minimum, inputs),
        "Sum": lambda *inputs: functools.reduce(nx.add, inputs),
    }
)
elementwise(
    {
        "Acos": nx.arccos,
        "Asin": nx.arcsin,
        "Atan": nx.arctan,
        "Cos": nx.cos,
        "Sin": nx.sin,
        "Tan": nx.tan,
    },
    since=7,
)
elementwise(
    {
        "Acosh": nx.arccosh,
        "Asinh": nx.arcsinh,
        "Atanh": nx.arctanh,
        "Cosh": nx.cosh,
        "Erf": _erf,
        "Sign": nx.sign,
        "Sinh": nx.sinh,
    },
    since=9,
)
elementwise({"Round": nx.rint}, since=11)

_ARITHMETIC = {"Add": nx.add, "Div": divide, "Mul": nx.multiply, "Pow": power, "Sub": nx.subtract}
elementwise(_ARITHMETIC, since=7)
for _op_type, _function in _ARITHMETIC.items():
    op(_op_type, until=7)(before_7(_function))


@op("Clip", until=11)
def clip_to_attributes(input, *, min=-3.4028234663852886e38, max=3.4028234663852886e38):
    """Before opset 11 the bounds are attributes. https://onnx.ai/onnx/operators/onnx__Clip.html"""
    return nx.minimum(nx.maximum(input, min), max)


@op("Clip", since=11)
def clip(input, min=None, max=None):
    """Values limited to the scalars `min` and `max`; `max` wins if they contradict each other.

    Without a bound, infinities pass, as in ONNX's function body. ONNX's text and ONNX Runtime limit them to
    finite values.

    https://onnx.ai/onnx/operators/onnx__Clip.html
    """
    if min is not None:
        input = nx.maximum(input, nx.reshape(min, ()))
    return input if max is None else nx.minimum(input, nx.reshape(max, ()))


@op("Expand", since=8, static=("shape",))
def expand(input, shape):
    """`input` and `shape` broadcast to one another. https://onnx.ai/onnx/operators/onnx__Expand.html"""
    return nx.broadcast_to(input, checked_shape(np.broadcast_shapes(input.shape, ints(shape))))


@op("Mod", since=10)
def mod(A, B, *, fmod=0):
    """Remainder with the sign of `B`, or with that of `A` if `fmod`.

    https://onnx.ai/onnx/operators/onnx__Mod.html
    """
    return nx.fmod(A, B) if fmod else nx.mod(A, B)
