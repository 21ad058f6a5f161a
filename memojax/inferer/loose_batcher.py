"""A batcher for models with free dimensions or shared inputs: it keeps each state apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from ..errors import DuplicateIdError, IncompatibleModelError
from ..rows.groups import group_key, rows_of_group
from ..rows.input_checks import as_dtype
from ..rows.states import Response, check_state, responses_of
from .base import Inferer
from .pairs import States, pairs_of

_Waiting = tuple[Any, dict[str, np.ndarray]]


@final
class LooseBatcher:
    """Collects agents until `execute` runs them: one call for each group of equal sizes and static inputs.

    A failing push changes nothing. A failing `execute` loses nothing, and the next `execute` continues where
    it stopped.
    """

    def __init__(self, inferer: Inferer):
        """Collect agents of `inferer`."""
        self._api = inferer.api
        self._waiting: dict[int, _Waiting] = {}
        self._answers: dict[int, Response] = {}

    def __len__(self) -> int:
        """Number of waiting agents."""
        return len(self._waiting)

    def __contains__(self, agent: int) -> bool:
        """Whether the agent waits and has not run in an `execute` that failed later."""
        return agent in self._waiting and agent not in self._answers

    @property
    def agents(self) -> list[int]:
        """The waiting agents."""
        return list(self._waiting)

    @property
    def begun(self) -> bool:
        """Whether an `execute` failed after some agents had run."""
        return bool(self._answers)

    def run_quickly(self, inferer: Inferer) -> dict[int, Response] | None:
        """None: groups of agents have no fast way; see `Batcher.run_quickly`."""

    def push(self, agent: int, state: Mapping[str, Any], *, replace: bool = False) -> None:
        """Copy the state of one agent; see `Batcher.push`.

        Raises:
            DuplicateIdError: the agent is in this batch already.
            InputError: the state does not fit the model.
        """
        if agent in self._waiting and not (replace and agent in self):
            raise DuplicateIdError(
                f"agent {agent} is in this batch already: execute it first, or push one state per agent"
            )
        self._waiting[agent] = self._checked(agent, state)

    def extend(self, states: States, *, replace: bool = False) -> None:
        """Copy the states of many agents: all of them or, on an error, none.

        Raises:
            DuplicateIdError, InputError: as for `push`.
        """
        checked: dict[int, _Waiting] = {}
        for agent, state in pairs_of(states):
            if agent in checked or (agent in self._waiting and not (replace and agent in self)):
                raise DuplicateIdError(
                    f"agent {agent} is in this batch already: execute it first, or push one state per agent"
                )
            checked[agent] = self._checked(agent, state)
        self._waiting = {**self._waiting, **checked}

    def discard(self, agent: int) -> bool:
        """Forget a waiting agent; True if there was one."""
        return self._waiting.pop(agent, None) is not None

    def states(self) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The waiting agents with their states."""
        return [(agent, arrays) for agent, (_, arrays) in self._waiting.items()]

    def execute(self, inferer: Inferer) -> dict[int, Response]:
        """Run all waiting agents; answers by agent, in the order of the pushes.

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs than this batcher's.
        """
        answers = self.run(inferer)
        # The assignments at the end of `clear` and the return have nothing between them that could raise.
        return answers if self.clear() is None else {}

    def run(self, inferer: Inferer) -> dict[int, Response]:
        """All answers, which stay available until `clear` forgets the agents; `execute` adds that step.

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs than this batcher's.
        """
        if inferer.api != self._api:
            raise IncompatibleModelError(
                f"this batcher was made for {self._api}, but the inferer has {inferer.api}: make a new one"
            )
        groups: dict[Any, list[int]] = {}
        for agent, (key, _) in self._waiting.items():
            if agent not in self._answers:
                groups.setdefault(key, []).append(agent)
        for members in groups.values():
            rows = rows_of_group(self._api, members, [self._waiting[agent][1] for agent in members])
            outputs = inferer.infer_arrays(rows, ids=members)
            values = [np.array(value) for value in outputs.values()]
            self._answers = {**self._answers, **responses_of(list(outputs), members, values)}
        return {agent: self._answers[agent] for agent in self._waiting}

    def clear(self) -> None:
        """Forget all waiting agents."""
        self._waiting, self._answers = {}, {}

    def _checked(self, agent: int, state: Mapping[str, Any]) -> _Waiting:
        check_state(self._api.inputs, agent, state)
        arrays = {spec.name: np.array(as_dtype(spec, state[spec.name])) for spec in self._api.inputs}
        return group_key(self._api, agent, arrays), arrays
