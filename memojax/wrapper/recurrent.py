"""Hidden state by agent: state outputs of one call become state inputs of the same agent's next call."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array
from ..errors import (
    DuplicateIdError,
    IncompatibleModelError,
    InputShapeError,
    UnknownAgentError,
    UnknownInputError,
)
from ..exporter_names import COMMON_STATE, EQUAL_STATE, TENSORFLOW_STATE, continuations
from ..inferer.base import Inferer, check_inferer
from ..model.signature import ModelApi, TensorSpec
from ..rows.scratch import ScratchPadView
from ..rows.states import as_dtype, can_cast
from .base import BaseWrapper, InfererWrapper, LayeredInferer


@dataclass(frozen=True)
class RecurrentInfo:
    """One piece of hidden state: the input that takes it, and the output that holds it for the next call.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> pairs = [memojax.RecurrentInfo("h_in", "h_out"), memojax.RecurrentInfo("c_in", "c_out")]
    >>> memojax.RecurrentTracker(policy, pairs).input_shapes()
    [('obs', [2])]
    """

    inkey: str
    outkey: str


@final
class RecurrentTrackerWrapper(InfererWrapper):
    """Keeps the hidden state of each agent; stack it around an inferer that you want to swap later. See `RecurrentTracker`.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> tracker = memojax.RecurrentTrackerWrapper(memojax.BaseWrapper(), policy)
    >>> stateful = policy.into_stateful(tracker)
    >>> stateful.begin_agent(3)
    >>> answer = stateful.infer_batch({3: {"obs": np.zeros(2)}})
    >>> bool(tracker.states(3)["h_in"].any())
    True
    """

    def __init__(self, inner: InfererWrapper, inferer: Inferer, infos: Iterable[RecurrentInfo] | None = None):
        """Track `infos` of `inferer` outside of `inner`; None takes the pairs that `find_pairs` finds.

        Raises:
            UnknownInputError: the model has no such input, or `inner` hides it.
            IncompatibleModelError: the model has no such output, a pair does not fit together, or no pair was found.
        """
        check_inferer(inferer)
        around = inner.api(inferer)
        self.infos = tuple(find_pairs(around) if infos is None else infos)
        self._inner = inner
        self._pairs = _checked_pairs(around, self.infos)
        raw = inferer.raw_api
        self._slots = [(raw.inputs.index(into), raw.outputs.index(out)) for into, out in self._pairs]
        self._states = AgentStates([into for into, _ in self._pairs])
        self._seen: tuple[ModelApi, ModelApi] | None = None

    def __repr__(self) -> str:
        pairs = ", ".join(f"{info.inkey!r} <- {info.outkey!r}" for info in self.infos)
        return f"RecurrentTrackerWrapper({self._inner!r}, {pairs}; {len(self.agents)} agents)"

    @property
    def agents(self) -> list[int]:
        """Agents that have begun and not ended."""
        return self._states.agents

    def states(self, agent: int) -> dict[str, np.ndarray]:
        """A copy of the state of `agent`: input name -> array.

        Raises:
            UnknownAgentError: `agent` was never begun, or has ended.
        """
        return self._states.read(agent)

    def set_state(self, agent: int, state: Mapping[str, Any]) -> None:
        """Replace the given parts of the state of `agent`.

        Raises:
            UnknownAgentError: `agent` was never begun, or has ended.
            InputError: an unknown name, another shape or dtype; the state stays as it was.
        """
        self._states.write(agent, state)

    def api(self, inferer: Inferer) -> ModelApi:
        around = self._inner.api(inferer)
        if self._seen is None or self._seen[0] is not around:
            raw = inferer.raw_api
            for (into, out), (inslot, outslot) in zip(self._pairs, self._slots, strict=True):
                if raw.inputs[inslot : inslot + 1] != (into,) or raw.outputs[outslot : outslot + 1] != (out,):
                    raise IncompatibleModelError(
                        f"this wrapper keeps {into} <- {out}, the inferer has {around}"
                    )
            self._seen = (
                around,
                around.without([info.inkey for info in self.infos], [info.outkey for info in self.infos]),
            )
        return self._seen[1]

    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        if view.anonymous:
            for agent in self._states.unknown(view.ids):
                self.begin_agent(inferer, agent)
        ticket = self._states.gather(view, [inslot for inslot, _ in self._slots])
        self._inner.invoke(inferer, view)
        self._states.commit(ticket, [view.output(outslot) for _, outslot in self._slots])

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        self._states.begin(agent)
        self._inner.begin_agent(inferer, agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        self._states.end(agent)
        self._inner.end_agent(inferer, agent)


@final
class RecurrentTracker(LayeredInferer):
    """Owns an inferer and keeps the hidden state of each agent; callers see neither its inputs nor its outputs.

    `begin_agent` begins an agent, or resets its state; `end_agent` forgets it. Vectorised environments call `infer_arrays` without `ids`:
    rows are then agents 0, 1, ..., begun when first seen, and `dones` resets rows whose episode is new. The state changes only after the
    model has run. Threads may run disjoint agents at once. For `jax.Array` rows the state lies on their device.

    >>> policy = memojax.RecurrentTracker.wrap(memojax.load(memojax.policies.bundled("recurrent_lstm")))
    >>> rows = {"obs": np.zeros((3, 2), np.float32)}
    >>> first, second = policy.infer_arrays(rows)["logits"], policy.infer_arrays(rows)["logits"]
    >>> fresh = policy.infer_arrays(rows, dones=[True, True, True])["logits"]
    >>> bool((second == first).all()), bool((fresh == first).all())
    (False, True)
    """

    def __init__(self, inferer: Inferer, infos: Iterable[RecurrentInfo]):
        """Track `infos`; `wrap` finds them.

        Raises:
            UnknownInputError: the model has no such input.
            IncompatibleModelError: the model has no such output, or a pair does not fit together.
        """
        self._tracker = RecurrentTrackerWrapper(BaseWrapper(), inferer, tuple(infos))
        super().__init__(self._tracker, inferer)

    @classmethod
    def wrap(cls, inferer: Inferer) -> RecurrentTracker:
        """Track the pairs that `find_pairs` finds.

        Raises:
            IncompatibleModelError: no pair was found.
        """
        check_inferer(inferer)
        return cls(inferer, find_pairs(inferer.api))

    @property
    def infos(self) -> tuple[RecurrentInfo, ...]:
        """Pairs of inputs and outputs that are tracked."""
        return self._tracker.infos

    @property
    def agents(self) -> list[int]:
        """Agents that have begun and not ended."""
        return self._tracker.agents

    def states(self, agent: int) -> dict[str, np.ndarray]:
        """A copy of the state of `agent`; see `RecurrentTrackerWrapper.states`."""
        return self._tracker.states(agent)

    def set_state(self, agent: int, state: Mapping[str, Any]) -> None:
        """Replace the state of `agent`, or a part of it; see `RecurrentTrackerWrapper.set_state`."""
        self._tracker.set_state(agent, state)


def find_pairs(api: ModelApi) -> list[RecurrentInfo]:
    """Pairs of an input and the output of the same shape that continues it, by name.

    Equal names come first. Without any, common pairs count: `h_in` and `h_out`, `state_ins` and `state_outs`, `cache` and `cache_out`,
    `next_cache` or `new_cache`, `h0` and `hn`. TensorFlow's `input_2` and `output_2` come last, unless callers would then have no
    input left.

    Raises:
        IncompatibleModelError: no pair was found.
    """
    for rules in (EQUAL_STATE, COMMON_STATE, TENSORFLOW_STATE):
        outputs = {spec.name: spec for spec in api.outputs}
        found = []
        for into in api.inputs:
            names = continuations(into.name, rules)
            if name := next((name for name in names if name in outputs and _fits(into, outputs[name])), None):
                del outputs[name]
                found.append(RecurrentInfo(into.name, name))
        if found and (rules is not TENSORFLOW_STATE or len(found) < len(api.inputs)):
            return found
    raise IncompatibleModelError(
        f"no output continues an input by name and shape; the model has {api}: name the pairs, "
        "RecurrentTracker(inferer, [RecurrentInfo(inkey, outkey)])"
    )


@dataclass(frozen=True)
class Ticket:
    """Rows of a call under way: their state goes back there, unless the agent is reset or ended meanwhile."""

    rows: np.ndarray
    epochs: np.ndarray


class AgentStates:
    """One array `[capacity, *shape]` for each piece of state, and the row of each agent; threads may share it.

    A row's epoch changes when its agent begins, ends or is set, so a call that started before does not overwrite it. A fresh row counts
    as zeros, whatever it holds. The rows of the last batch are remembered, because the next batch often has the same agents.
    """

    def __init__(self, specs: Sequence[TensorSpec]):
        """Begin without agents; the arrays of `specs` lie on the host until rows on a device need them."""
        self._specs = specs
        self._device: jax.Device | None = None
        self._stores: list[Any] = [np.zeros((0, *spec.shape), spec.dtype) for spec in specs]
        self._row: dict[int, int] = {}
        self._last: tuple[Sequence[int], np.ndarray] | None = None
        self._free: list[int] = []
        self._fresh = np.zeros(0, np.bool_)
        self._epochs = np.zeros(0, np.int64)
        self._wide = any(spec.dtype.itemsize >= 8 for spec in specs)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._move(None)
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def agents(self) -> list[int]:
        """Agents that have begun and not ended."""
        with self._lock:
            return list(self._row)

    def unknown(self, agents: Sequence[int]) -> list[int]:
        with self._lock:
            known = self._last is not None and self._last[0] == agents
            return [] if known else [agent for agent in agents if agent not in self._row]

    def begin(self, agent: int) -> None:
        with self._lock:
            row = self._row.get(agent)
            if row is None:
                if not self._free:
                    self._grow()
                row = self._row[agent] = self._free.pop()
                self._last = None
            self._fresh[row] = True
            self._epochs[row] += 1

    def end(self, agent: int) -> None:
        with self._lock:
            row = self._row_of(agent)
            del self._row[agent]
            self._last = None
            self._epochs[row] += 1
            self._free.append(row)

    def read(self, agent: int) -> dict[str, np.ndarray]:
        with self._lock:
            row = self._row_of(agent)
            fresh = self._fresh[row]
            return {
                spec.name: np.zeros(spec.shape, spec.dtype) if fresh else np.array(store[row])
                for spec, store in zip(self._specs, self._stores, strict=True)
            }

    def write(self, agent: int, state: Mapping[str, Any]) -> None:
        names = [spec.name for spec in self._specs]
        if unknown := [name for name in state if name not in names]:
            raise UnknownInputError(unknown, names, "the hidden state")
        given = {spec.name: as_dtype(spec, state[spec.name]) for spec in self._specs if spec.name in state}
        for spec in self._specs:
            if spec.name in given and given[spec.name].shape != spec.shape:
                raise InputShapeError(
                    f"state {spec.name!r} has shape {list(given[spec.name].shape)}, expected {list(spec.shape)}"
                )
        with self._lock:
            row = self._row_of(agent)
            self._move(None)
            for spec, store in zip(self._specs, self._stores, strict=True):
                if spec.name in given:
                    store[row] = given[spec.name]
                elif self._fresh[row]:
                    store[row] = 0
            self._fresh[row] = False
            self._epochs[row] += 1

    def gather(self, view: ScratchPadView, slots: Sequence[int]) -> Ticket:
        """Put the state of the view's agents into its input `slots`.

        Raises:
            UnknownAgentError, DuplicateIdError: an agent is unknown, or twice in the batch.
        """
        with self._lock:
            rows = self._rows_of(view.ids)
            self._move(view.device)
            zeroed = self._fresh[rows]
            if view.device is None:
                if view.dones is not None:
                    zeroed = zeroed | view.dones
                for slot, store in zip(slots, self._stores, strict=True):
                    states = view.input_slot_mut(slot)
                    np.take(store, rows, axis=0, out=states, mode="clip")
                    if zeroed.any():
                        states[zeroed] = 0
            else:
                with self._scope():
                    for slot, states in zip(
                        slots, _take(self._stores, rows, zeroed, view.dones), strict=True
                    ):
                        view.set_input(slot, states)
            return Ticket(rows, self._epochs[rows])

    def commit(self, ticket: Ticket, states: Sequence[Array]) -> None:
        """Store `states`, one array of rows per piece of state, for the agents of `ticket`."""
        with self._lock:
            rows, device = ticket.rows, self._device
            valid = self._epochs[rows] == ticket.epochs
            if not valid.all():
                rows, states = rows[valid], [state[valid] for state in states]
            if device is None:
                for store, state in zip(self._stores, states, strict=True):
                    store[rows] = state
            else:
                with self._scope():
                    self._stores = _put(
                        self._stores, rows, [jax.device_put(state, device) for state in states]
                    )
            self._fresh[rows] = False

    def _rows_of(self, agents: Sequence[int]) -> np.ndarray:
        if self._last is not None and self._last[0] == agents:
            return self._last[1]
        rows = np.array([self._row.get(agent, -1) for agent in agents], np.int32)
        if unknown := [agent for agent, row in zip(agents, rows, strict=True) if row < 0]:
            raise UnknownAgentError(_UNKNOWN.format(", ".join(map(str, unknown))))
        if len(set(agents)) < len(agents):
            twice = next(agent for agent, count in Counter(agents).items() if count > 1)
            raise DuplicateIdError(
                f"agent {twice} is in this batch twice: its state can only be continued once"
            )
        self._last = agents if isinstance(agents, range) else list(agents), rows
        return rows

    def _row_of(self, agent: int) -> int:
        row = self._row.get(agent)
        if row is None:
            raise UnknownAgentError(_UNKNOWN.format(agent))
        return row

    def _grow(self) -> None:
        old = len(self._fresh)
        new = max(2 * old, _FIRST_ROWS)
        device = self._device
        self._move(None)
        for index, store in enumerate(self._stores):
            self._stores[index] = np.concatenate(
                [store, np.zeros((new - old, *store.shape[1:]), store.dtype)]
            )
        self._fresh = np.concatenate([self._fresh, np.zeros(new - old, np.bool_)])
        self._epochs = np.concatenate([self._epochs, np.zeros(new - old, np.int64)])
        self._free.extend(range(new - 1, old - 1, -1))
        self._move(device)

    def _move(self, device: jax.Device | None) -> None:
        if device is self._device:
            return
        with self._scope():
            self._stores = [
                np.array(store) if device is None else jax.device_put(store, device) for store in self._stores
            ]
        self._device = device

    def _scope(self) -> AbstractContextManager[Any]:
        """A scope in which 64-bit state stays 64 bits wide, whatever the caller's x64 setting."""
        return jax.enable_x64(True) if self._wide else nullcontext()


