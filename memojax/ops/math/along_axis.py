"""Operators along an axis: CumSum, CumProd, TopK, Softmax, LogSoftmax and Hardmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .._common import cast, flatten_to_2d, normalize_axis, nx, scalar, traced
from ..registry import op


@op("CumProd", since=26, static=("axis",))
def cumprod(x, axis, *, exclusive=0, reverse=0):
    """Cumulative product along `axis`. https://onnx.ai/onnx/operators/onnx__CumProd.html"""
    return _accumulate(nx.cumprod, 1, x, axis, exclusive, reverse)


@op("CumSum", since=11, static=("axis",))
def cumsum(x, axis, *, exclusive=0, reverse=0):
    """Cumulative sum along `axis`. https://onnx.ai/onnx/operators/onnx__CumSum.html"""
    return _accumulate(nx.cumsum, 0, x, axis, exclusive, reverse)


def _accumulate(function, neutral, x, axis, exclusive, reverse):
    axis = normalize_axis(scalar(axis), x.ndim)
    if reverse:
        x = nx.flip(x, axis)
    y = function(x, axis=axis, dtype=x.dtype)
    if exclusive:
        first = nx.full_like(y[(slice(None),) * axis + (slice(0, 1),)], neutral)
        y = nx.concatenate([first, y[(slice(None),) * axis + (slice(0, -1),)]], axis)
    return nx.flip(y, axis) if reverse else y


@op("Hardmax", until=13)
def hardmax_flattened(input, *, axis=1):
    """Hardmax over all axes from `axis` on. https://onnx.ai/onnx/operators/onnx__Hardmax.html"""
    return nx.reshape(hardmax(flatten_to_2d(input, axis)), input.shape)


@op("Hardmax", since=13)
def hardmax(input, *, axis=-1):
    """1 at the first greatest value along `axis`, 0 elsewhere.

    https://onnx.ai/onnx/operators/onnx__Hardmax.html
    """
    axis = normalize_axis(axis, input.ndim)
    positions = np.arange(input.shape[axis]).reshape((-1,) + (1,) * (input.ndim - axis - 1))
    return cast(nx.argmax(input, axis, keepdims=True) == positions, input.dtype)


@op("LogSoftmax", until=13)
def log_softmax_flattened(input, *, axis=1):
    """LogSoftmax over all axes from `axis` on. https://onnx.ai/onnx/operators/onnx__LogSoftmax.html"""
    return jax.nn.log_softmax(traced(input), tuple(range(normalize_axis(axis, input.ndim), input.ndim)))


@op("LogSoftmax", since=13)
def log_softmax(input, *, axis=-1):
    """Logarithm of softmax along `axis`. https://onnx.ai/onnx/operators/onnx__LogSoftmax.html"""
    return jax.nn.log_softmax(traced(input), normalize_axis(axis, input.ndim))


@op("Softmax", until=13)
def softmax_flattened(input, *, axis=1):
    """Softmax over all axes from `axis` on. https://onnx.ai/onnx/operators/onnx__Softmax.html"""
    return jax.nn.softmax(traced(input), tuple(range(normalize_axis(axis, input.ndim), input.ndim)))


@op("Softmax", since=13)
def softmax(input, *, axis=-1):
    """exp(x) over its sum along `axis`. https://onnx.ai/onnx/operators/onnx__Softmax.html"""
    return jax.nn.softmax(traced(input), normalize_axis(axis, input.ndim))


@op("TopK", until=10)
def top_k_by_attribute(X, *, k, axis=-1):
    """The `k` greatest along `axis`, and their positions. https://onnx.ai/onnx/operators/onnx__TopK.html"""
    return top_k(X, k, axis=axis)


@op("TopK", since=10, static=("K",))
def top_k(X, K, *, axis=-1, largest=1, sorted=1):
    """The `K` greatest or least along `axis`, in order, and their positions.

    https://onnx.ai/onnx/operators/onnx__TopK.html
    """
    axis, k = normalize_axis(axis, X.ndim), scalar(K)
    if not 0 <= k <= X.shape[axis]:
        raise ValueError(f"K is {k}, but axis {axis} has {X.shape[axis]} elements")
    x = jnp.moveaxis(traced(X), axis, -1)
    values, indices = jax.lax.top_k(x if largest else _reversed_order(x), k)
    values = values if largest else _reversed_order(values)
    return jnp.moveaxis(values, -1, axis), cast(jnp.moveaxis(indices, -1, axis), np.int64)


def _reversed_order(x):
    # -x of the least integer would overflow; ~x reverses the order of all.
    return ~x if jnp.issubdtype(x.dtype, jnp.integer) else -x
