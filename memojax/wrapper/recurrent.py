"""Hidden state, kept by agent: what a policy gives out of one call goes in with the next call of the same agent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..errors import (
    IncompatibleModelError,
    UnknownInputError,
)
from ..exporter_names import COMMON_STATE, EQUAL_STATE, TENSORFLOW_STATE
from ..inferer.base import Inferer, check_inferer
from ..model.signature import ModelApi, TensorSpec
from ..rows.scratch import ScratchPadView
from ..rows.states import can_cast
from .agent_states import AgentStates
from .base import BaseWrapper, InfererWrapper, LayeredInferer


@dataclass(frozen=True)
class RecurrentInfo:
    """One piece of hidden state: the input that takes it, and the output that gives it for the next call.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> pairs = [memojax.RecurrentInfo("h_in", "h_out"), memojax.RecurrentInfo("c_in", "c_out")]
    >>> memojax.RecurrentTracker(policy, pairs).input_shapes()
    [('obs', [2])]
    """

    inkey: str
    outkey: str


@final
class RecurrentTrackerWrapper(InfererWrapper):
    """Keeps the hidden state of each agent; to be stacked around an inferer that can be swapped. See `RecurrentTracker`.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> tracker = memojax.RecurrentTrackerWrapper(memojax.BaseWrapper(), policy)
    >>> stateful = policy.into_stateful(tracker)
    >>> stateful.begin_agent(3)
    >>> answer = stateful.infer_batch({3: {"obs": np.zeros(2)}})
    >>> bool(tracker.states(3)["h_in"].any())
    True
    """

    def __init__(self, inner: InfererWrapper, inferer: Inferer, infos: Iterable[RecurrentInfo] | None = None):
        """Track `infos` of `inferer`, or the pairs that `find_pairs` finds, outside of `inner`.

        Raises:
            UnknownInputError: there is no such input, or `inner` hides it.
            IncompatibleModelError: there is no such output, a pair does not fit together, or no pairs are found.
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
        """Replace the state of `agent`, or the part of it that is given.

        Raises:
            UnknownAgentError: `agent` was never begun, or has ended.
            InputError: an unknown name, another shape or dtype; nothing is changed then.
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
        outermost = view.enter(self)
        try:
            ticket = self._states.gather(view, [inslot for inslot, _ in self._slots])
            self._inner.invoke(inferer, view)
            self._states.stage(ticket, view, [view.output(outslot) for _, outslot in self._slots])
        except BaseException:
            if outermost:
                view.leave()
            raise
        if outermost:
            view.settle()

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        # Last in, first out: while this wrapper does not know the agent, nobody does, whatever is inside.
        self._inner.begin_agent(inferer, agent)
        self._states.begin(agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        self._states.end(agent)
        self._inner.end_agent(inferer, agent)


@final
class RecurrentTracker(LayeredInferer):
    """Keeps the hidden state of each agent around the inferer that it owns; neither its inputs nor its outputs are seen outside.

    An agent is begun with `begin_agent` (again: its state is reset) and forgotten with `end_agent`. In `infer_arrays` without `ids`, as
    vectorised environments use it, rows are agents 0, 1, ..., begun when first seen; `dones` resets rows whose episode is new. The
    state changes only when the model has run; threads may run disjoint agents at once. For `jax.Array` rows it is kept on their device.

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
            UnknownInputError: there is no such input.
            IncompatibleModelError: there is no such output, or a pair does not fit together.
        """
        self._tracker = RecurrentTrackerWrapper(BaseWrapper(), inferer, tuple(infos))
        super().__init__(self._tracker, inferer)

    @classmethod
    def wrap(cls, inferer: Inferer) -> RecurrentTracker:
        """Track the pairs that `find_pairs` finds.

        Raises:
            IncompatibleModelError: there are none.
        """
        check_inferer(inferer)
        return cls(inferer, find_pairs(inferer.api))

    @property
    def infos(self) -> tuple[RecurrentInfo, ...]:
        """What is tracked."""
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
    """Inputs that an output of the same shape continues, by name.

    Equal names count first. Where there are none, common pairs do: `h_in` and `h_out`, `state_ins` and `state_outs`, `cache` and
    `cache_out`, `next_cache` or `new_cache`, `h0` and `hn`; and last TensorFlow's `input_2` and `output_2`, unless that would
    leave no input to callers.

    Raises:
        IncompatibleModelError: nothing is found.
    """
    for rules in (EQUAL_STATE, COMMON_STATE, TENSORFLOW_STATE):
        outputs = {spec.name: spec for spec in api.outputs}
        found = []
        for into in api.inputs:
            matches = ((re.fullmatch(pattern, into.name), name) for pattern, name in rules)
            names = [match.expand(name) for match, name in matches if match]
            if name := next((name for name in names if name in outputs and _fits(into, outputs[name])), None):
                del outputs[name]
                found.append(RecurrentInfo(into.name, name))
        if found and (rules is not TENSORFLOW_STATE or len(found) < len(api.inputs)):
            return found
    raise IncompatibleModelError(
        f"no output continues an input by name and shape; the model has {api}: name the pairs, "
        "RecurrentTracker(inferer, [RecurrentInfo(inkey, outkey)])"
    )


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
