"""Gather, scatter, slices and other indexing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._types import GraphValue, Shape
from .._common import cast, checked_shape, ints, is_static, normalize_axes, normalize_axis, nx, scalar, traced
from ..registry import op

InRange = Callable[..., bool]
"""(position of an input, least value, greatest value) -> whether the input is known to lie between them."""


@op("Slice", until=10)
def slice_attribute(
    data: GraphValue, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None
) -> GraphValue:
    """Before opset 10 the bounds are attributes. https://onnx.ai/onnx/operators/onnx__Slice.html"""
    return _slice(data, starts, ends, axes, None)


@op("Slice", since=10, static=("starts", "ends", "axes", "steps"))
def slice_input(
    data: GraphValue, starts: GraphValue, ends: GraphValue, axes: GraphValue = None, steps: GraphValue = None
) -> GraphValue:
    """Ranges along some axes; negative and too large bounds mean the same as in NumPy.

    https://onnx.ai/onnx/operators/onnx__Slice.html
    """
    return _slice(
        data,
        ints(starts),
        ints(ends),
        None if axes is None else ints(axes),
        None if steps is None else ints(steps),
    )


def _slice(
    data: GraphValue, starts: Shape, ends: Shape, axes: Shape | None, steps: Shape | None
) -> GraphValue:
    axes = tuple(range(len(starts))) if axes is None else normalize_axes(axes, data.ndim)
    slices = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or (1,) * len(axes), strict=True):
        slices[axis] = slice(start, end, step)
    if is_static(data):
        return data[tuple(slices)]
    return take_ranges(
        data,
        [
            None if part == slice(None) else range(dim)[part]
            for dim, part in zip(data.shape, slices, strict=True)
        ],
    )


def take_ranges(x: jax.Array, ranges: Sequence[range | None]) -> jax.Array:
    """A range of `x` along each axis (None: the whole axis): a slice, then a reversal for negative steps."""
    backward = tuple(
        axis for axis, part in enumerate(ranges) if part is not None and part.step < 0 and len(part) > 1
    )
    forward = [part[::-1] if part is not None and part.step < 0 else part for part in ranges]
    if any(part is not None and part != range(dim) for part, dim in zip(forward, x.shape, strict=True)):
        bounds = [
            (0, dim, 1) if part is None else (part.start, part[-1] + 1, part.step) if part else (0, 0, 1)
            for part, dim in zip(forward, x.shape, strict=True)
        ]
        x = lax.slice(x, *zip(*bounds, strict=True))
    return lax.rev(x, backward) if backward else x


# An index that depends on data may be out of range. Clamped, it would point at another entry, a plausible
# wrong answer. Instead it gives JAX's fill value: NaN, the least number of a signed dtype, or the greatest
# number of an unsigned one. ONNX Runtime raises an error, which an executable cannot do.


@op("Gather")
def gather(data: GraphValue, indices: GraphValue, *, axis: int = 0, in_range: InRange) -> GraphValue:
    """Entries along `axis`; a slice if the indices are a known range.

    https://onnx.ai/onnx/operators/onnx__Gather.html
    """
    axis = normalize_axis(axis, data.ndim)
    if is_static(data, indices):
        return np.take(data, indices, axis=axis)
    if is_static(indices):
        return take_static(data, indices, axis)
    return take_by_data(data, indices, axis, functools.partial(in_range, 1))


def take_by_data(data: GraphValue, indices: GraphValue, axis: int, known: Callable[..., bool]) -> jax.Array:
    """`jnp.take` with indices that depend on data; `known` tells whether they lie between two bounds."""
    length = data.shape[axis]
    if not known(-length, length - 1):
        return jnp.take(traced(data), indices, axis=axis, mode="fill")
    if not known(0, length - 1, checked=False):
        indices = nx.where(indices < 0, indices + np.array(length, indices.dtype), indices)
    return jnp.take(traced(data), indices, axis=axis, mode="clip")


def take_static(data: jax.Array, indices: np.ndarray, axis: int) -> jax.Array:
    """`jnp.take` with known indices; a slice if they are a range."""
    length = data.shape[axis]
    flat = np.asarray(indices, np.int64).ravel()
    _check_known(flat, length, axis)
    flat = np.where(flat < 0, flat + length, flat)
    step = int(flat[1] - flat[0]) if flat.size > 1 else 1
    if flat.size and step and np.all(np.diff(flat) == step):
        ranges: list[range | None] = [None] * data.ndim
        ranges[axis] = range(int(flat[0]), int(flat[-1]) + (1 if step > 0 else -1), step)
        return jnp.reshape(
            take_ranges(data, ranges), data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
        )
    return jnp.take(data, flat.astype(np.int32).reshape(indices.shape), axis=axis, mode="clip")


