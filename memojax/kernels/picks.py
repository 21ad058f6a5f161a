"""Gathers and scatters with known indices: a view where the indices advance evenly, else a few copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .assembler import Assembler
from .program import MOST_COPY_DIMENSIONS, merged_copy
from .values import Constant, Dim, Factor, Refused, Value, merged, refined

_MOST_COPIES = 64
"""Copies of one gather or scatter, above which XLA's own loop is as good."""

_DEPTH = 6
"""Most dimensions of a copy that are found in a list of indices."""


class Copied(NamedTuple):
    """Elements from `source` on that move to `target` on; `dims` are (size, step there, step here)."""

    source: int
    target: int
    dims: tuple[tuple[int, int, int], ...]


def gathered(
    memory: Assembler,
    x: Value,
    indices: np.ndarray | Constant,
    params: dict[str, Any],
    shape: Sequence[int],
) -> Value:
    """The elements of `x` at `indices`, which hold one vector of indices for each.

    Raises:
        Refused: the gather takes more than single elements of a dimension, or an index is out of bounds.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    indexed, dropped = list(numbers.start_index_map), set(map(int, numbers.collapsed_slice_dims))
    kept = [i for i in range(len(x.shape)) if i not in dropped]
    if (
        numbers.operand_batching_dims
        or any(sizes[i] != 1 for i in indexed)
        or any(sizes[i] != x.shape[i] for i in range(len(x.shape)) if i not in indexed)
    ):
        raise Refused("a gather of another kind")
    offsets = sorted(map(int, numbers.offset_dims))
    if isinstance(indices, Constant):
        axis = None if x.axis is None else offsets[kept.index(x.axis)] if x.axis in kept else -1
        _one_by_one(x, indexed, axis)
        x = memory.copied(x)
        out = memory.new(shape, axis)
        _pick(memory, x, indices, out, x, indexed, params["mode"])
        return out
    _check(x, indexed, indices)
    x = _even(memory, x, indexed)
    loose = [i for i in range(len(shape)) if i not in offsets]
    source = indices @ np.array([_step(x.dims[i]) for i in indexed], np.int64)
    # A dimension that is indexed and kept has one element, wherever that lies.
    one: Dim = (Factor(1, 0),)
    dims = {o: one if i in indexed else x.dims[i] for o, i in zip(offsets, kept, strict=True)}
    axis = None if x.axis is None else offsets[kept.index(x.axis)]
    steps = _evenly(source)
    if steps is not None:
        dims |= {o: (Factor(size, step),) for o, size, step in zip(loose, source.shape, steps, strict=True)}
        first = int(source.reshape(-1)[0])
        return replace(
            x,
            shape=tuple(shape),
            axis=axis,
            dims=tuple(dims[i] for i in range(len(shape))),
            offset=x.offset + first,
        )
    out = memory.new(shape, axis)
    target = _positions(source.shape, [_step(out.dims[i]) for i in loose])
    rest = [part for o, dim in dims.items() for part in refined([dim, out.dims[o]])]
    _move(memory, x, out, rest, copies(source.reshape(-1), target))
    return out


def scattered(
    memory: Assembler, x: Value, indices: np.ndarray | Constant, updates: Value, params: dict[str, Any]
) -> Value:
    """`x` with `updates` in the place of the elements at `indices`.

    Raises:
        Refused: the scatter writes more than single elements of a dimension, or twice to one place, or an
            index is out of bounds.
    """
    numbers = params["dimension_numbers"]
    indexed = list(numbers.scatter_dims_to_operand_dims)
    kept = [i for i in range(len(x.shape)) if i not in indexed]
    windows = sorted(map(int, numbers.update_window_dims))
    if (
        numbers.operand_batching_dims
        or sorted(map(int, numbers.inserted_window_dims)) != sorted(indexed)
        or [updates.shape[i] for i in windows] != [x.shape[i] for i in kept]
    ):
        raise Refused("a scatter of another kind")
    if x.axis != (
        None if updates.axis is None or updates.axis not in windows else kept[windows.index(updates.axis)]
    ):
        raise Refused("a scatter into other blocks")
    if isinstance(indices, Constant):
        _one_by_one(x, indexed, x.axis)
        out, updates = memory.copied(x), memory.copied(updates)
        _pick(memory, updates, indices, out, out, indexed, params["mode"], scatters=True)
        return out
    _check(x, indexed, indices)
    loose = [i for i in range(len(updates.shape)) if i not in windows]
    updates = _even(memory, updates, loose)
    out = memory.copied(x)
    target = (indices @ np.array([_step(out.dims[i]) for i in indexed], np.int64)).reshape(-1)
    if len(np.unique(target)) != target.size:
        raise Refused("a scatter that writes twice to one place")
    source = _positions([updates.shape[i] for i in loose], [_step(updates.dims[i]) for i in loose])
    rest = [
        part for w, i in zip(windows, kept, strict=True) for part in refined([updates.dims[w], out.dims[i]])
    ]
    _move(memory, updates, out, rest, copies(source, target))
    return out


def turned(memory: Assembler, x: Value, dimensions: Sequence[int]) -> Value:
    """`x` with the elements of `dimensions` in the opposite order.

    Raises:
        Refused: the blocks lie in one of them.
    """
    if x.axis in dimensions:
        raise Refused("blocks in the opposite order")
    x = _even(memory, x, dimensions)
    out = memory.new(x.shape, x.axis)
    rest = [p for i, dim in enumerate(x.dims) if i not in dimensions for p in refined([dim, out.dims[i]])]
    back = [(x.shape[i], -_step(x.dims[i]), _step(out.dims[i])) for i in dimensions]
    last = sum(-step * (size - 1) for size, step, _ in back)
    _move(memory, x, out, rest, [Copied(last, 0, tuple(back))])
    return out


def _one_by_one(x: Value, indexed: Sequence[int], axis: int | None) -> None:
    """Check that each index is for one element of a block."""
    rest = math.prod(size for i, size in enumerate(x.per_block()) if i not in indexed)
    if rest != 1 or x.axis in indexed or axis == -1:
        raise Refused("indices among weights, of more than single elements")


def _pick(
    memory: Assembler,
    x: Value,
    indices: Constant,
    out: Value,
    within: Value,
    indexed: Sequence[int],
    mode: Any,
    scatters: bool = False,
) -> None:
    """Add moves at indices among weights: a change of the weights changes them, too."""
    # XLA drops an update out of bounds, and moves the index of a gather into them.
    mode = "fill" if mode is None else str(getattr(mode, "name", mode)).lower()
    if not scatters and "fill" in mode:
        raise Refused("a gather that fills")
    clips = "clip" in mode or not scatters
    sizes, steps = tuple(within.shape[i] for i in indexed), tuple(_step(within.dims[i]) for i in indexed)
    places = memory.weight(indices.source, indices.then(("places", sizes, steps, clips)), 0)
    memory.emit(
        "pick",
        [x, out],
        x=x.place,
        places=places,
        y=out.place,
        count=math.prod(indices.shape[:-1]),
        blocks=(x.block, out.block),
        scatters=scatters,
    )


def _check(x: Value, indexed: Sequence[int], indices: np.ndarray) -> None:
    limits = [x.shape[i] for i in indexed]
    if not indices.size or x.axis in indexed or indices.min() < 0 or (indices >= limits).any():
        raise Refused("a gather or scatter of blocks, or out of bounds")


def _even(memory: Assembler, x: Value, dims: Sequence[int]) -> Value:
    """`x`, or a copy of it, with all elements of each of `dims` at the same distance."""
    return x if all(len(merged(x.dims[i])) <= 1 for i in dims) else memory.copied(x)


def _step(dim: Dim) -> int:
    parts = merged(dim)
    return parts[0].stride if parts else 0


def _positions(sizes: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """Places of the elements of an array, in row-major order."""
    found = np.zeros(1, np.int64)
    for size, step in zip(sizes, steps, strict=True):
        found = (found[:, None] + np.arange(size) * step).reshape(-1)
    return found


def _evenly(places: np.ndarray) -> list[int] | None:
    """The step of each dimension, if the places advance by equal steps, none of them back; else None."""
    flat = places.reshape(-1)
    strides = [int(np.prod(places.shape[i + 1 :])) for i in range(places.ndim)]
    steps = [
        int(flat[stride] - flat[0]) if size > 1 else 0
        for size, stride in zip(places.shape, strides, strict=True)
    ]
    if any(step < 0 for step in steps):
        return None
    return steps if np.array_equal(_positions(places.shape, steps) + flat[0], flat) else None


def copies(source: np.ndarray, target: np.ndarray) -> list[Copied]:
    """Moves of single elements as strided copies."""
    found = [Copied(int(source[0]), int(target[0]), ())] if source.size == 1 else _runs(source, target)
    for _ in range(_DEPTH - 1):
        joined = _joined(found)
        if len(joined) == len(found):
            break
        found = joined
    return found


def _runs(source: np.ndarray, target: np.ndarray) -> list[Copied]:
    """The same, as runs of equal steps."""
    steps = np.stack([np.diff(source), np.diff(target)], 1)
    changes = np.flatnonzero((steps[1:] != steps[:-1]).any(1)) + 1
    ends = [*changes.tolist(), source.size - 1]
    found, start, at = [], 0, 0
    while start < source.size:
        while at < len(ends) and ends[at] <= start:
            at += 1
        end = ends[at] if at < len(ends) else start
        if end - start == 1 and at + 1 < len(ends) and ends[at + 1] - end > 1:
            end = start  # The next element belongs to the longer run behind it.
        count = end - start + 1
        dims = ((count, int(steps[start, 0]), int(steps[start, 1])),) if count > 1 else ()
        found.append(Copied(int(source[start]), int(target[start]), dims))
        if len(found) > _MOST_COPIES**2:
            raise Refused("indices in no order")
        start = end + 1
    return found


def _joined(parts: Sequence[Copied]) -> list[Copied]:
    """Equal copies at equal distances as one of more dimensions."""
    found, at = [], 0
    while at < len(parts):
        first, end = parts[at], at + 1
        if end < len(parts) and parts[end].dims == first.dims:
            apart = parts[end].source - first.source, parts[end].target - first.target
            while (
                end < len(parts)
                and parts[end].dims == first.dims
                and (parts[end].source - parts[end - 1].source, parts[end].target - parts[end - 1].target)
                == apart
            ):
                end += 1
            found.append(Copied(first.source, first.target, ((end - at, *apart), *first.dims)))
        else:
            found.append(first)
        at = end
    return found


def _move(
    memory: Assembler, x: Value, out: Value, rest: Sequence[tuple[int, ...]], parts: Sequence[Copied]
) -> None:
    if len(parts) > _MOST_COPIES:
        raise Refused("indices in no order")
    for part in parts:
        dims: list[Any] = sorted([*rest, *part.dims], key=lambda dim: -abs(dim[2]))
        dims = merged_copy(dims)
        if len(dims) > MOST_COPY_DIMENSIONS:
            raise Refused("a copy of too many dimensions")
        memory.emit(
            "copy",
            [x, out],
            x=replace(x, offset=x.offset + part.source).place,
            y=replace(out, offset=out.offset + part.target).place,
            blocks=(x.block, out.block),
            dims=dims,
        )
