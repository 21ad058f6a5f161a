"""Hidden state by agent: one row per agent in arrays on the host or on a device."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import filterfalse
from typing import Any

import jax
import numpy as np

from .._types import Array
from ..errors import DuplicateIdError, InputShapeError, UnknownAgentError
from ..model.signature import TensorSpec
from ..rows.checks import on_device
from ..rows.input_checks import as_dtype, check_names
from ..rows.journal import Journal, Outcome
from ..rows.scratch import ScratchPadView
from ..xla.settings import own_settings
from .state_rows import StateRows, on_host


@dataclass(slots=True)
class Ticket:
    """Rows of a call in progress, and their epochs: a later reset or end of an agent changes its epoch."""

    rows: np.ndarray
    epochs: np.ndarray


@dataclass(slots=True)
class _Staged:
    """New state from a batch: applied once its `outcome` counts, dropped if the batch goes away before."""

    ticket: Ticket
    states: Sequence[Array]
    outcome: Outcome
    view: weakref.ref[ScratchPadView]


@dataclass(frozen=True)
class _Table:
    """State by row, replaced as a whole when it grows or moves.

    Attributes:
        device: device of `stores`; None means the host.
        stores: one array `[capacity, *shape]` for each piece of state.
        fresh: bool[capacity]; such a row counts as zeros, whatever it holds.
        epochs: int[capacity]; the number of times that the row was begun, ended or set.
    """

    device: jax.Device | None
    stores: list[Any]
    fresh: np.ndarray
    epochs: np.ndarray


class AgentStates:
    """One array `[capacity, *shape]` for each piece of state, and the row of each agent; safe for threads.

    A row's epoch changes when its agent begins, ends or is set, so a call that started before does not
    overwrite it. The rows of the last batch are remembered, because the next batch often has the same agents.

    Each change takes effect by a single assignment, so an interrupt leaves the state as before or as after
    it.
    """

    def __init__(self, specs: Sequence[TensorSpec]):
        """Start without agents; the arrays of `specs` stay on the host until rows on a device need them."""
        self._specs = specs
        stores = [np.zeros((0, *spec.shape), spec.dtype) for spec in specs]
        self._table = _Table(None, stores, np.zeros(0, np.bool_), np.zeros(0, np.int64))
        self._row: dict[int, int] = {}
        self._last: tuple[Sequence[int], np.ndarray] | None = None
        self._free: list[int] = []
        self._staged: list[_Staged] = []
        self._journal = Journal()
        self._on: StateRows | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._settle()
            self._move(None)
            return _picklable(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _journal=Journal(), _staged=[], _on=None)

    @property
    def agents(self) -> list[int]:
        """Agents that have begun and not ended."""
        with self._lock:
            return list(self._row)

    def unknown(self, agents: Sequence[int]) -> list[int]:
        with self._lock:
            known = self._last is not None and self._last[0] == agents
            return [] if known else list(filterfalse(self._row.__contains__, agents))

    def begin(self, agent: int) -> None:
        with self._lock:
            self._settle()
            row = self._row.get(agent)
            if row is None:
                if not self._free:
                    self._find_free()
                row = self._free.pop()
                self._reset(row, self._table.epochs[row] + 1)
                self._last = None
                self._row[agent] = row
            else:
                self._journal.commit(functools.partial(self._reset, row, self._table.epochs[row] + 1))

    def end(self, agent: int) -> None:
        with self._lock:
            self._settle()
            row = self._row_of(agent)
            self._last = None
            del self._row[agent]
            # After an interrupt at this point, `begin` and `_find_free` make up for both lines.
            self._table.epochs[row] += 1
            self._free.append(row)

    def read(self, agent: int) -> dict[str, np.ndarray]:
        with self._lock:
            self._settle()
            row, table = self._row_of(agent), self._table
            fresh = table.fresh[row]
            return {
                spec.name: np.zeros(spec.shape, spec.dtype) if fresh else np.array(store[row])
                for spec, store in zip(self._specs, table.stores, strict=True)
            }

    def write(self, agent: int, state: Mapping[str, Any]) -> None:
        names = [spec.name for spec in self._specs]
        check_names(names, state, "the hidden state", optional=names)
        given = {
            spec.name: np.array(as_dtype(spec, state[spec.name]))
            for spec in self._specs
            if spec.name in state
        }
        for spec in self._specs:
            if spec.name in given and given[spec.name].shape != spec.shape:
                raise InputShapeError(
                    f"state {spec.name!r} has shape {list(given[spec.name].shape)}, expected "
                    f"{list(spec.shape)}"
                )
        with self._lock:
            self._settle()
            row = self._row_of(agent)
            self._move(None)
            fresh, epoch = bool(self._table.fresh[row]), self._table.epochs[row] + 1
            self._journal.commit(functools.partial(self._set, row, given, fresh, epoch))

    def gather(self, view: ScratchPadView, slots: Sequence[int]) -> Ticket:
        """Put the state of the view's agents into its input `slots`.

        Raises:
            UnknownAgentError, DuplicateIdError: an agent is unknown, or is twice in the batch.
        """
        with self._lock:
            self._settle()
            rows = self._rows_of(view.ids)
            self._move(None if view.device is None or on_host(view.device) else view.device)
            table = self._table
            zeroed = table.fresh.take(rows)
            if view.device is None:
                _fill(view, slots, table.stores, rows, zeroed)
            elif table.device is None:
                if view.dones is not None:
                    zeroed = zeroed | np.asarray(view.dones).astype(np.bool_)
                for slot, store in zip(slots, table.stores, strict=True):
                    view.set_input(slot, on_device(_taken(store, rows, zeroed), view.device))
            else:
                on = self._rows_on(table.device)
                for slot, states in zip(slots, on.take(table.stores, rows, zeroed, view.dones), strict=True):
                    view.set_input(slot, states)
            return Ticket(rows, table.epochs.take(rows))

    def stage(self, ticket: Ticket, view: ScratchPadView, states: Sequence[Array]) -> None:
        """Store `states`, one array per piece, for the agents of `ticket`, once `view` has run to its end."""
        outcome = view.follow(self.finish)
        with self._lock:
            self._staged.append(_Staged(ticket, states, outcome, weakref.ref(view)))

    def finish(self) -> None:
        """Store the states of batches that have run."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        """Apply pending changes whose batches have run; call it first in each method, with the lock."""
        if self._journal.owed is not None:
            self._journal.finish()
        if not self._staged:
            return
        left = []
        for staged in self._staged:
            # Read before `counts`, which changes for the last time while the view is alive.
            alive = staged.view() is not None
            if staged.outcome.counts:
                self._keep(staged)
            elif alive:
                left.append(staged)
        # After an interrupt above, all changes are applied again in the same order, which changes nothing.
        self._staged = left

    def _keep(self, staged: _Staged) -> None:
        rows, states, table = staged.ticket.rows, staged.states, self._table
        # Agents that began, ended or were set since the call started keep their newer state.
        valid = table.epochs.take(rows) == staged.ticket.epochs
        every = np.count_nonzero(valid) == len(rows)
        kept = rows if every else rows[valid]
        if table.device is None:
            for store, state in zip(table.stores, states, strict=True):
                store[kept] = state if every else np.asarray(state)[valid]
        else:
            stores = self._rows_on(table.device).put(table.stores, rows, valid, states)
            self._table = replace(table, stores=stores)
        table.fresh[kept] = False

    def _reset(self, row: int, epoch: int) -> None:
        self._table.epochs[row] = epoch
        self._table.fresh[row] = True

    def _set(self, row: int, given: Mapping[str, np.ndarray], fresh: bool, epoch: int) -> None:
        table = self._table
        for spec, store in zip(self._specs, table.stores, strict=True):
            if spec.name in given:
                store[row] = given[spec.name]
            elif fresh:
                store[row] = 0
        table.fresh[row] = False
        table.epochs[row] = epoch

    def _rows_of(self, agents: Sequence[int]) -> np.ndarray:
        if self._last is not None and self._last[0] == agents:
            return self._last[1]
        # NumPy's index type: with another one, each use of `rows` casts it first.
        rows = np.array([self._row.get(agent, -1) for agent in agents], np.intp)
        if unknown := [agent for agent, row in zip(agents, rows, strict=True) if row < 0]:
            raise UnknownAgentError(_UNKNOWN.format(", ".join(map(str, unknown))))
        if len(set(agents)) < len(agents):
            twice = next(agent for agent, count in Counter(agents).items() if count > 1)
            raise DuplicateIdError(
                f"agent {twice} is twice in this batch: each agent may have one row, because it has one state"
            )
        self._last = agents if isinstance(agents, range) else list(agents), rows
        return rows

    def _row_of(self, agent: int) -> int:
        row = self._row.get(agent)
        if row is None:
            raise UnknownAgentError(_UNKNOWN.format(agent))
        return row

    def _find_free(self) -> None:
        """Find the rows without an agent; grow the table if there are none."""
        old = len(self._table.fresh)
        if len(self._row) >= old:
            self._grow(max(2 * old, _FIRST_ROWS))
        taken = set(self._row.values())
        self._free = [row for row in reversed(range(len(self._table.fresh))) if row not in taken]

    def _grow(self, capacity: int) -> None:
        table = self._table
        more = capacity - len(table.fresh)
        stores = [
            np.concatenate([np.asarray(store), np.zeros((more, *store.shape[1:]), store.dtype)])
            for store in table.stores
        ]
        self._table = _Table(
            table.device,
            self._placed(stores, table.device),
            np.concatenate([table.fresh, np.zeros(more, np.bool_)]),
            np.concatenate([table.epochs, np.zeros(more, np.int64)]),
        )

    def _move(self, device: jax.Device | None) -> None:
        table = self._table
        if device is not table.device:
            stores = [np.array(store) for store in table.stores] if device is None else table.stores
            self._table = replace(table, device=device, stores=self._placed(stores, device))

    def _placed(self, stores: list[Any], device: jax.Device | None) -> list[Any]:
        if device is None:
            return stores
        with own_settings():
            return [jax.device_put(store, device) for store in stores]

    def _rows_on(self, device: jax.Device) -> StateRows:
        if self._on is None or self._on.device != device:
            self._on = StateRows(self._specs, device)
        return self._on


_FIRST_ROWS = 16
_UNKNOWN = "no hidden state for agent {}: it has not begun, or has ended; call begin_agent first"


def _picklable(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in fields.items() if name not in ("_lock", "_journal", "_staged", "_on")
    }


def _fill(
    view: ScratchPadView,
    slots: Sequence[int],
    stores: Sequence[Array],
    rows: np.ndarray,
    fresh: np.ndarray,
) -> None:
    """Set the input `slots` of `view` to copies of `rows` of the host's `stores`; new episodes get zeros."""
    zeroed = fresh if view.dones is None else fresh | view.dones
    begins = np.count_nonzero(zeroed)
    for slot, store in zip(slots, stores, strict=True):
        states = np.asarray(store).take(rows, 0)
        if begins:
            states[zeroed] = 0
        view.set_input(slot, states)


def _taken(store: Array, rows: np.ndarray, zeroed: np.ndarray) -> np.ndarray:
    states = np.take(store, rows, axis=0)
    states[zeroed] = 0
    return states
