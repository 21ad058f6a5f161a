"""Batches from agents that come one by one: `Batcher` collects them, `Batched` adds the inferer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, final

import numpy as np

from ..display import Card, card_of, html_of, text_of
from ..errors import DuplicateIdError, IncompatibleModelError, MissingInputError
from ..model.signature import TensorSpec
from ..rows.journal import Journal
from ..rows.native_rows import Aim, gatherer
from ..rows.scratch import DEFAULT_CAPACITY, ScratchPad, ScratchPadView
from ..rows.states import Response, State, check_state, columns_of, owned, responses_of, row_of, rows_into
from .base import Inferer, check_inferer, next_size
from .loose_batcher import LooseBatcher
from .pairs import States, pairs_of


class _Batch:
    """The waiting agents as one record: a single assignment of a new record clears all of it.

    The pad's list of agents is authoritative; it grows only after the row is complete. All other fields are
    checked against it, so an interrupt between two lines leaves a consistent batch.

    Attributes:
        pad: the rows, and the agents in the order of the rows.
        journal: finishes changes that need more than one assignment; it owes nothing when a batch begins.
        found: agent -> row where it may be; `pad.ids` decides whether it is there.
        begun: parts handed to the inferer, in order; the part that failed has not `ran`.
        gone: rows that have run and whose agents were discarded afterwards.
    """

    __slots__ = "begun", "found", "gone", "journal", "pad"

    def __init__(self, pad: ScratchPad, journal: Journal):
        self.pad, self.journal = pad, journal
        self.found: dict[Hashable, int] = {}
        self.begun: Sequence[ScratchPadView] = ()
        self.gone: Set[int] = _NONE

    @property
    def done(self) -> int:
        """Number of rows that have run."""
        return sum(len(view) for view in self.begun if view.ran)

    def row_of(self, agent: int) -> int | None:
        """The row of a waiting agent; None if it does not wait."""
        at = self.found.get(agent)
        ids = self.pad.ids
        return at if at is not None and at < len(ids) and ids[at] == agent and at not in self.gone else None

    def overwrite(
        self, where: Any, rows: Iterable[tuple[int, np.ndarray]], count: int, added: Sequence[int] = ()
    ) -> None:
        """Copy `rows` into the rows `where` of each slot; rows from `count` on belong to agents `added`."""
        stop = self.pad.capacity
        for slot, row in rows:
            self.pad.rows(slot, 0, stop)[where] = row
        if len(self.pad.ids) == count:
            self.pad.ids.extend(added)

    def remove(self, at: int, last: int, moved: int) -> None:
        """Move the last row, of agent `moved`, to the row `at`."""
        if len(self.pad.ids) > last:
            for slot in range(len(self.pad.input_specs)):
                self.pad.rows(slot, at, at + 1)[:] = self.pad.rows(slot, last, last + 1)
            self.found[moved] = at
            self.pad.ids[at] = moved
            self.pad.truncate(last)


_NONE: Set[int] = frozenset()


@final
class Batcher:
    """Collects the states of agents until `execute` runs them all.

    Reuse it over frames: it keeps its memory. A failing push changes nothing. A failing `execute` loses
    nothing, and the next `execute` continues where it stopped.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> batcher = memojax.Batcher(policy)
    >>> batcher.push(3, {"obs": np.zeros(6)})
    >>> batcher.execute(policy)[3]["logits"].shape
    (3,)
    """

    def __init__(self, inferer: Inferer, capacity: int = DEFAULT_CAPACITY):
        """Reserve rows for `capacity` agents of `inferer`; the batcher grows beyond that when needed."""
        check_inferer(inferer)
        if not inferer.api.is_plain:
            raise IncompatibleModelError(
                f"agents of this model may differ in shape ({inferer.api}), but a Batcher needs equal "
                "shapes: use into_batched()"
            )
        self._raw = inferer.raw_api
        self._waiting = _Batch(ScratchPad(self._raw.inputs, self._raw.outputs, capacity), Journal())
        self._api = inferer.api
        names = [spec.name for spec in self._raw.inputs]
        self._slots = [(names.index(spec.name), spec) for spec in self._api.inputs]
        self._names = {spec.name for spec in self._api.inputs}
        self._outputs = [spec.name for spec in self._raw.outputs]
        self._quickly = gatherer(self._api.inputs, State)
        self._aim: tuple[list[np.ndarray] | None, Aim | None] = None, None
        # `is` tells that no wrapper fills inputs: callers then give exactly the model's inputs.
        self._quick = self._raw if self._api is self._raw else object()

    def __getstate__(self) -> dict[str, Any]:
        # The compiled helper holds addresses, which mean nothing in another process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_quickly", "_aim")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _quickly=gatherer(state["_api"].inputs, State), _aim=(None, None))

    def __repr__(self) -> str:
        return f"Batcher({len(self)} agents wait, inputs {', '.join(sorted(self._names))})"

    def __len__(self) -> int:
        """Number of waiting agents."""
        batch = self._waiting
        return len(batch.pad.ids if batch.journal.owed is None else self._batch().pad.ids)

    def __contains__(self, agent: int) -> bool:
        """Whether the agent waits and has not run in an `execute` that failed later."""
        batch = self._batch()
        at = batch.row_of(agent)
        return at is not None and at >= batch.done

    @property
    def agents(self) -> list[int]:
        """The waiting agents, in the order of the pushes."""
        batch = self._batch()
        return [agent for at, agent in enumerate(batch.pad.ids) if at not in batch.gone]

    @property
    def begun(self) -> bool:
        """Whether an `execute` failed after some rows had run."""
        return self._batch().done > 0

    def states(self) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The waiting agents with views of their rows."""
        pad = self._batch().pad
        return [
            (agent, {spec.name: pad.rows(slot, at, at + 1)[0, ...] for slot, spec in self._slots})
            for at, agent in enumerate(pad.ids)
        ]

    def _start(self, batch: _Batch) -> None:
        self._waiting = batch

    def _batch(self) -> _Batch:
        """The waiting agents, after finishing a change that an interrupt has cut short."""
        batch = self._waiting
        if batch.journal.owed is not None:
            batch.journal.finish()
        return batch

    def push(self, agent: int, state: Mapping[str, Any], *, replace: bool = False) -> None:
        """Copy the state of one agent into the batch; `replace` allows to overwrite a waiting state.

        Raises:
            DuplicateIdError: the agent already waits.
            InputError: an unknown, missing, misshapen or mistyped input.
        """
        batch = self._waiting
        if batch.journal.owed is not None:
            batch = self._batch()
        if agent not in batch.found:
            ids = batch.pad.ids
            count = len(ids)
            aim = self._aimed(batch.pad, count + 1)
            if aim is not None and aim.one(state, count):
                batch.found[agent] = count
                ids.append(agent)
                return
        at = batch.row_of(agent) if agent in batch.found else None
        if at is not None and not (replace and at >= batch.done):
            raise DuplicateIdError(
                f"agent {agent} is in this batch already: execute it first, or push one state per agent"
            )
        try:
            known = state.keys() == self._names
        except AttributeError:
            known = False
        if not known:
            check_state(self._api.inputs, agent, state)
        rows = [(slot, row_of(spec, agent, state[spec.name])) for slot, spec in self._slots]
        if at is None:
            batch.found[agent] = len(batch.pad.ids)
            batch.pad.add(agent, rows)
        else:
            copies = [(slot, np.array(row)) for slot, row in rows]
            batch.journal.commit(partial(batch.overwrite, at, copies, len(batch.pad.ids)))

    def discard(self, agent: int) -> bool:
        """Forget a waiting agent; True if there was one."""
        batch = self._batch()
        at = batch.row_of(agent)
        if at is None:
            return False
        if at < batch.done:
            batch.gone |= {at}
        else:
            last = len(batch.pad.ids) - 1
            batch.journal.commit(partial(batch.remove, at, last, batch.pad.ids[last]))
        return True

    def extend(self, states: States, *, replace: bool = False) -> None:
        """Copy the states of many agents, one gather per input: all of them or, on an error, none.

        `replace` is as in `push`.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> batcher = memojax.Batcher(policy)
        >>> batcher.extend({3: {"obs": np.zeros(6)}, 7: {"obs": np.ones(6)}})
        >>> len(batcher), 7 in batcher
        (2, True)

        Raises:
            DuplicateIdError, InputError: as for `push`.
        """
        pairs = pairs_of(states)
        if len(pairs) == 1:
            ((agent, state),) = pairs
            self.push(agent, state, replace=replace)
            return
        agents = [agent for agent, _ in pairs]
        batch = self._batch()
        where = {}
        if not batch.found.keys().isdisjoint(agents):
            where = {agent: at for agent in agents if (at := batch.row_of(agent)) is not None}
        fixed = {agent for agent, at in where.items() if not replace or at < batch.done} if where else where
        if fixed or len(set(agents)) < len(agents):
            twice = next(
                agent for index, agent in enumerate(agents) if agent in fixed or agent in agents[:index]
            )
            raise DuplicateIdError(
                f"agent {twice} is in this batch already: execute it first, or push one state per agent"
            )
        given = [state for _, state in pairs]
        if where:
            self._replace(batch, agents, where, columns_of(self._api.inputs, agents, given))
            return
        count = len(batch.pad.ids)
        aim = self._aimed(batch.pad, count + len(agents))
        if aim is None or not aim.all(given, count):
            columns = columns_of(self._api.inputs, agents, given)
            batch.pad.reserve(count + len(agents))
            for (slot, spec), (_, column) in zip(self._slots, columns, strict=True):
                rows_into(spec, agents, column, batch.pad.rows(slot, count, count + len(agents)))
        batch.found.update(zip(agents, range(count, count + len(agents)), strict=True))
        batch.pad.ids.extend(agents)

    def _aimed(self, pad: ScratchPad, count: int) -> Aim | None:
        """The native helper aimed at the rows of `pad`, grown to `count`; None without native code."""
        if self._quickly is None:
            return None
        room, aim = self._aim
        if room is not pad.room(count):
            room = pad.room(count)
            aim = self._quickly.aim([room[slot] for slot, _ in self._slots])
            self._aim = room, aim
        return aim

    def execute(self, inferer: Inferer) -> dict[int, Response]:
        """Run all waiting agents in the order of the pushes; answers by agent.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> batcher = memojax.Batcher(policy)
        >>> batcher.push(7, {"obs": np.ones(6)})
        >>> answers = batcher.execute(policy)
        >>> list(answers), len(batcher)
        ([7], 0)

        Raises:
            IncompatibleModelError: `inferer` belongs to another model than this batcher.
            MissingInputError: `inferer` needs an input that a wrapper filled when this batcher was made.
        """
        responses = self.run_quickly(inferer) or self.run(inferer)
        emptied = _Batch(self._waiting.pad.emptied(), self._waiting.journal)
        # The assignment in `_start` and the return have nothing between them that could raise.
        return responses if self._start(emptied) is None else {}

    def run_quickly(self, inferer: Inferer) -> dict[int, Response] | None:
        """The answers of `run`, if one compiled plan runs everything and no wrapper keeps state; else None.

        None means that nothing has run. This method records nothing, so after an interrupt the next `execute`
        runs the same rows again.
        """
        batch = self._waiting
        if (
            inferer.quick_api is not self._quick
            or batch.begun
            or batch.gone
            or batch.journal.owed is not None
        ):
            return None
        pad = batch.pad
        n = len(pad.ids)
        outputs = inferer.rows_at_once(pad.first(n), n) if n else None
        if outputs is None:
            return None
        return responses_of(self._outputs, pad.ids, [owned(rows) for rows in outputs])

    def run(self, inferer: Inferer) -> dict[int, Response]:
        """All answers, which stay available until `clear` forgets the agents; `execute` adds that step.

        Raises:
            IncompatibleModelError, MissingInputError: as for `execute`.
        """
        if inferer.raw_api is not self._raw or inferer.api is not self._api:
            self._check_fits(inferer)
        batch = self._batch()
        batch.begun = [view for view in batch.begun if view.ran]
        total, done = len(batch.pad.ids), batch.done
        if done < total:
            if next_size(inferer, total - done) == total - done:
                _run_rest(inferer, batch, batch.begun)
            else:
                inferer.with_one_set_of_weights(partial(_run_rest, inferer, batch, batch.begun))
        return self._responses(inferer, batch)

    def clear(self) -> None:
        """Forget all waiting agents."""
        batch = self._waiting if self._waiting.journal.owed is None else self._batch()
        self._waiting = _Batch(batch.pad.emptied(), batch.journal)

    def _replace(
        self,
        batch: _Batch,
        agents: Sequence[int],
        where: Mapping[int, int],
        columns: Sequence[tuple[TensorSpec, list[Any]]],
    ) -> None:
        """Copy states of several agents, some of which already wait in the rows `where`."""
        gathered = [
            (slot, rows_into(spec, agents, column, np.empty((len(agents), *spec.shape), spec.dtype)))
            for (slot, _), (spec, column) in zip(self._slots, columns, strict=True)
        ]
        added = [agent for agent in agents if agent not in where]
        count = len(batch.pad.ids)
        batch.pad.reserve(count + len(added))
        batch.found.update(zip(added, range(count, count + len(added)), strict=True))
        targets = [batch.found[agent] for agent in agents]
        batch.journal.commit(partial(batch.overwrite, targets, gathered, count, added))

    def _check_fits(self, inferer: Inferer) -> None:
        if inferer.raw_api != self._raw:
            raise IncompatibleModelError(
                f"this batcher was made for inputs {self._raw.input_shapes()} and outputs "
                f"{self._raw.output_shapes()}, but this inferer has {inferer.raw_input_shapes()} and "
                f"{inferer.raw_output_shapes()}: make a new Batcher"
            )
        if missing := [spec.name for spec in inferer.api.inputs if spec.name not in self._names]:
            raise MissingInputError(
                missing, self._names, f"{type(inferer).__name__}, another inferer than this batcher's"
            )

    def _responses(self, inferer: Inferer, batch: _Batch) -> dict[int, Response]:
        shown = [spec.name for spec in inferer.api.outputs]
        slots = {spec.name: slot for slot, spec in enumerate(self._raw.outputs)}
        responses: dict[int, Response] = {}
        for view in batch.begun:
            responses |= responses_of(shown, view.ids, [np.array(view.output(slots[name])) for name in shown])
        for agent in {batch.pad.ids[at] for at in batch.gone}:
            if batch.row_of(agent) is None:  # An agent that was pushed again keeps its new answer.
                del responses[agent]
        return responses


