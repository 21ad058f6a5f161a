"""PettingZoo's parallel environments: several agents act at once, each with its own spaces."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from ..errors import EvaluationError
from ._worker import check_reward
from .envs import EnvPool, LocalPool, failed


@dataclass(frozen=True)
class TeamOutcome:
    """The result of a reset or a step of a parallel environment.

    Attributes:
        seen: agent -> (observation, action mask), for the agents that act next.
        rewards: agent -> reward.
        terminated: whether the task has ended the episode.
        truncated: whether a limit has ended it for all remaining agents.
    """

    seen: Mapping[str, tuple[Any, Any]]
    rewards: Mapping[str, float]
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class AgentSpaces:
    """The spaces of one agent, for `connect`."""

    name: str
    observation_space: Any
    action_space: Any


@final
class ParallelPool(EnvPool):
    """Parallel environments in this process."""

    def __init__(self, local: LocalPool):
        """Take over the environments of `local`."""
        self._local = local
        self._envs = local.envs
        name = (getattr(self._envs[0], "metadata", None) or {}).get("name")
        self.name: str = name or local.name
        self.agents: list[str] = [str(agent) for agent in self._envs[0].possible_agents]
        self._keys = {str(agent): agent for agent in self._envs[0].possible_agents}

    def spaces_of(self, agent: str) -> AgentSpaces:
        """The spaces of an agent."""
        env, key = self._envs[0], self._keys[agent]
        return AgentSpaces(f"{self.name} ({agent})", env.observation_space(key), env.action_space(key))

    def reset(self, seeds: Mapping[int, int]) -> list[TeamOutcome]:
        return [self._reset(slot, seed) for slot, seed in seeds.items()]

    def step(self, actions: Mapping[int, Any]) -> list[TeamOutcome]:
        return [self._step(slot, action) for slot, action in actions.items()]

    def seen(self, outcome: TeamOutcome) -> Mapping[str, tuple[Any, Any]]:
        return outcome.seen

    def rewards(self, outcome: TeamOutcome) -> Mapping[str, float]:
        return outcome.rewards

    def joint(self, actions: Mapping[str, Any]) -> Any:
        return {self._keys[agent]: action for agent, action in actions.items()}

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._local.close()

    def _reset(self, slot: int, seed: int) -> TeamOutcome:
        try:
            observations, infos = self._envs[slot].reset(seed=seed)
            if not self._envs[slot].agents:
                raise ValueError("reset left no agents in `agents`")
            return TeamOutcome(self._seen(slot, observations, infos), {})
        except Exception as cause:
            raise failed(self.name, slot, "reset", f"{type(cause).__name__}: {cause}") from cause

    def _step(self, slot: int, actions: Mapping[Any, Any]) -> TeamOutcome:
        try:
            observations, rewards, ended, _, infos = self._envs[slot].step(dict(actions))
            seen = self._seen(slot, observations, infos)
            counted = {str(agent): check_reward(reward) for agent, reward in rewards.items()}
            # The task may end an agent in the step that also reaches the limit; then the task counts.
            over = not seen
            by_task = over and any(ended.values())
            return TeamOutcome(seen, counted, by_task, over and not by_task)
        except Exception as cause:
            raise failed(self.name, slot, "step", f"{type(cause).__name__}: {cause}") from cause

    def _seen(self, slot: int, observations: Any, infos: Any) -> dict[str, tuple[Any, Any]]:
        return {
            str(agent): (observations[agent], (infos.get(agent) or {}).get("action_mask"))
            for agent in self._envs[slot].agents
        }


def policy_names(agents: list[str], given: Mapping[str, Any]) -> dict[str, str]:
    """Agent -> key of its policy: the agent's name, with or without the number at its end (`archer_0`).

    Raises:
        EvaluationError: an agent has no policy, or a policy has no agent.
    """
    chosen = {agent: agent if agent in given else agent.rpartition("_")[0] for agent in agents}
    missing = [agent for agent, key in chosen.items() if key not in given]
    idle = [key for key in given if key not in chosen.values()]
    if missing or idle:
        what = f"no policy for agent {missing[0]!r}" if missing else f"no agent for policy {idle[0]!r}"
        raise EvaluationError(
            f"{what}: the agents are {', '.join(agents)}; policies were given for "
            f"{', '.join(map(str, given))}"
        )
    return chosen