@op("GatherElements", since=11)
def gather_elements(data: GraphValue, indices: GraphValue, *, axis: int = 0, in_range: InRange) -> GraphValue:
    """An element of `data` for each index, along `axis`.

    https://onnx.ai/onnx/operators/onnx__GatherElements.html
    """
    axis = normalize_axis(axis, data.ndim)
    if data.shape != indices.shape:
        data = data[tuple(slice(None) if i == axis else slice(dim) for i, dim in enumerate(indices.shape))]
    length = data.shape[axis]
    _check_known(indices, length, axis)
    return _take_along(data, indices, axis, "clip" if in_range(1, -length, length - 1) else "fill")


def _take_along(data: GraphValue, indices: GraphValue, axis: int, mode: Any = "clip") -> GraphValue:
    if is_static(data, indices):
        return np.take_along_axis(data, indices, axis=axis)
    return jnp.take_along_axis(traced(data), traced(indices), axis=axis, mode=mode)


@op("GatherND", since=11)
def gather_nd(data: GraphValue, indices: GraphValue, *, batch_dims: int = 0, in_range: InRange) -> GraphValue:
    """Slices of `data` at index tuples; the first `batch_dims` axes of data and indices go together.

    https://onnx.ai/onnx/operators/onnx__GatherND.html
    """
    rank = indices.ndim - 1
    batch = [
        np.arange(data.shape[i]).reshape([-1 if j == i else 1 for j in range(rank)])
        for i in range(batch_dims)
    ]
    columns = [indices[..., i] for i in range(indices.shape[-1])]
    where = (*batch, *columns)
    if is_static(data, indices):
        return data[where]
    lengths = np.array(data.shape[batch_dims : len(where)])
    for offset, (column, length) in enumerate(zip(columns, lengths, strict=True)):
        _check_known(column, int(length), batch_dims + offset)
    known = not columns or in_range(1, -lengths, lengths - 1)
    return traced(data).at[where].get(mode="clip" if known else "fill")


def _check_known(indices: GraphValue, length: int, axis: int) -> None:
    """Check that indices are in range, if they are known while tracing.

    Raises:
        ValueError: an index is out of range.
    """
    if is_static(indices) and np.any(wrong := (indices < -length) | (indices >= length)):
        raise ValueError(
            f"index {np.asarray(indices)[wrong][0]} is out of range for the {length} entries of axis {axis}"
        )


@op("Where", since=9)
def where(condition: GraphValue, x: GraphValue, y: GraphValue) -> GraphValue:
    """`x` where the condition holds, else `y`. https://onnx.ai/onnx/operators/onnx__Where.html"""
    return nx.where(condition, x, y)


@op("ScatterND", since=11)
def scatter_nd(
    data: GraphValue, indices: GraphValue, updates: GraphValue, *, reduction: str = "none"
) -> GraphValue:
    """`data` with slices at index tuples replaced, or combined with `updates` by `reduction`.

    https://onnx.ai/onnx/operators/onnx__ScatterND.html
    """
    return _scatter(data, tuple(indices[..., i] for i in range(indices.shape[-1])), updates, reduction)


@op("Scatter", since=9, until=11)
@op("ScatterElements", since=11)
def scatter_elements(
    data: GraphValue, indices: GraphValue, updates: GraphValue, *, axis: int = 0, reduction: str = "none"
) -> GraphValue:
    """`data` with elements along `axis` replaced, or combined with `updates` by `reduction`.

    https://onnx.ai/onnx/operators/onnx__ScatterElements.html
    """
    where: list[Any] = list(np.indices(indices.shape, sparse=True))
    where[normalize_axis(axis, data.ndim)] = indices
    return _scatter(data, tuple(where), updates, reduction)


def _scatter(
    data: GraphValue, where: tuple[GraphValue, ...], updates: GraphValue, reduction: str
) -> jax.Array:
    data, updates = traced(data), traced(updates)
    if reduction == "none" and is_static(where):
        return _put(data, where, updates)
    at = data.at[where]
    match reduction:
        case "none":
            return at.set(updates)
        case "add":
            return at.add(updates)
        case "mul":
            return at.multiply(updates)
        case "min":
            return at.min(updates)
        case "max":
            return at.max(updates)
        case _:
            raise ValueError(f"reduction is {reduction!r}, expected none, add, mul, min or max")


def _put(data: jax.Array, where: tuple[np.ndarray, ...], updates: jax.Array) -> jax.Array:
    # XLA:CPU runs a scatter as a loop over the indices. Known indices turn it into a select, in which the
    # last of repeated indices wins.
    if not updates.size:
        return data
    source, row = np.full(data.shape[: len(where)], -1), data.shape[len(where) :]
    places = np.broadcast_shapes(*(part.shape for part in where))
    source[where] = np.arange(math.prod(places)).reshape(places)
    new = take_static(jnp.reshape(updates, (-1, *row)), np.maximum(source, 0), 0)
    return (
        jnp.where((source >= 0).reshape(source.shape + (1,) * len(row)), new, data)
        if source.min() < 0
        else new
    )


