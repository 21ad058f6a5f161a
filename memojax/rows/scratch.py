"""Reusable buffers for a batch, with a slot for each input and output, and a row for each agent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from .._types import Array
from ..errors import InputShapeError
from ..model.signature import TensorSpec
from .journal import Outcome

COPIED_BYTES = 32 * 1024
"""Up to this size, a copy (0.5 us and 50 us/MB) takes less time than JAX's check of an array (3 us)."""

_ALIGNMENT = 64
"""Alignment in bytes at which XLA:CPU reads a NumPy array without a copy."""

DEFAULT_CAPACITY = 6


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialised C-contiguous array whose data starts on a 64-byte boundary."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    # A third of the cost of raw.ctypes.data.
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(tuple(shape))


def is_readable(array: np.ndarray) -> bool:
    """Whether XLA:CPU reads an array without a copy: C-contiguous, from a 64-byte boundary on."""
    return array.flags.c_contiguous and not array.__array_interface__["data"][0] % _ALIGNMENT


class ScratchPad:
    """Preallocated rows for a growing batch.

    `next` and `push` write inputs. A model reads and writes a range of rows by a `ScratchPadView` from
    `chunk`.

    >>> pad = memojax.ScratchPad([memojax.TensorSpec("obs", (2,), np.float32)], [])
    >>> pad.next(7)
    >>> pad.push(0, [1.0, 2.0])
    >>> pad.chunk(0, 1).input_slot(0)
    array([[1., 2.]], dtype=float32)
    """

    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], capacity: int = DEFAULT_CAPACITY
    ):
        """A pad with room for `capacity` agents; its room doubles when it is full."""
        self.input_specs = tuple(inputs)
        self.output_specs = tuple(outputs)
        self.ids: list[int] = []
        capacity = max(int(capacity), 1)
        # Capacity and arrays in one tuple: growth is a single assignment, which no interrupt can split.
        self._room = (
            capacity,
            [aligned_empty((capacity, *spec.shape), spec.dtype) for spec in self.input_specs],
        )

    @property
    def capacity(self) -> int:
        """Agents for which there is room before the pad grows."""
        return self._room[0]

    @property
    def batch_size(self) -> int:
        """The number of agents with a row."""
        return len(self.ids)

    def next(self, agent: int) -> None:
        """Begin a row for `agent`."""
        self.reserve(self.batch_size + 1)
        self.ids.append(agent)

    def add(self, agent: int, rows: Iterable[tuple[int, np.ndarray]]) -> None:
        """Begin a row for `agent` with an array of the element shape for each (slot, array).

        If a copy fails, the row is not begun.
        """
        at = len(self.ids)
        if at == self._room[0]:
            self.reserve(at + 1)
        arrays = self._room[1]
        for slot, row in rows:
            arrays[slot][at] = row
        self.ids.append(agent)

    def push(self, slot: int, data: Any) -> None:
        """Copy `data` into the latest row, for the input at `slot`.

        Raises:
            InputShapeError: `data` does not have the slot's element shape, or there is no row.
        """
        spec = self.input_specs[slot]
        if not self.ids:
            raise InputShapeError(f"there is no row for input {spec.name!r} yet: begin one with next(agent)")
        if np.shape(data) != spec.shape:
            raise InputShapeError(
                f"input {spec.name!r} has shape {list(np.shape(data))}, expected {list(spec.shape)}, one "
                "agent"
            )
        self._room[1][slot][self.batch_size - 1] = data

    def rows(self, slot: int, start: int, stop: int) -> np.ndarray:
        """The rows `[start, stop)` of an input slot, `[stop - start, *element_shape]`, to read or write."""
        return self._room[1][slot][start:stop]

    def first(self, count: int) -> list[np.ndarray]:
        """The first `count` rows of each input slot."""
        return [array[:count] for array in self._room[1]]

    def room(self, count: int) -> list[np.ndarray]:
        """The arrays of all input slots, with room for `count` agents; the list is a new one after growth."""
        if count > self._room[0]:
            self.reserve(count)
        return self._room[1]

    def reserve(self, count: int) -> None:
        """Make room for `count` agents in total; existing rows stay."""
        capacity, arrays = self._room
        if count <= capacity:
            return
        capacity = max(count, 2 * capacity)
        grown = []
        for spec, old in zip(self.input_specs, arrays, strict=True):
            array = aligned_empty((capacity, *spec.shape), spec.dtype)
            array[: self.batch_size] = old[: self.batch_size]
            grown.append(array)
        self._room = capacity, grown

    def truncate(self, count: int) -> None:
        """Drop all agents but the first `count`."""
        del self.ids[count:]

    def clear(self) -> None:
        """Drop all agents; the memory stays."""
        self.ids.clear()

    def emptied(self) -> ScratchPad:
        """An empty pad with the memory of this pad, which must not be used afterwards."""
        pad = ScratchPad.__new__(ScratchPad)
        pad.input_specs, pad.output_specs, pad._room, pad.ids = (
            self.input_specs,
            self.output_specs,
            self._room,
            [],
        )
        return pad

    def chunk(self, offset: int, size: int) -> ScratchPadView:
        """A view of up to `size` agents, from the agent at `offset`."""
        stop = min(offset + size, self.batch_size)
        inputs = [array[offset:stop] for array in self._room[1]]
        return ScratchPadView(
            self.input_specs, self.output_specs, inputs, stop - offset, self.ids[offset:stop]
        )