def _run_rest(inferer: Inferer, batch: _Batch, ran: Sequence[ScratchPadView]) -> None:
    """Run all rows after `ran`. A repetition drops the answers of the run before."""
    batch.begun = begun = list(ran)
    total, done = len(batch.pad.ids), batch.done
    while done < total:
        view = batch.pad.chunk(done, next_size(inferer, total - done))
        view.whole = 0 if done else total
        # Appended before it runs: `settle` then marks it as run with the same assignment that commits a
        # wrapper's state, so an interrupt cannot separate the two.
        begun.append(view)
        inferer.infer_raw(view)
        if not view.ran:
            view.settle()
        done += len(view)


def batcher_for(inferer: Inferer, capacity: int = DEFAULT_CAPACITY) -> Batcher | LooseBatcher:
    """A batcher that fits `inferer`."""
    check_inferer(inferer)
    return Batcher(inferer, capacity) if inferer.api.is_plain else LooseBatcher(inferer)


@final
class Batched:
    """An inferer with a batcher: `push` as agents come, `execute` once per frame.

    >>> batched = memojax.load(memojax.policies.bundled("acrobot_ppo")).into_batched()
    >>> for agent in (3, 7):
    ...     batched.push(agent, {"obs": np.zeros(6)})
    >>> sorted(batched.execute())
    [3, 7]
    """

    def __init__(self, inferer: Inferer, capacity: int = DEFAULT_CAPACITY):
        """Collect agents for `inferer`."""
        self.inferer = inferer
        self._batcher = batcher_for(inferer, capacity)

    def __repr__(self) -> str:
        """How many agents wait, and for which inferer."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        return Card("Batched", [("agents that wait", str(len(self)))], inner=[card_of(self.inferer)])

    @classmethod
    def wrap(cls, inferer: Inferer) -> Batched:
        """cervo's name for the constructor."""
        return cls(inferer)

    def __len__(self) -> int:
        """Number of waiting agents."""
        return len(self._batcher)

    def push(self, agent: int, state: Mapping[str, Any]) -> None:
        """Copy the state of one agent into the batch; see `Batcher.push`."""
        self._batcher.push(agent, state)

    def extend(self, states: States) -> None:
        """Copy the states of many agents; see `Batcher.extend`."""
        self._batcher.extend(states)

    def execute(self) -> dict[int, Response]:
        """Run all waiting agents; see `Batcher.execute`."""
        return self._batcher.execute(self.inferer)

    def clear(self) -> None:
        """Forget all waiting agents."""
        self._batcher.clear()

    def begin_agent(self, agent: int) -> None:
        """See `Inferer.begin_agent`."""
        self.inferer.begin_agent(agent)

    def end_agent(self, agent: int) -> None:
        """See `Inferer.end_agent`."""
        self.inferer.end_agent(agent)
