"""Hidden state by agent: an agent's state outputs become its state inputs at the next call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np

from ..errors import IncompatibleModelError
from ..inferer.base import Inferer, check_inferer
from ..model.signature import ModelApi
from ..rows.scratch import ScratchPadView
from ..spaces.hidden_state import RecurrentInfo as RecurrentInfo
from ..spaces.hidden_state import checked_pairs
from ..spaces.hidden_state import find_pairs as find_pairs
from .agent_states import AgentStates
from .base import BaseWrapper, InfererWrapper, LayeredInferer


@final
class RecurrentTrackerWrapper(InfererWrapper):
    """Keeps the hidden state of each agent around an inferer that can be swapped; see `RecurrentTracker`.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> tracker = memojax.RecurrentTrackerWrapper(memojax.BaseWrapper(), policy)
    >>> stateful = policy.into_stateful(tracker)
    >>> stateful.begin_agent(3)
    >>> answer = stateful.infer_batch({3: {"obs": np.zeros(2)}})
    >>> bool(tracker.states(3)["h_in"].any())
    True
    """

    def __init__(self, inner: InfererWrapper, inferer: Inferer, infos: Iterable[RecurrentInfo] | None = None):
        """Track `infos` of `inferer` outside of the wrapper `inner`; None tracks the result of `find_pairs`.

        Raises:
            UnknownInputError: the model lacks such an input, or `inner` hides it.
            IncompatibleModelError: the model lacks such an output, a pair does not fit together, or no pair
                was found.
        """
        check_inferer(inferer)
        around = inner.api(inferer)
        self.infos: tuple[RecurrentInfo, ...] = tuple(find_pairs(around) if infos is None else infos)
        self._inner = inner
        self._pairs = checked_pairs(around, self.infos)
        raw = inferer.raw_api
        self._inslots = [raw.inputs.index(into) for into, _ in self._pairs]
        self._outslots = [raw.outputs.index(out) for _, out in self._pairs]
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
            UnknownAgentError: `agent` has not begun, or has ended.
        """
        return self._states.read(agent)

    def set_state(self, agent: int, state: Mapping[str, Any]) -> None:
        """Replace the given parts of the state of `agent`.

        Raises:
            UnknownAgentError: `agent` has not begun, or has ended.
            InputError: an unknown name, or another shape or dtype; the state does not change.
        """
        self._states.write(agent, state)

    def api(self, inferer: Inferer) -> ModelApi:
        around = self._inner.api(inferer)
        if self._seen is None or self._seen[0] is not around:
            raw = inferer.raw_api
            for (into, out), inslot, outslot in zip(self._pairs, self._inslots, self._outslots, strict=True):
                if raw.inputs[inslot : inslot + 1] != (into,) or raw.outputs[outslot : outslot + 1] != (out,):
                    raise IncompatibleModelError(
                        f"this wrapper keeps {into} <- {out}, but the inferer has {around}: make a new one"
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
        outermost = view.enter(self)
        try:
            ticket = self._states.gather(view, self._inslots)
            self._inner.invoke(inferer, view)
            self._states.stage(ticket, view, list(map(view.output, self._outslots)))
        except BaseException:
            if outermost:
                view.leave()
            raise
        if outermost:
            view.settle()

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        # This wrapper begins last and ends first. An agent that it does not know counts as unknown, whatever
        # an interrupt has left in the inner layers.
        self._inner.begin_agent(inferer, agent)
        self._states.begin(agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        self._states.end(agent)
        self._inner.end_agent(inferer, agent)


@final
class RecurrentTracker(LayeredInferer):
    """Keeps the hidden state of each agent of the inferer that it owns; callers no longer see the state.

    `begin_agent` begins an agent or resets its state, and `end_agent` forgets it. Vectorised environments
    call `infer_arrays` without `ids`. Rows then belong to agents 0, 1, ..., begun at their first call, and
    `dones` resets the rows of new episodes. The state changes only after the model has run. Threads may run
    disjoint agents at the same time. For `jax.Array` rows the state stays on their device.

    >>> policy = memojax.RecurrentTracker.wrap(memojax.load(memojax.policies.bundled("recurrent_lstm")))
    >>> rows = {"obs": np.zeros((3, 2), np.float32)}
    >>> first, second = policy.infer_arrays(rows)["logits"], policy.infer_arrays(rows)["logits"]
    >>> fresh = policy.infer_arrays(rows, dones=[True, True, True])["logits"]
    >>> bool((second == first).all()), bool((fresh == first).all())
    (False, True)
    """

    def __init__(self, inferer: Inferer, infos: Iterable[RecurrentInfo]):
        """Track `infos`; the method `wrap` finds them by itself.

        Raises:
            UnknownInputError: the model lacks such an input.
            IncompatibleModelError: the model lacks such an output, or a pair does not fit together.
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
        """The tracked pairs of inputs and outputs."""
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
