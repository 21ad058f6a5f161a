"""Environments of a few lines for the evaluation tests; memojax is not imported here, so that worker
processes start fast."""

from __future__ import annotations

import copy
import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

UNIT = spaces.Box(-1, 1, (2,), np.float32)


class Tiny(gym.Env):
    """Observations drawn from its space; an episode lasts 3 to 8 steps, by its seed; every action must lie in
    the action space.

    The reward is 1 where the action is `action_space`'s smallest or the sum of a Box action.
    """

    def __init__(self, observation_space: Any = UNIT, action_space: Any = None, **at_step: Any):
        self.observation_space = copy.deepcopy(
            observation_space
        )  # sampled from: each environment needs its own stream
        self.action_space = action_space or spaces.Discrete(2)
        self.at_step = at_step
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps, self.length = 0, 3 + int(self.np_random.integers(6))
        return self.observation_space.sample(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action)
        self.steps += 1
        self.happen(self.at_step.get(f"at_{self.steps}"))
        reward = (
            float(np.sum(action))
            if isinstance(self.action_space, spaces.Box)
            else float(np.sum(np.asarray(action) == 0))
        )
        return self.observe(), reward, self.steps >= self.length, False, self.info()

    def happen(self, what: str | None) -> None:
        if what == "raise":
            raise RuntimeError("the simulator lost its mind")
        if what == "die":
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def observe(self) -> Any:
        return self.observation_space.sample()

    def info(self) -> dict[str, Any]:
        return {}


class Wrong(Tiny):
    """Declares one thing and, after some steps, gives another."""

    def observe(self) -> Any:
        return self.at_step["wrong"] if self.steps == 2 else super().observe()


class Masked(Tiny):
    """Allows the last action only."""

    def info(self) -> dict[str, Any]:
        assert isinstance(self.action_space, spaces.Discrete)
        mask = np.zeros(int(self.action_space.n), np.int8)
        mask[-1] = 1
        return {"action_mask": mask}


class Count(Tiny):
    """Shows the number of the step, from 1."""

    def __init__(self) -> None:
        super().__init__(
            spaces.Box(0, np.inf, (1,), np.float32), spaces.Box(-np.inf, np.inf, (1,), np.float32)
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observe(), {}

    def observe(self) -> Any:
        return np.array([self.steps + 1], np.float32)


def tiny() -> gym.Env:
    """A plain one."""
    return Tiny()


def raising() -> gym.Env:
    """Raises in its seventh step, so that short episodes finish."""
    return Tiny(at_7="raise")


def dying() -> gym.Env:
    """Takes its process with it in the seventh step."""
    return Tiny(at_7="die")


def killed() -> gym.Env:
    """Its process is killed from outside in the seventh step, as by the system when memory runs out."""
    return Tiny(at_7="kill")


def shapeless() -> gym.Env:
    """Gives five numbers where it declares two, in its second step."""
    return Wrong(wrong=np.zeros(5, np.float32))


def unmakeable() -> gym.Env:
    """Cannot be made."""
    raise FileNotFoundError("no licence for the simulator")


def late(**_: Any) -> gym.Env:
    """Three good episodes, then it raises: a Pendulum-like environment that is registered as Late-v0."""

    class Late(Tiny):
        episodes = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.episodes += 1
            return super().reset(seed=seed, options=options)

        def happen(self, what: str | None) -> None:
            super().happen("raise" if self.episodes == 4 else None)

    return Late(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-2, 2, (1,), np.float32))


gym.register("Late-v0", late)
