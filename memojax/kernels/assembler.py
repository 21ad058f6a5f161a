"""Assembles a program: memory for values, arguments made of weights, steps in order, and the final words."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .group import Group, Pending
from .program import (
    ALIGNED,
    ARENA,
    MOST_COPY_DIMENSIONS,
    SHARED,
    Operand,
    Place,
    Product,
    Program,
    chunk_of,
    least_of,
    lines_of,
)
from .values import (
    Arrangement,
    Constant,
    Factor,
    Refused,
    Value,
    contiguous,
    merged,
    outside,
    refined,
    row_major,
)

Known = Value | Constant | Pending

_MANY_ROWS = 32
"""Rows from which it pays to read a large matrix from memory once per pass."""

_LARGE_MATRIX = 1 << 16
"""Floats of a matrix that does not fit a core's cache beside others."""


@dataclass
class _Slot:
    """A place in the arena: floats per block, and the first and last step that use it."""

    size: int
    first: int
    last: int


class _Work:
    """The products of a program by step, with sums of their work."""

    def __init__(self, products: Sequence[Product | None]):
        self._products = products
        self._flops = np.array([0 if one is None else one.flops for one in products], np.float64)
        self._rows = np.array([0 if one is None else one.rows for one in products], np.int64)
        self._before = np.concatenate([[0.0], self._flops.cumsum()])
        self._with: dict[int, np.ndarray] = {}

    def products(self) -> Iterator[tuple[int, Product]]:
        """The products, each with its step."""
        return ((index, one) for index, one in enumerate(self._products) if one is not None)

    def mostly(self, rows: int, start: int, index: int) -> bool:
        """Whether most work since `start` is in products of this few rows from step `index` on: a loop."""
        if rows not in self._with:
            few = np.where(self._rows <= rows, self._flops, 0.0)
            self._with[rows] = few[::-1].cumsum()[::-1]
        return bool(self._with[rows][index] > 2 * (self._before[index] - self._before[start]))


@dataclass
class Weight:
    """An argument of the program that is made of weights: `source` after `arrangement`."""

    source: Any
    arrangement: Arrangement
    size: int


