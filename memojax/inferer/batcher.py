"""From agents that come one by one to batches: `Batcher` collects, `Batched` is a batcher with its inferer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np

from ..display import Card, card_of, html_of, text_of
from ..errors import DuplicateIdError, IncompatibleModelError, MissingInputError
from ..model.signature import TensorSpec
from ..rows.scratch import DEFAULT_CAPACITY, ScratchPad, ScratchPadView
from ..rows.states import Response, check_names, columns_of, responses_of, row_of, rows_into
from .base import Inferer, check_inferer, next_size
from .loose_batcher import LooseBatcher
from .pairs import States, pairs_of


@final
class Batcher:
    """Collects the states of agents until `execute` runs them all.

    Reuse it over frames: its memory stays. A push that fails changes nothing; an `execute` that fails loses nothing, and the next one
    goes on where it stopped.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> batcher = memojax.Batcher(policy)
    >>> batcher.push(3, {"obs": np.zeros(6)})
    >>> batcher.execute(policy)[3]["logits"].shape
    (3,)
    """

    def __init__(self, inferer: Inferer, capacity: int = DEFAULT_CAPACITY):
        """Room for `capacity` agents of `inferer`; it grows."""
        check_inferer(inferer)
        if not inferer.api.is_plain:
            raise IncompatibleModelError(
                f"agents of this model may differ in shape ({inferer.api}), which one scratch pad cannot hold: use into_batched()"
            )
        self._raw = inferer.raw_api
        self._scratch = ScratchPad(self._raw.inputs, self._raw.outputs, capacity)
        self._finished: list[ScratchPadView] = []
        self._rows: dict[int, int] = {}
        self._gone: set[int] = set()
        self._api = inferer.api
        names = [spec.name for spec in self._raw.inputs]
        self._slots = [(names.index(spec.name), spec) for spec in self._api.inputs]
        self._names = {spec.name for spec in self._api.inputs}

    def __repr__(self) -> str:
        return f"Batcher({len(self)} agents wait, inputs {', '.join(sorted(self._names))})"

    def __len__(self) -> int:
        """Agents that wait."""
        return self._scratch.batch_size

    def __contains__(self, agent: int) -> bool:
        """Whether the agent waits, and no `execute` that failed has come past it."""
        return self._rows.get(agent, -1) >= self._done

    @property
    def agents(self) -> list[int]:
        """Agents that wait."""
        return list(self._rows)

    @property
    def begun(self) -> bool:
        """Whether an `execute` failed after some rows had run."""
        return bool(self._finished)

    @property
    def _done(self) -> int:
        return sum(map(len, self._finished))

    def push(self, agent: int, state: Mapping[str, Any], *, replace: bool = False) -> None:
        """Copy the state of one agent into the batch; with `replace`, in the place of the state that waits.

        Raises:
            DuplicateIdError: the agent waits already.
            InputError: an unknown, missing, misshapen or mistyped input.
        """
        if agent in self._rows and not (replace and agent in self):
            raise DuplicateIdError(
                f"agent {agent} is in this batch already: execute it first, or push one state per agent"
            )
        try:
            known = state.keys() == self._names
        except AttributeError:
            known = False
        if not known:
            check_names(self._api.inputs, agent, state)
        rows = [(slot, row_of(spec, agent, state[spec.name])) for slot, spec in self._slots]
        at = self._rows.get(agent)
        if at is not None:
            for slot, row in rows:
                self._scratch.rows(slot, at, at + 1)[0] = row
            return
        self._rows[agent] = self._scratch.batch_size
        self._scratch.next(agent)
        for slot, row in rows:
            self._scratch.push(slot, row)

    def discard(self, agent: int) -> bool:
        """Forget an agent that waits; whether there was one."""
        at = self._rows.pop(agent, None)
        if at is None:
            return False
        if at < self._done:
            self._gone.add(agent)
            return True
        last = self._scratch.batch_size - 1
        if at != last:
            for slot in range(len(self._raw.inputs)):
                self._scratch.rows(slot, at, at + 1)[:] = self._scratch.rows(slot, last, last + 1)
            moved = self._scratch.ids[at] = self._scratch.ids[last]
            self._rows[moved] = at
        self._scratch.truncate(last)
        return True

    def extend(self, states: States, *, replace: bool = False) -> None:
        """Copy the states of many agents, with one gather per input; either all are taken or none. `replace` is as for `push`.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> batcher = memojax.Batcher(policy)
        >>> batcher.extend({3: {"obs": np.zeros(6)}, 7: {"obs": np.ones(6)}})
        >>> len(batcher), 7 in batcher
        (2, True)

        Raises:
            DuplicateIdError, InputError: as for `push`.
        """
        pairs = pairs_of(states)
        agents = [agent for agent, _ in pairs]
        known = not self._rows.keys().isdisjoint(agents)
        if (
            len(set(agents)) < len(agents)
            or (known and not replace)
            or (known and not self._replaceable(agents))
        ):
            twice = next(
                agent for index, agent in enumerate(agents) if agent in self._rows or agent in agents[:index]
            )
            raise DuplicateIdError(
                f"agent {twice} is in this batch already: execute it first, or push one state per agent"
            )
        columns = columns_of(self._api.inputs, agents, [state for _, state in pairs])
        if known:
            self._replace(agents, columns)
            return
        count = self._scratch.batch_size
        self._scratch.reserve(count + len(agents))
        for (slot, spec), (_, column) in zip(self._slots, columns, strict=True):
            rows_into(spec, agents, column, self._scratch.rows(slot, count, count + len(agents)))
        self._scratch.ids.extend(agents)
        self._rows.update(zip(agents, range(count, count + len(agents)), strict=True))

    def execute(self, inferer: Inferer) -> dict[int, Response]:
        """Run everything that waits, in the order it was pushed, and answer by agent.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> batcher = memojax.Batcher(policy)
        >>> batcher.push(7, {"obs": np.ones(6)})
        >>> answers = batcher.execute(policy)
        >>> list(answers), len(batcher)
        ([7], 0)

        Raises:
            IncompatibleModelError: `inferer` is of another model than the one that this batcher was made for.
            MissingInputError: a wrapper filled an input of that one, which `inferer` wants from callers.
        """
        if inferer.raw_api is not self._raw or inferer.api is not self._api:
            self._check_fits(inferer)
        total = self._scratch.batch_size
        done = self._done
        while done < total:
            view = self._scratch.chunk(done, next_size(inferer, total - done))
            view.whole = 0 if done else total
            inferer.infer_raw(view)
            self._finished.append(view)
            done += len(view)
        responses = self._responses(inferer)
        self.clear()
        return responses

    def clear(self) -> None:
        """Forget everything that waits."""
        self._scratch.clear()
        self._finished.clear()
        self._rows.clear()
        self._gone.clear()

    def _replaceable(self, agents: Iterable[int]) -> bool:
        done = self._done
        return all(self._rows.get(agent, done) >= done for agent in agents)

    def _replace(self, agents: Sequence[int], columns: Sequence[tuple[TensorSpec, list[Any]]]) -> None:
        """Write the states of agents some of which wait already."""
        gathered = [
            rows_into(spec, agents, column, np.empty((len(agents), *spec.shape), spec.dtype))
            for spec, column in columns
        ]
        for agent in agents:
            if agent not in self._rows:
                self._rows[agent] = self._scratch.batch_size
                self._scratch.next(agent)
        where = [self._rows[agent] for agent in agents]
        for (slot, _), rows in zip(self._slots, gathered, strict=True):
            self._scratch.rows(slot, 0, self._scratch.batch_size)[where] = rows

    def _check_fits(self, inferer: Inferer) -> None:
        if inferer.raw_api != self._raw:
            raise IncompatibleModelError(
                f"this batcher was made for inputs {self._raw.input_shapes()} and outputs {self._raw.output_shapes()}, the inferer has "
                f"{inferer.raw_input_shapes()} and {inferer.raw_output_shapes()}: make a new Batcher"
            )
        if missing := [spec.name for spec in inferer.api.inputs if spec.name not in self._names]:
            raise MissingInputError(
                missing, self._names, f"{type(inferer).__name__}, for which this batcher was not made"
            )

    def _responses(self, inferer: Inferer) -> dict[int, Response]:
        shown = [spec.name for spec in inferer.api.outputs]
        slots = {spec.name: slot for slot, spec in enumerate(self._raw.outputs)}
        responses: dict[int, Response] = {}
        for view in self._finished:
            responses |= responses_of(shown, view.ids, [np.array(view.output(slots[name])) for name in shown])
        for agent in self._gone - self._rows.keys():
            del responses[agent]
        return responses


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
        """Agents that wait."""
        return len(self._batcher)

    def push(self, agent: int, state: Mapping[str, Any]) -> None:
        """Copy the state of one agent into the batch; see `Batcher.push`."""
        self._batcher.push(agent, state)

    def extend(self, states: States) -> None:
        """Copy the states of many agents; see `Batcher.extend`."""
        self._batcher.extend(states)

    def execute(self) -> dict[int, Response]:
        """Run everything that waits; see `Batcher.execute`."""
        return self._batcher.execute(self.inferer)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._batcher.clear()

    def begin_agent(self, agent: int) -> None:
        """See `Inferer.begin_agent`."""
        self.inferer.begin_agent(agent)

    def end_agent(self, agent: int) -> None:
        """See `Inferer.end_agent`."""
        self.inferer.end_agent(agent)