@op("TensorScatter", since=24)
def tensor_scatter(
    past_cache: GraphValue,
    update: GraphValue,
    write_indices: GraphValue = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> GraphValue:
    """A cache, with each row's new entries written at the row's index.

    https://onnx.ai/onnx/operators/onnx__TensorScatter.html
    """
    axis = normalize_axis(axis, past_cache.ndim)
    length, written = past_cache.shape[axis], update.shape[axis]
    column = [-1 if i == axis else 1 for i in range(past_cache.ndim)]
    offset = np.arange(length).reshape(column)
    if write_indices is not None:
        offset = offset - nx.reshape(cast(write_indices, np.int64), [-1] + [1] * (past_cache.ndim - 1))
    if mode == "circular":
        offset = offset % length
    new = _take_along(update, nx.clip(offset, 0, written - 1), axis)
    return nx.where((offset >= 0) & (offset < written), new, past_cache)


@op("OneHot", since=9, static=("depth",))
def one_hot(indices: GraphValue, depth: GraphValue, values: GraphValue, *, axis: int = -1) -> GraphValue:
    """`values[1]` at each index along a new axis, `values[0]` elsewhere.

    https://onnx.ai/onnx/operators/onnx__OneHot.html
    """
    rank, count = indices.ndim + 1, int(scalar(depth))
    axis = normalize_axis(axis, rank)
    checked_shape((*indices.shape, count))
    classes = np.arange(count).reshape([-1 if i == axis else 1 for i in range(rank)])
    position = nx.expand_dims(cast(indices, np.int64), axis)
    off, on = nx.split(values, 2)
    return nx.where(nx.where(position < 0, position + count, position) == classes, on, off)


@op("Trilu", since=14)
def trilu(input: GraphValue, k: GraphValue = None, *, upper: int = 1) -> GraphValue:
    """The upper or lower triangle of matrices, from diagonal `k` on.

    https://onnx.ai/onnx/operators/onnx__Trilu.html
    """
    diagonal = 0 if k is None else nx.reshape(k, ())
    rows, columns = np.indices(input.shape[-2:], sparse=True)
    keep = columns - rows >= diagonal if upper else columns - rows <= diagonal
    return nx.where(keep, input, np.zeros((), input.dtype))


@op("ReverseSequence", since=10)
def reverse_sequence(
    input: GraphValue, sequence_lens: GraphValue, *, batch_axis: int = 1, time_axis: int = 0
) -> GraphValue:
    """Each row's first `sequence_lens` steps reversed.

    https://onnx.ai/onnx/operators/onnx__ReverseSequence.html
    """
    batch_axis, time_axis = normalize_axes((batch_axis, time_axis), input.ndim)
    step = np.arange(input.shape[time_axis]).reshape([-1 if i == time_axis else 1 for i in range(input.ndim)])
    length = nx.reshape(
        cast(sequence_lens, np.int64), [-1 if i == batch_axis else 1 for i in range(input.ndim)]
    )
    return _take_along(input, nx.where(step < length, length - 1 - step, step), time_axis)


# The shapes of the outputs of NonZero, Unique and Compress depend on data, so NumPy computes them, while
# tracing or between compiled parts.


@op("NonZero", since=9, host=("x",))
def nonzero(x: GraphValue) -> GraphValue:
    """Indices of the elements that are not zero. https://onnx.ai/onnx/operators/onnx__NonZero.html"""
    return np.array(np.nonzero(np.atleast_1d(x)), np.int64)[: x.ndim]


@op("Compress", since=9, host=("condition",))
def compress(input: GraphValue, condition: GraphValue, *, axis: int | None = None) -> GraphValue:
    """Slices, or elements without `axis`, where the condition holds.

    https://onnx.ai/onnx/operators/onnx__Compress.html
    """
    source = nx.reshape(input, (-1,)) if axis is None else input
    where = np.flatnonzero(condition)
    # A condition may be longer than the axis; its surplus entries count for nothing.
    return nx.take(source, where[where < source.shape[axis or 0]], axis=axis or 0)


@op("Unique", since=11, host=("x",))
def unique(x: GraphValue, *, axis: int | None = None, sorted: int = 1) -> GraphValue:
    """Distinct elements or slices. https://onnx.ai/onnx/operators/onnx__Unique.html"""
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    order = np.arange(len(first)) if sorted else np.argsort(first)
    rank_of = np.argsort(order)
    values = np.take(values, order, axis=axis or 0)
    return (
        values,
        first[order].astype(np.int64),
        rank_of[inverse.ravel()].astype(np.int64),
        counts[order].astype(np.int64),
    )