@dataclass
class Assembler:
    """A program in progress, for one island (abstract: an emitter adds the network's operators).

    Attributes:
        blocks: rows of the plan.
        panel: columns of a panel of packed weights.
        weights: arguments made of weights; they follow the `n_inputs` others.
    """

    blocks: int
    panel: int
    n_inputs: int
    weights: list[Weight] = field(default_factory=list)
    group: Group | None = None
    _ops: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)
    _weights: dict[Any, int] = field(default_factory=dict)
    _made: dict[int, Value] = field(default_factory=dict)
    has_product: bool = False

    def new(self, shape: Sequence[int], axis: int | None, order: Sequence[int] | None = None) -> Value:
        """A dense value in the arena, with the last dimension of `order` innermost."""
        dims, size = contiguous(shape, axis, self.blocks, order)
        self._slots.append(_Slot(size, len(self._ops), len(self._ops)))
        return Value(tuple(shape), axis, size, dims, ARENA, slot=len(self._slots) - 1)

    def weight(self, source: Any, arrangement: Arrangement, size: int) -> Place:
        """An argument made of weights."""
        key = (source if isinstance(source, int) else id(source), arrangement)
        if key not in self._weights:
            self._weights[key] = len(self.weights)
            self.weights.append(Weight(source, arrangement, size))
        return Place(-100 - self._weights[key])

    def emit(self, method: str, uses: Sequence[Value], **given: Any) -> None:
        """Add a step that touches `uses`."""
        for value in uses:
            if value.slot >= 0:
                self._slots[value.slot].last = len(self._ops)
        self._ops.append((method, given))

    def here(self, value: Known) -> Value:
        """`value` in memory.

        Raises:
            Refused: it is a constant that differs from block to block.
        """
        if isinstance(value, Pending):
            if value.value is None:
                self.flush()
            assert value.value is not None
            return value.value
        return self._stored(value) if isinstance(value, Constant) else value

    def _stored(self, constant: Constant) -> Value:
        """A constant in an argument of the program, the same for all blocks."""
        axis = None
        if self.blocks > 1:
            # The same for all blocks: their dimension is repeated.
            repeated = [
                i
                for i, (size, held) in enumerate(zip(constant.shape, constant.held, strict=True))
                if held == 1 and size > 1 and size % self.blocks == 0
            ]
            if not repeated:
                raise Refused(f"no blocks in a constant of {constant.shape}")
            axis = next((i for i in repeated if constant.shape[i] == self.blocks), repeated[0])
        place = self.weight(constant.source, constant.then(("reshape", (-1,))), math.prod(constant.held))
        sizes = [size // self.blocks if i == axis else size for i, size in enumerate(constant.shape)]
        strides = row_major(constant.held)
        dims = tuple(
            (Factor(size, stride if held != 1 else 0),)
            for size, stride, held in zip(sizes, strides, constant.held, strict=True)
        )
        return Value(constant.shape, axis, 0, dims, place.buffer)

    def flush(self) -> None:
        """Emit the pending elementwise code."""
        if self.group is not None:
            group, self.group = self.group, None
            try:
                group.emit(self)
            except Refused as cause:
                cause.steps = cause.steps or tuple(group.steps)
                raise

    def is_whole(self, value: Value) -> bool:
        """Whether a value fills its place in the arena, in row-major order."""
        parts = merged([factor for dim in value.dims for factor in dim])
        dense = not parts or (len(parts) == 1 and parts[0].stride == 1)
        return value.slot >= 0 and value.offset == 0 and value.size == self._slots[value.slot].size and dense

    def product_step(
        self, out: Value, x: Value, *others: Value, weight: Place, bias: Place, **given: Any
    ) -> None:
        """Add a product of `x` into `out`; `others` are values that it reads, too."""
        self.has_product = True
        self.emit("product", [x, out, *others], x=x.place, weights=weight, bias=bias, y=out.place, **given)

    def copied(self, value: Value, order: Sequence[int] | None = None) -> Value:
        """A dense copy."""
        target = self.new(value.shape, value.axis, order)
        self.copy(value, target)
        return target

    def copy(self, value: Value, target: Value) -> None:
        """Add a copy into `target`, dimension by dimension."""
        dims = []
        for a, b in zip(value.dims, target.dims, strict=True):
            for size, one, other in refined([a, b]):
                dims.append((size, one, other))
        dims.sort(key=lambda dim: -dim[2])
        if len(dims) > MOST_COPY_DIMENSIONS:
            raise Refused("a copy of too many dimensions")
        self.emit(
            "copy",
            [value, target],
            x=value.place,
            y=target.place,
            blocks=(value.block, target.block),
            dims=dims,
        )

    def finish(self, outputs: Sequence[Value], dtypes: Sequence[Any]) -> np.ndarray:
        """The words of the program with results `outputs`, in row-major order.

        `dtypes` are those of the results: float32, int32 or int64.
        """
        first = self.n_inputs + len(self.weights)
        made: dict[int, Value] = {}
        for index, (value, dtype) in enumerate(zip(outputs, dtypes, strict=True)):
            if dtype != np.float32:
                self._whole(value, first + index, 8 * np.dtype(dtype).itemsize)
                continue
            target = outside(value.shape, self.blocks, first + index)
            if target.axis != value.axis:
                if value.axis is None or math.prod(value.shape[: value.axis]) != 1:
                    raise Refused("blocks of an output in an unexpected place")
                target = _with_axis(value, first + index, self.blocks)
            if value.slot >= 0 and value.slot not in made and self._is(value, target):
                made[value.slot] = target  # The value is made in the result's own memory.
            else:
                self.copy(value, target)
        self._made = made
        self._join_pools()
        program = Program(self.blocks, first + len(outputs))
        sections = self._sections()
        places, program.arena_row, program.shared = self._arena(sections)
        for index, (method, given) in enumerate(self._ops):
            if index in sections:
                program.section(*sections[index])
            given = {name: self._resolved(item, places) for name, item in given.items()}
            if method == "product":
                program.product(Product(**given))
            else:
                getattr(program, method)(**given)
        return program.array()

    def _join_pools(self) -> None:
        """Let a reduction over windows run with the product before it, if no other step reads its result."""
        for index, ((method, before), (following, after)) in enumerate(zip(self._ops, self._ops[1:])):
            if (method, following) != ("product", "pool") or before["y"] != after["x"]:
                continue
            place: Place = before["y"]
            alone = place.buffer == ARENA and self._slots[place.offset].last == index + 1
            if alone and place.offset not in self._made and (lines := lines_of(before, after)):
                after["lines"] = lines
                # The product still reads its input when the first windows are written.
                if before["x"].buffer == ARENA:
                    slot = self._slots[before["x"].offset]
                    slot.last = max(slot.last, index + 1)

    def _whole(self, value: Value, buffer: int, bits: int) -> None:
        """Add the change of whole numbers, which are floats in a program, to integers in a result."""
        if value.axis is not None and math.prod(value.shape[: value.axis]) != 1:
            raise Refused("blocks of an output in an unexpected place")
        value = self.copied(value)
        y = Place(buffer, 0, value.size * bits // 32)
        self.emit("whole", [value], x=value.place, y=y, count=value.size, bits=bits)

    def _sections(self) -> dict[int, tuple[int, int]]:
        """First steps of sections, the number of blocks per pass of each, and the fewest for a thread.

        Images go through in small numbers, so that the values between two convolutions stay in the cache. A
        large dense layer after them wants many rows, because each pass reads all of its weights.
        """
        found: dict[int, tuple[int, int]] = {}
        start, largest, rows, matrix = 0, -1, 1, 0
        alive, most, seen = self._alive(), 0, 0
        work = _Work([Product(**given) if name == "product" else None for name, given in self._ops])

        def end() -> tuple[int, int]:
            chunk = chunk_of(self.blocks, rows, most)
            # Each thread reads the weights of all of its steps.
            return chunk, least_of(rows) if matrix < _LARGE_MATRIX else chunk

        for index, product in work.products():
            floats = product.flops // (2 * product.rows)
            # The most floats that the steps of this section so far use at the same time.
            most, seen = max(most, int(alive[seen:index].max(initial=0))), index
            chunk, _ = end()
            starved = largest >= 0 and product.rows * chunk < min(_MANY_ROWS, product.rows * self.blocks)
            if (starved and (floats >= _LARGE_MATRIX or work.mostly(product.rows, start, index))) or (
                largest >= 0 and product.rows >= 16 * rows
            ):
                found[start] = end()
                start, largest, matrix, most = index, -1, 0, 0
            matrix = max(matrix, floats)
            if product.flops > largest:
                largest, rows = product.flops, product.rows
        most = max(most, int(alive[seen:].max(initial=0)))
        found[start] = end()
        return found

    def _alive(self) -> np.ndarray:
        """Floats of the arena per block that each step finds in use."""
        change = np.zeros(len(self._ops) + 2, np.int64)
        for number, slot in enumerate(self._slots):
            if number not in self._made:
                change[slot.first] += slot.size
                change[slot.last + 1] -= slot.size
        return change.cumsum()[: len(self._ops)]

    def _is(self, value: Value, target: Value) -> bool:
        """Whether `value` has the layout of `target`, and fills its slot."""
        if value.offset or value.size != self._slots[value.slot].size or value.block != target.block:
            return False
        return all(
            one == other
            for a, b in zip(value.dims, target.dims, strict=True)
            for _, one, other in refined([a, b])
        )

    def _resolved(self, item: Any, places: list[Place]) -> Any:
        # A slot's place is known only at the end, so steps carry the slot's number until then.
        if isinstance(item, Operand):
            return item._replace(place=self._resolved(item.place, places))
        if isinstance(item, Place):
            if item.buffer == ARENA:
                place = places[item.offset]
                if place.buffer == ARENA:
                    return Place(ARENA, place.offset, item.stride)
                return place._replace(offset=place.offset + item.stride)
            if item.buffer <= -100:
                return item._replace(buffer=self.n_inputs - 100 - item.buffer)
            return item
        if isinstance(item, list) and item and isinstance(item[0], Operand):
            return [self._resolved(one, places) for one in item]
        return item

    def _arena(self, sections: Mapping[int, Any]) -> tuple[list[Place], int, int]:
        """Place the slots so that those in use at the same time do not overlap.

        Returns:
            The place of each slot; floats of the arena per block; floats that sections share.
        """
        starts = sorted(sections)
        placed: list[tuple[int, int, int]] = []
        """Begin, end and last step of slots in the arena, by their begin."""
        places: list[Place] = []
        shared = top = 0
        for number, slot in enumerate(self._slots):
            size = -(-max(slot.size, 1) // ALIGNED) * ALIGNED
            if number in self._made:
                target = self._made[number]
                places.append(Place(target.buffer, 0, target.block))
            elif bisect_right(starts, slot.first) != bisect_right(starts, slot.last):
                # Used by several sections, so its blocks must outlive a pass: they lie in shared memory.
                places.append(Place(SHARED, shared, slot.size))
                shared += size * self.blocks
            else:
                offset = 0
                # Slots come by their first step, so those whose last step is over overlap with no later one.
                placed = [one for one in placed if one[2] >= slot.first]
                # First fit: the lowest gap between the slots whose steps overlap.
                for begin, end, _ in placed:
                    if offset + size <= begin:
                        break
                    offset = max(offset, end)
                insort(placed, (offset, offset + size, slot.last))
                top = max(top, offset + size)
                places.append(Place(ARENA, offset))
        return places, top, shared


def _with_axis(value: Value, buffer: int, blocks: int) -> Value:
    """A result of XLA's whose blocks are the outermost part of `value.axis`."""
    assert value.axis is not None
    dims, size = contiguous(value.shape, value.axis, blocks)
    return Value(value.shape, value.axis, size, dims, buffer)