class ScratchPadView:
    """One batch on its way through an inferer: input rows to read, output rows to fill.

    `set_input` and `set_output` set a whole slot without a copy. `input_slot_mut` and `output_slot_mut`
    return an array to write to, and copy the slot first if its array is read-only. Rows are on the host, or
    are `jax.Array`s on `device`. The `*_slot` methods always return NumPy arrays; `inputs` and `output`
    return the arrays as they are.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> rows = [np.zeros((4, 6), np.float32)]
    >>> view = memojax.ScratchPadView(policy.raw_api.inputs, policy.raw_api.outputs, rows, 4)
    >>> policy.infer_raw(view)
    >>> view.output_name(0), view.output_slot(0).shape
    ('logits', (4, 3))

    Attributes:
        ids: the agent of each row.
        anonymous: whether the caller named no agents. Then they are 0, 1, ..., and wrappers begin new ones by
            themselves.
        dones: `bool[n]` or None; True zeroes the hidden state of a row before it runs.
        device: the device of the rows; None is the host.
        whole: the size of the batch that begins with this view; 0 for a later part of a batch.
    """

    device: jax.Device | None

    __slots__ = (
        "__weakref__",
        "_driver",
        "_followers",
        "_inputs",
        "_outcome",
        "_outputs",
        "_size",
        "anonymous",
        "device",
        "dones",
        "ids",
        "input_specs",
        "output_specs",
        "whole",
    )

    def __init__(
        self,
        input_specs: Sequence[TensorSpec],
        output_specs: Sequence[TensorSpec],
        inputs: Sequence[Array | None],
        size: int,
        ids: Sequence[int] | None = None,
        dones: Array | None = None,
        *,
        device: jax.Device | None = None,
        anonymous: bool | None = None,
    ):
        """A view of `size` rows; a wrapper fills the inputs that are None."""
        self.input_specs: Sequence[TensorSpec] = input_specs
        self.output_specs: Sequence[TensorSpec] = output_specs
        self._inputs = list(inputs)
        self._outputs: list[Array | None] = [None] * len(output_specs)
        self._size = size
        self.anonymous: bool = ids is None if anonymous is None else anonymous
        self.ids: Sequence[int] = range(size) if ids is None else ids
        self.dones: Array | None = dones
        self.device = device
        self.whole: int = size
        self._driver: object | None = None
        self._outcome: Outcome | None = None
        self._followers: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self._size

    @property
    def ran(self) -> bool:
        """Whether the batch has run."""
        return self._outcome is not None and self._outcome.counts

    def enter(self, driver: object) -> bool:
        """Note that `driver` is about to run the batch; return whether it is the outermost driver.

        The outermost driver calls `settle` or `leave` afterwards.
        """
        if self._driver is not None and self._driver is not driver:
            return False
        self._followers, self._outcome = [], None
        self._driver = driver
        return True

    def leave(self) -> None:
        """Note that the batch has failed; another driver may run it."""
        self._driver = None

    def follow(self, finish: Callable[[], None]) -> Outcome:
        """The outcome of the batch, which is still open; `settle` calls `finish` once the batch has run."""
        if self._outcome is None:
            self._outcome = Outcome()
        self._followers.append(finish)
        return self._outcome

    def settle(self) -> None:
        """Note that the batch has run, and let all followers apply their changes."""
        if self._outcome is None:
            self._outcome = Outcome()
        self._outcome.counts = True
        self._driver = None
        for finish in self._followers:
            finish()

    @property
    def inputs(self) -> list[Array]:
        """Rows `[n, *element_shape]` of every input, on their own device."""
        return [self._input(slot) if rows is None else rows for slot, rows in enumerate(self._inputs)]

    def input_name(self, slot: int) -> str:
        """The name of an input."""
        return self.input_specs[slot].name

    def output_name(self, slot: int) -> str:
        """The name of an output."""
        return self.output_specs[slot].name

    def input_slot(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an input, read-only."""
        return _read_only(self._input(slot))

    def input_slot_mut(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an input, to write to."""
        rows = self._inputs[slot] = _writable(self._input(slot))
        return rows

    def input_slot_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an input, read-only."""
        return self.ids, self.input_slot(slot)

    def input_slot_mut_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an input, to write to."""
        return self.ids, self.input_slot_mut(slot)

    def output_slot(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an output, read-only."""
        return _read_only(self.output(slot))

    def output_slot_mut(self, slot: int) -> np.ndarray:
        """Rows `[n, *element_shape]` of an output, to write to."""
        rows = self._outputs[slot] = _writable(self.output(slot))
        return rows

    def output_slot_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an output, read-only."""
        return self.ids, self.output_slot(slot)

    def output_slot_mut_with_id(self, slot: int) -> tuple[Sequence[int], np.ndarray]:
        """Agents, and the rows of an output, to write to."""
        return self.ids, self.output_slot_mut(slot)

    def output(self, slot: int) -> Array:
        """Rows `[n, *element_shape]` of an output, on their own device; zeros if they were never set."""
        rows = self._outputs[slot]
        if rows is None:
            spec = self.output_specs[slot]
            rows = self._outputs[slot] = np.zeros(spec.rows(self._size), spec.dtype)
        return rows

    def set_input(self, slot: int, rows: Array) -> None:
        """Set the rows of an input without copying them.

        Raises:
            InputShapeError: `rows` is not `[n, *element_shape]`.
        """
        self._inputs[slot] = self._checked("input", self.input_specs[slot], rows)

    def set_output(self, slot: int, rows: Array) -> None:
        """Set the rows of an output without copying them.

        Raises:
            InputShapeError: `rows` is not `[n, *element_shape]`.
        """
        self._outputs[slot] = self._checked("output", self.output_specs[slot], rows)

    def part(self, start: int, stop: int) -> ScratchPadView:
        """The rows `[start, stop)` as a view of its own, with fresh outputs."""
        inputs = [
            rows if spec.shared and len(rows.shape) == len(spec.shape) else rows[start:stop]
            for spec, rows in zip(self.input_specs, self.inputs, strict=True)
        ]
        part = ScratchPadView(
            self.input_specs,
            self.output_specs,
            inputs,
            stop - start,
            self.ids[start:stop],
            None if self.dones is None else self.dones[start:stop],
            device=self.device,
            anonymous=self.anonymous,
        )
        part.whole = 0 if start else self._size
        return part

    def _input(self, slot: int) -> Array:
        rows = self._inputs[slot]
        if rows is None:
            spec = self.input_specs[slot]
            rows = self._inputs[slot] = np.empty((self._size, *spec.shape), spec.dtype)
        return rows

    def _checked(self, kind: str, spec: TensorSpec, rows: Array) -> Array:
        if rows.shape == (self._size, *spec.shape):
            return rows
        shape = tuple(rows.shape)
        if spec.shared and spec.accepts(shape):
            return rows
        if shape[:1] != (self._size,) or not spec.accepts(shape[1:]):
            raise InputShapeError(
                f"{kind} {spec.name!r} has shape {list(rows.shape)}, expected {[self._size, *spec.shape]}"
            )
        return rows


def _read_only(rows: Array) -> np.ndarray:
    view = np.asarray(rows).view()
    view.flags.writeable = False
    return view


def _writable(rows: Array) -> np.ndarray:
    return rows if isinstance(rows, np.ndarray) and rows.flags.writeable else np.array(rows)
