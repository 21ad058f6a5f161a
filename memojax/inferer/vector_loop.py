"""The loop of a policy over a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SpaceMismatchError

_NEXT, _SAME = "NextStep", "SameStep"


@dataclass(frozen=True)
class VectorStep:
    """One step of all environments.

    Attributes:
        observations: the policy's input, as the environment gave it.
        actions: `[n, *action_shape]`.
        rewards: float[n].
        terminated, truncated: bool[n].
        infos: the environment's.
        played: bool[n], False where this step only reset an environment, so that its action and its reward
            mean nothing (Gymnasium's "NextStep" autoreset).
    """

    observations: Any
    actions: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: Any
    played: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        """bool[n]: whether an episode ended in this step."""
        return self.terminated | self.truncated


def vector_steps(
    predict: Callable[..., tuple[Any, Any]], envs: Any, seed: int | None, deterministic: bool
) -> Iterator[VectorStep]:
    """Step `envs` without end; hidden state begins anew with the first observation of each episode.

    Raises:
        SpaceMismatchError: `envs` is no vector environment, or does not reset its environments itself.
    """
    count, mode = (
        getattr(envs, "num_envs", None),
        (getattr(envs, "metadata", None) or {}).get("autoreset_mode"),
    )
    mode = getattr(mode, "value", mode) or _NEXT
    if count is None or mode not in (_NEXT, _SAME):
        raise SpaceMismatchError(
            f"steps needs a vector environment that resets itself ({_NEXT} or {_SAME}), as "
            f"gymnasium.make_vec makes it; got {type(envs).__name__} with autoreset_mode {mode!r}"
        )
    observations, _ = envs.reset(seed=seed)
    state, starts = None, np.ones(count, bool)
    idle = np.zeros(count, bool)
    while True:
        actions, state = predict(observations, state, starts, deterministic)
        following, rewards, terminated, truncated, infos = envs.step(actions)
        step = VectorStep(observations, actions, rewards, terminated, truncated, infos, ~idle)
        yield step
        # With NextStep, the step after an episode's end only resets: the new episode starts after it.
        starts, idle = (idle, step.ended) if mode == _NEXT else (step.ended, idle)
        observations = following
