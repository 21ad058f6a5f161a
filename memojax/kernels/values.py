"""Values inside a program, with the place of each element, so that most moves of arrays need no copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .packing import pack_matrix, pack_vector
from .program import ARENA, Place


class Refused(Exception):
    """A step cannot be part of a program; `steps` are the ones at fault, if not the current one."""

    steps: tuple[int, ...] = ()


class Factor(NamedTuple):
    """A part of a dimension: `size` elements, `stride` floats apart."""

    size: int
    stride: int


Dim = tuple[Factor, ...]


@dataclass(frozen=True)
class Value:
    """An array of float32 in memory, divided into blocks.

    Attributes:
        shape: shape of the whole array.
        axis: the dimension whose outermost part is the blocks; None if there is one block.
        block: floats from block to block.
        dims: parts of each dimension of one block, from the outermost to the innermost.
        buffer: argument or result of the program, or `ARENA`.
        offset: floats before the first element; in the arena, from the beginning of `slot`.
        slot: number of the allocation in the arena.
    """

    shape: tuple[int, ...]
    axis: int | None
    block: int
    dims: tuple[Dim, ...]
    buffer: int
    offset: int = 0
    slot: int = -1

    @property
    def place(self) -> Place:
        """The words for a step; the offset of an arena slot is filled in at the end."""
        return (
            Place(ARENA, self.slot, self.offset)
            if self.buffer == ARENA
            else Place(self.buffer, self.offset, self.block)
        )

    @property
    def size(self) -> int:
        """Number of elements of one block."""
        return math.prod(factor.size for dim in self.dims for factor in dim)

    def per_block(self) -> tuple[int, ...]:
        """Sizes of one block's dimensions."""
        return tuple(math.prod(factor.size for factor in dim) for dim in self.dims)

    def transposed(self, order: Sequence[int]) -> Value:
        """The same elements with the dimensions in another order."""
        axis = None if self.axis is None else list(order).index(self.axis)
        return replace(
            self,
            shape=tuple(self.shape[i] for i in order),
            dims=tuple(self.dims[i] for i in order),
            axis=axis,
        )

    def reshaped(self, shape: Sequence[int], blocks: int) -> Value | None:
        """The same elements in another shape; None if they lie too far apart.

        Raises:
            Refused: a block would fall apart.
        """
        axis = None
        if self.axis is not None:
            # As many elements as before lie before the dimension whose outermost part is the blocks.
            before = [math.prod(shape[:i]) for i in range(len(shape))]
            first = math.prod(self.shape[: self.axis])
            places = [i for i, size in enumerate(shape) if before[i] == first and size != 1]
            axis = places[0] if places else 0
            if before[axis] != first or shape[axis] % blocks:
                raise Refused("a reshape across blocks")
        wanted = [size // blocks if i == axis else size for i, size in enumerate(shape)]
        parts = [factor for dim in self.dims for factor in dim]
        dims = _dealt(parts, wanted) or _dealt(merged(parts), wanted)
        return None if dims is None else replace(self, shape=tuple(shape), axis=axis, dims=dims)

    def sliced(self, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> Value | None:
        """A part of each dimension except the blocks'; None if that would cut a dimension's parts."""
        dims, shape, offset = list(self.dims), list(self.shape), self.offset
        for i, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True)):
            size = -(-(limit - start) // stride)
            if size == self.shape[i] and stride == 1:
                continue
            if i == self.axis:
                raise Refused("a slice of blocks")
            dim = merged(self.dims[i])
            if len(dim) > 1:
                return None
            step = dim[0].stride if dim else 0
            dims[i], shape[i] = (Factor(size, step * stride),), size
            offset += start * step
        return replace(self, shape=tuple(shape), dims=tuple(dims), offset=offset)


def _dealt(factors: Sequence[Factor], sizes: Sequence[int]) -> tuple[Dim, ...] | None:
    """Parts of an array as dimensions of other sizes; None where a dimension would have to cut a part
    unevenly."""
    parts = [factor for factor in factors if factor.size != 1]
    dims: list[Dim] = []
    for size in reversed(sizes):
        taken: list[Factor] = []
        while size > 1:
            if not parts:
                return None
            last = parts.pop()
            if not last.size:
                return None
            if size % last.size == 0:
                taken.insert(0, last)
                size //= last.size
            elif last.size % size == 0:
                taken.insert(0, Factor(size, last.stride))
                parts.append(Factor(last.size // size, last.stride * size))
                size = 1
            else:
                return None
        dims.insert(0, tuple(taken))
    return tuple(dims)


def merged(dim: Sequence[Factor]) -> Dim:
    """The same parts, joined where they are adjacent."""
    found: list[Factor] = []
    for factor in dim:
        if factor.size == 1:
            continue
        if found and found[-1].stride == factor.stride * factor.size:
            found[-1] = Factor(found[-1].size * factor.size, factor.stride)
        else:
            found.append(factor)
    return tuple(found)


def refined(dims: Sequence[Dim]) -> list[tuple[int, ...]]:
    """Common parts of one dimension of several values: (size, a stride for each value).

    Raises:
        Refused: the dimensions have no common parts.
    """
    left = [[factor for factor in dim if factor.size != 1] for dim in dims]
    found: list[tuple[int, ...]] = []
    while any(left):
        if not all(left):
            raise Refused("dimensions of different sizes")
        size = min(parts[-1].size for parts in left)
        if not size:
            raise Refused("a value without elements")
        strides = []
        for parts in left:
            last = parts.pop()
            if last.size % size:
                raise Refused("dimensions that share no parts")
            strides.append(last.stride)
            if last.size > size:
                parts.append(Factor(last.size // size, last.stride * size))
        found.insert(0, (size, *strides))
    return found


def row_major(sizes: Sequence[int]) -> list[int]:
    """Strides of a dense array."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step *= size
    return strides


def contiguous(
    shape: Sequence[int], axis: int | None, blocks: int, order: Sequence[int] | None = None
) -> tuple[tuple[Dim, ...], int]:
    """Dimensions of a dense block, the last of `order` innermost; and its number of floats."""
    sizes = [size // blocks if i == axis else size for i, size in enumerate(shape)]
    order = range(len(sizes)) if order is None else order
    strides = dict(zip(order, row_major([sizes[i] for i in order]), strict=True))
    return tuple((Factor(size, strides[i]),) for i, size in enumerate(sizes)), math.prod(sizes)


def outside(shape: Sequence[int], blocks: int, buffer: int) -> Value:
    """An array of XLA's, in row-major order, as a value.

    Raises:
        Refused: no dimension of it consists of the blocks.
    """
    axis = None
    strides = row_major(shape)
    sizes = list(shape)
    if blocks > 1:
        exact = [i for i, size in enumerate(shape) if size == blocks]
        first = next((i for i, size in enumerate(shape) if size != 1), None)
        axis = exact[0] if exact else first
        if axis is None or shape[axis] % blocks:
            raise Refused(f"no blocks in {tuple(shape)}")
        sizes[axis] //= blocks
    dims = tuple((Factor(size, stride),) for size, stride in zip(sizes, strides, strict=True))
    block = 0 if axis is None else sizes[axis] * strides[axis]
    return Value(tuple(shape), axis, block, dims, buffer)


Arrangement = tuple[tuple[Any, ...], ...]

_MOST_REPEATED = 1 << 20
"""Floats of a constant that is stored with its repetitions."""


@dataclass(frozen=True, eq=False)
class Constant:
    """An array made of weights or literals, equal for all blocks.

    Attributes:
        shape: the shape that the steps see.
        held: the shape without repetition: 1 in broadcast dimensions.
        source: number of a known value, or the array itself.
        arrangement: operations that turn the source into an array of the shape `held`.
    """

    shape: tuple[int, ...]
    held: tuple[int, ...]
    source: Any
    arrangement: Arrangement = ()

    @classmethod
    def of(cls, array: np.ndarray) -> Constant:
        """A literal, held without repetition."""
        held = array
        for axis, size in enumerate(array.shape):
            first = held[(slice(None),) * axis + (slice(0, 1),)]
            if size > 1 and (held == first).all():
                held = first
        return cls(array.shape, held.shape, held)

    def whole(self) -> Constant:
        """The same, held with all repetitions.

        Raises:
            Refused: that would be large.
        """
        if self.held == self.shape:
            return self
        if math.prod(self.shape) > _MOST_REPEATED:
            raise Refused("a large array of repetitions")
        return Constant(self.shape, self.shape, self.source, self.then(("broadcast", self.shape)))

    @property
    def number(self) -> float | None:
        """The value of a constant that is a single literal number; else None."""
        if isinstance(self.source, np.ndarray) and self.source.size == 1:
            return float(self.source.reshape(()))
        return None

    def then(self, *steps: tuple[Any, ...]) -> Arrangement:
        """The arrangement with additional steps."""
        return (*self.arrangement, *steps)


def arranged(array: Any, arrangement: Arrangement, xp: Any = np) -> Any:
    """`array` after the steps of an arrangement; `xp` is NumPy, or JAX's NumPy for a traced array."""
    for name, *rest in arrangement:
        array = _STEPS[name](xp, array, *rest)
    return array


def _pack_groups(xp: Any, array: Any, panel: int) -> Any:
    return xp.concatenate([pack_matrix(one, panel, xp) for one in array])


def _pack_vectors(xp: Any, array: Any) -> Any:
    return xp.concatenate([pack_vector(one, xp) for one in array])


def _places(xp: Any, array: Any, sizes: Sequence[int], strides: Sequence[int], clips: bool) -> Any:
    """Vectors of indices as places in memory; -1 for an index out of bounds, unless it is clipped."""
    limits = np.asarray(sizes, np.int64) - 1
    array = array.astype(np.int64 if xp is np else np.int32)
    inside = ((array >= 0) & (array <= limits)).all(-1)
    found = (xp.clip(array, 0, limits) * np.asarray(strides, np.int64)).sum(-1)
    return (found if clips else xp.where(inside, found, -1)).astype(np.int32).reshape(-1)


_STEPS: dict[str, Any] = {
    "reshape": lambda xp, array, shape: array.reshape(shape),
    "transpose": lambda xp, array, order: array.transpose(order),
    "broadcast": lambda xp, array, shape: xp.broadcast_to(array, shape),
    "slice": lambda _, array, parts: array[tuple(slice(*part) for part in parts)],
    "places": _places,
    "matrices": _pack_groups,
    "vectors": _pack_vectors,
}
