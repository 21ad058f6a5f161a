"""Reusable buffers for a batch: one slot per input and output, rows by agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputShapeError
from .model.signature import TensorSpec

_ALIGNMENT = 64
"""Bytes; XLA:CPU takes an aligned NumPy array without a copy."""

DEFAULT_CAPACITY = 6


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialised C-contiguous array whose data starts on a 64-byte boundary."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(tuple(shape))


class ScratchPad:
    """Preallocated rows for a growing batch.

    Inputs are written by `next` and `push`; a model reads and writes a range of rows through a `ScratchPadView` from `chunk`.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], capacity: int = DEFAULT_CAPACITY):
        """Room for `capacity` agents; it doubles when it is exceeded."""
        self.input_specs = tuple(inputs)
        self.output_specs = tuple(outputs)
        self.capacity = max(int(capacity), 1)
        self.ids: list[int] = []
        self._inputs = [aligned_empty((self.capacity, *spec.shape), spec.dtype) for spec in self.input_specs]

    @property
    def batch_size(self) -> int:
        """Agents that wait."""
        return len(self.ids)

    def next(self, agent: int) -> None:
        """Begin a row for `agent`."""
        self.reserve(self.batch_size + 1)
        self.ids.append(agent)

    def push(self, slot: int, data: Any) -> None:
        """Copy the current agent's data for the input at `slot`.

        Raises:
            InputShapeError: `data` does not fit the slot's element shape.
        """
        try:
            self._inputs[slot][self.batch_size - 1] = data
        except ValueError as cause:
            spec = self.input_specs[slot]
            raise InputShapeError(f"input {spec.name!r} takes {list(spec.shape)} per agent, got {list(np.shape(data))}") from cause

    def rows(self, slot: int, start: int, stop: int) -> np.ndarray:
        """The rows `[start, stop)` of an input slot, `[stop - start, *element_shape]`, to read or write."""
        return self._inputs[slot][start:stop]

    def reserve(self, count: int) -> None:
        """Make room for `count` agents in all, keeping the rows that are there."""
        if count <= self.capacity:
            return
        capacity = max(count, 2 * self.capacity)
        for slot, (spec, old) in enumerate(zip(self.input_specs, self._inputs, strict=True)):
            grown = aligned_empty((capacity, *spec.shape), spec.dtype)
            grown[: self.batch_size] = old[: self.batch_size]
            self._inputs[slot] = grown
        self.capacity = capacity

    def truncate(self, count: int) -> None:
        """Forget the agents from the `count`-th on."""
        del self.ids[count:]

    def drop_first(self, count: int) -> None:
        """Forget the first `count` agents; the others move up."""
        for array in self._inputs:
            array[: self.batch_size - count] = array[count : self.batch_size].copy()
        del self.ids[:count]

    def clear(self) -> None:
        """Forget all agents; the memory stays."""
        self.ids.clear()

    def chunk(self, offset: int, size: int) -> ScratchPadView:
        """A view of `size` agents from `offset` on."""
        stop = min(offset + size, self.batch_size)
        inputs = [array[offset:stop] for array in self._inputs]
        return ScratchPadView(self.input_specs, self.output_specs, inputs, stop - offset, self.ids[offset:stop])


class ScratchPadView:
    """One batch on its way through an inferer: input rows to read, output rows to fill.

    An output slot is given as a whole with `set_output` (no copy), or filled through `output_slot_mut`, which allocates it.
    `ids` are the agents of the rows, or None where rows are anonymous.
    """

    __slots__ = ("_inputs", "_outputs", "_size", "dones", "ids", "input_specs", "output_specs")

    def __init__(
        self,
        input_specs: Sequence[TensorSpec],
        output_specs: Sequence[TensorSpec],
        inputs: list[np.ndarray],
        size: int,
        ids: Sequence[int] | None = None,
        dones: np.ndarray | None = None,
    ):
        self.input_specs = input_specs
        self.output_specs = output_specs
        self._inputs = inputs
        self._outputs: list[np.ndarray | None] = [None] * len(output_specs)
        self._size = size
        self.ids = ids
        self.dones = dones

    def __len__(self) -> int:
        return self._size

    @property
    def inputs(self) -> list[np.ndarray]:
        """Rows of every input slot."""
        return self._inputs

    def input_name(self, slot: int) -> str:
        return self.input_specs[slot].name

    def output_name(self, slot: int) -> str:
        return self.output_specs[slot].name

    def input_slot(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an input, read-only."""
        rows = self._inputs[slot].view()
        rows.flags.writeable = False
        return rows

    def input_slot_mut(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an input, to write."""
        return self._inputs[slot]

    def input_slot_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an input, read-only."""
        return self._agents(), self.input_slot(slot)

    def input_slot_mut_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an input, to write."""
        return self._agents(), self._inputs[slot]

    def output_slot(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an output, as the model left them; read-only."""
        rows = self._output(slot).view()
        rows.flags.writeable = False
        return rows

    def output_slot_mut(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an output, to write."""
        rows = self._output(slot)
        if not rows.flags.writeable:
            rows = self._outputs[slot] = rows.copy()
        return rows

    def output_slot_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an output, read-only."""
        return self._agents(), self.output_slot(slot)

    def output_slot_mut_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an output, to write."""
        return self._agents(), self.output_slot_mut(slot)

    def set_output(self, slot: int, rows: np.ndarray) -> None:
        """Give the rows of an output without copying them.

        Raises:
            InputShapeError: `rows` is not `[n, *element_shape]`.
        """
        spec = self.output_specs[slot]
        if rows.shape != (self._size, *spec.shape):
            raise InputShapeError(f"output {spec.name!r} must be {[self._size, *spec.shape]}, got {list(rows.shape)}")
        self._outputs[slot] = rows

    def part(self, start: int, stop: int) -> ScratchPadView:
        """The rows `[start, stop)` as a view of its own, with fresh outputs."""
        ids = None if self.ids is None else self.ids[start:stop]
        dones = None if self.dones is None else self.dones[start:stop]
        return ScratchPadView(self.input_specs, self.output_specs, [a[start:stop] for a in self._inputs], stop - start, ids, dones)

    def _output(self, slot: int) -> np.ndarray:
        rows = self._outputs[slot]
        if rows is None:
            spec = self.output_specs[slot]
            rows = self._outputs[slot] = np.zeros((self._size, *spec.shape), spec.dtype)
        return rows

    def _agents(self) -> Sequence[int]:
        return range(self._size) if self.ids is None else self.ids
