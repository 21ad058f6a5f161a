"""Operators that generate tensors: constants, ranges, random numbers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from .._types import GraphValue, Shape
from ..model.tensor import dtype_of
from ._common import cast, checked_shape, ints, scalar, traced
from .registry import op


@op("Constant")
def constant(
    *,
    value: GraphValue = None,
    sparse_value: GraphValue = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> GraphValue:
    """The value of the given attribute; a sparse tensor becomes dense.

    https://onnx.ai/onnx/operators/onnx__Constant.html
    """
    if value is not None or sparse_value is not None:
        return value if value is not None else sparse_value
    for given, dtype in (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
    ):
        if given is not None:
            return np.array(given, dtype)
    return np.array(value_string if value_string is not None else value_strings, object)


@op("ConstantOfShape", since=9, static=("input",))
def constant_of_shape(input: GraphValue, *, value: GraphValue = None) -> GraphValue:
    """A tensor of the given shape, filled with one value, by default a float32 zero.

    https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html
    """
    fill = np.zeros(1, np.float32) if value is None else value
    return np.broadcast_to(fill.reshape(()), checked_shape(ints(input), fill.itemsize)).copy()


@op("EyeLike", since=9, shape_only=True)
def eye_like(input: GraphValue, *, dtype: int | None = None, k: int = 0) -> GraphValue:
    """Ones on diagonal `k` of a matrix as large as the input.

    https://onnx.ai/onnx/operators/onnx__EyeLike.html
    """
    wanted = input.dtype if dtype is None else dtype_of(dtype)
    rows, columns = checked_shape(input.shape, 1 + wanted.itemsize)
    return cast(np.eye(rows, columns, k, bool), wanted)


@op("Range", since=11, static=("start", "limit", "delta"))
def range_(start: GraphValue, limit: GraphValue, delta: GraphValue, *, stash_type: int = 1) -> GraphValue:
    """Numbers from `start` to before `limit` in steps of `delta`.

    https://onnx.ai/onnx/operators/onnx__Range.html
    """
    first, last, step = map(scalar, (start, limit, delta))
    (count,) = checked_shape([max(math.ceil((last - first) / step), 0)], 24)
    is_half = start.dtype.itemsize == 2 and not np.issubdtype(start.dtype, np.integer)
    dtype = dtype_of(stash_type) if is_half else start.dtype
    return (
        cast(np.arange(count), dtype) * cast(delta, dtype).reshape(()) + cast(start, dtype).reshape(())
    ).astype(start.dtype)


@op("RandomNormal")
def random_normal(
    *,
    shape: Shape,
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    key: jax.Array,
) -> GraphValue:
    """Normally distributed numbers. https://onnx.ai/onnx/operators/onnx__RandomNormal.html"""
    return _normal(_seeded(key, seed), shape, dtype_of(dtype), mean, scale)


@op("RandomNormalLike", shape_only=True)
def random_normal_like(
    input: GraphValue,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    key: jax.Array,
) -> GraphValue:
    """Normally distributed numbers in the shape of the input.

    https://onnx.ai/onnx/operators/onnx__RandomNormalLike.html
    """
    return _normal(
        _seeded(key, seed), input.shape, input.dtype if dtype is None else dtype_of(dtype), mean, scale
    )


@op("RandomUniform")
def random_uniform(
    *,
    shape: Shape,
    dtype: int = 1,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    key: jax.Array,
) -> GraphValue:
    """Uniformly distributed numbers. https://onnx.ai/onnx/operators/onnx__RandomUniform.html"""
    return _uniform(_seeded(key, seed), shape, dtype_of(dtype), low, high)


@op("RandomUniformLike", shape_only=True)
def random_uniform_like(
    input: GraphValue,
    *,
    dtype: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    key: jax.Array,
) -> GraphValue:
    """Uniformly distributed numbers in the shape of the input.

    https://onnx.ai/onnx/operators/onnx__RandomUniformLike.html
    """
    return _uniform(
        _seeded(key, seed), input.shape, input.dtype if dtype is None else dtype_of(dtype), low, high
    )


@op("Bernoulli", since=15)
def bernoulli(
    input: GraphValue, *, dtype: int | None = None, seed: float | None = None, key: jax.Array
) -> GraphValue:
    """1 with the probability in the input, else 0.

    https://onnx.ai/onnx/operators/onnx__Bernoulli.html
    """
    drawn = jax.random.bernoulli(_seeded(key, seed), traced(input), input.shape)
    return cast(drawn, input.dtype if dtype is None else dtype_of(dtype))


@op("Multinomial", since=7)
def multinomial(
    input: GraphValue, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None, key: jax.Array
) -> GraphValue:
    """Classes drawn by unnormalized log-probabilities, `sample_size` for each row.

    https://onnx.ai/onnx/operators/onnx__Multinomial.html
    """
    rows, classes = input.shape
    logits = jnp.broadcast_to(traced(input)[:, None], checked_shape((rows, sample_size, classes)))
    return cast(jax.random.categorical(_seeded(key, seed), logits), dtype_of(dtype))


def _normal(key: jax.Array, shape: Shape, dtype: np.dtype, mean: float, scale: float) -> jax.Array:
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.random.normal(key, checked_shape(shape), dtype) * np.array(scale, dtype) + np.array(
        mean, dtype
    )


def _uniform(key: jax.Array, shape: Shape, dtype: np.dtype, low: float, high: float) -> jax.Array:
    return jax.random.uniform(key, checked_shape(shape), jax.dtypes.canonicalize_dtype(dtype), low, high)


def _seeded(key: jax.Array, seed: float | None) -> jax.Array:
    return key if seed is None else jax.random.fold_in(key, int(np.float32(seed).view(np.uint32)))
