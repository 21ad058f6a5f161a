"""Answers each agent by one of the weight sets of a `PolicyPool`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import final

from ..errors import UnknownAgentError
from ..lowering.typed_model import TypedModel
from .pool import InfererOfPool, PolicyPool


@final
class PoolSeats(InfererOfPool):
    """Answers each agent by the weight set that was assigned to it."""

    def __init__(self, pool: PolicyPool):
        """Begin without agents."""
        super().__init__(pool)
        self._assigned: dict[int, Hashable] = {}

    @property
    def typed(self) -> TypedModel:
        """The network with the weights of its file."""
        return self.pool.network

    def assign(self, agent: int, name: Hashable) -> None:
        """Let the set `name` answer `agent`, until the agent ends."""
        self._assigned[agent] = name

    def end_agent(self, agent: int) -> None:
        self._assigned.pop(agent, None)

    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        ids = range(n) if ids is None else ids
        if missing := [agent for agent in ids if agent not in self._assigned]:
            raise UnknownAgentError(f"no weight set is assigned to agent {missing[0]}: call assign first")
        return [self._assigned[agent] for agent in ids]