_FIRST_ROWS = 16
_UNKNOWN = "no hidden state for agent {}: it was never begun, or has ended; call begin_agent first"


@jax.jit
def _take(
    stores: list[jax.Array], rows: jax.Array, fresh: jax.Array, dones: jax.Array | None
) -> list[jax.Array]:
    zeroed = fresh if dones is None else fresh | dones.astype(bool)
    return [
        jnp.where(zeroed.reshape(-1, *[1] * (store.ndim - 1)), jnp.zeros((), store.dtype), store[rows])
        for store in stores
    ]


@functools.partial(jax.jit, donate_argnums=0)
def _put(stores: list[jax.Array], rows: jax.Array, states: list[jax.Array]) -> list[jax.Array]:
    return [
        store.at[rows].set(state.astype(store.dtype)) for store, state in zip(stores, states, strict=True)
    ]


def _checked_pairs(api: ModelApi, infos: Sequence[RecurrentInfo]) -> list[tuple[TensorSpec, TensorSpec]]:
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (api.inputs, api.outputs))
    pairs = []
    for info in infos:
        if info.inkey not in inputs:
            raise UnknownInputError([info.inkey], [spec.name for spec in api.inputs])
        if info.outkey not in outputs:
            raise IncompatibleModelError(
                f"no output {info.outkey!r} to continue input {info.inkey!r}; the model has {api}"
            )
        into, out = inputs.pop(info.inkey), outputs.pop(info.outkey)
        if not _fits(into, out):
            raise IncompatibleModelError(
                f"output {out} cannot continue input {into}: shape and kind of number must be the same"
            )
        pairs.append((into, out))
    return pairs


def _fits(into: TensorSpec, out: TensorSpec) -> bool:
    return into.shape == out.shape and can_cast(out.dtype, into.dtype)
