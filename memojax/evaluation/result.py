"""What an evaluation found: returns with their uncertainty, and what the inferer did for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..display import Card, PlanRow, html_of
from ..errors import MissingPackageError
from ..plans.plan import PlanInfo
from .drawing import plot
from .statistics import (
    BOOTSTRAPS,
    bootstrap_interval,
    deviation,
    interquartile_mean,
    plus_minus,
    student_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Attributes:
        index: its number, from 0.
        seed: what its environment was reset with.
        total: sum of rewards; of several agents, over all of them.
        length: steps.
        truncated: whether a limit of steps ended it rather than the task.
        agents: agent -> sum of its rewards, in an environment with several agents.
    """

    index: int
    seed: int
    total: float
    length: int
    truncated: bool
    agents: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `memojax.evaluate`; arrays are in the order of the episodes' numbers.

    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), "Acrobot-v1", episodes=2, num_envs=2)
    >>> low, high = result.confidence_interval()
    >>> low <= result.mean_return <= high
    True

    Attributes:
        model: name of the policy.
        env_id: name of the environment.
        episodes: finished episodes.
        asked: how many episodes were asked for.
        num_envs: environments that ran side by side.
        deterministic: whether the policy was asked for its best action rather than for a drawn one.
        steps: environment steps, those of unfinished episodes too.
        seconds: wall clock from the first reset to the last step; environments and workers are made before.
        policy_seconds: the part of it that the inferer took, compiles included.
        compile_seconds: what plans took that were not there before; a plan that was made ahead is no part of
            `policy_seconds`.
        batch_sizes: batch size -> number of calls.
        call_us: batch size -> median microseconds of a call as seen from here; the first call of a size is
            left out, so that a size called once is not there.
        plans: plans of the inferer; `calls` counts this evaluation's only.
        padded_rows: rows that were computed only to fill a plan.
        action: how the action was read from the outputs.
        feeds: how the inputs were fed.
        observation_transforms, action_transforms: what happened to observations before the model, to actions
            after it.
        advice: what looks like a mistake, a sentence each.
        metadata: what the model file says about itself.
        interrupted: whether it was stopped (Ctrl-C, or an error that carries this as `partial`).
    """

    model: str
    env_id: str
    episodes: tuple[Episode, ...]
    asked: int
    num_envs: int
    deterministic: bool
    steps: int
    seconds: float
    policy_seconds: float
    compile_seconds: float
    batch_sizes: Mapping[int, int]
    call_us: Mapping[int, float]
    plans: Sequence[PlanInfo]
    action: str = ""
    feeds: Sequence[str] = ()
    observation_transforms: Sequence[str] = ()
    action_transforms: Sequence[str] = ()
    advice: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    padded_rows: int = 0

    @property
    def returns(self) -> np.ndarray:
        """float64[episodes]: sum of rewards."""
        return np.array([episode.total for episode in self.episodes], np.float64)

    @property
    def lengths(self) -> np.ndarray:
        """int64[episodes]: steps."""
        return np.array([episode.length for episode in self.episodes], np.int64)

    @property
    def seeds(self) -> np.ndarray:
        """int64[episodes]: what each environment was reset with."""
        return np.array([episode.seed for episode in self.episodes], np.int64)

    @property
    def mean_return(self) -> float:
        """Mean over episodes; NaN where none has finished."""
        return float(self.returns.mean()) if self.episodes else math.nan

    @property
    def std_return(self) -> float:
        """Sample standard deviation over episodes; NaN for fewer than two."""
        return deviation(self.returns)

    @property
    def standard_error(self) -> float:
        """Of the mean return; NaN for fewer than two episodes."""
        return self.std_return / math.sqrt(len(self.episodes)) if self.episodes else math.nan

    @property
    def interquartile_mean(self) -> float:
        """Mean of the middle half of the returns (rliable's IQM), which a few odd episodes do not move."""
        return float(interquartile_mean(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean steps of an episode; NaN where none has finished."""
        return float(self.lengths.mean()) if self.episodes else math.nan

    @property
    def steps_per_second(self) -> float:
        """Environment steps over wall clock, compiles included."""
        return self.steps / self.seconds if self.seconds else math.nan

    @property
    def environment_seconds(self) -> float:
        """Wall clock that was not the policy's."""
        return max(0.0, self.seconds - self.policy_seconds)

    def plan_size(self, size: int) -> int | None:
        """The plan that a batch of `size` ran on: the smallest that holds it; None where it was split or has
        no plan."""
        return min((plan.size for plan in self.plans if plan.size >= size), default=None)

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the mean return; NaN for fewer than two episodes."""
        return student_interval(self.returns, level)

    def interquartile_interval(
        self, level: float = 0.95, repetitions: int = BOOTSTRAPS, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrapped percentile interval for the interquartile mean (rliable's); NaN for fewer than two
        episodes."""
        return bootstrap_interval(self.returns, level, repetitions, seed)

    def agent_returns(self, agent: str) -> np.ndarray:
        """float64[episodes]: sum of the rewards of one agent of several; NaN where it never appeared."""
        return np.array([episode.agents.get(agent, math.nan) for episode in self.episodes], np.float64)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the returns and the time per call; see `memojax.evaluation.plot`, which takes several
        evaluations."""
        return plot(self, path)

    def rows(self) -> list[dict[str, Any]]:
        """One row per episode, column -> value."""
        return [
            {
                "model": self.model,
                "env_id": self.env_id,
                "episode": episode.index,
                "seed": episode.seed,
                "return": episode.total,
                "length": episode.length,
                "truncated": episode.truncated,
                **{f"return of {agent}": total for agent, total in episode.agents.items()},
            }
            for episode in self.episodes
        ]

    def to_frame(self) -> Any:
        """The episodes as a `pandas.DataFrame`, one row each.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as cause:
            raise MissingPackageError("pandas", "Evaluation.to_frame", "frame") from cause
        return pandas.DataFrame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        low, high = self.confidence_interval()
        return {
            "model": self.model,
            "env_id": self.env_id,
            "episodes": len(self.episodes),
            "episodes_asked": self.asked,
            "interrupted": self.interrupted,
            "deterministic": self.deterministic,
            "num_envs": self.num_envs,
            "mean_return": self.mean_return,
            "standard_error": self.standard_error,
            "std_return": self.std_return,
            "confidence_interval_95": [low, high],
            "interquartile_mean": self.interquartile_mean,
            "interquartile_interval_95": list(self.interquartile_interval()),
            "mean_length": self.mean_length,
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            "policy_seconds": self.policy_seconds,
            "compile_seconds": self.compile_seconds,
            "indices": [episode.index for episode in self.episodes],
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "seeds": self.seeds.tolist(),
            "truncated": [episode.truncated for episode in self.episodes],
            "batch_sizes": {str(size): count for size, count in self.batch_sizes.items()},
            "call_us": {str(size): value for size, value in self.call_us.items()},
            "plans": [{**vars(plan), "mixing": list(plan.mixing)} for plan in self.plans],
            "padded_rows": self.padded_rows,
            "action": self.action,
            "feeds": list(self.feeds),
            "observation_transforms": list(self.observation_transforms),
            "action_transforms": list(self.action_transforms),
            "advice": list(self.advice),
            "agent_returns": [dict(episode.agents) for episode in self.episodes],
            "metadata": dict(self.metadata),
        }

    def __str__(self) -> str:
        spoken = "".join(f"; {side}: {', '.join(done)}" for side, done in self.transforms())
        return (
            f"{self.model} on {self.env_id}: return {plus_minus(self.mean_return, self.standard_error)}, "
            f"length {self.mean_length:.1f}, {self.steps_per_second:,.0f} steps per second "
            f"({self._count()}{spoken})"
        )

    __repr__ = __str__

    def transforms(self) -> list[tuple[str, Sequence[str]]]:
        """("observations", what happened to them) and ("actions", ...), as far as something did."""
        sides = ("observations", self.observation_transforms), ("actions", self.action_transforms)
        return [(side, done) for side, done in sides if done]

    def _count(self) -> str:
        if not self.interrupted:
            return f"{len(self.episodes)} episodes"
        return f"{len(self.episodes)} of {self.asked} episodes, interrupted"

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        mean, middle = self.confidence_interval(), self.interquartile_interval()
        how = "deterministic" if self.deterministic else "stochastic"
        facts = [
            ("episodes", f"{self._count()}, {self.num_envs} side by side, {how}"),
            ("return", f"{plus_minus(self.mean_return, self.standard_error)}   ({_between(mean)})"),
            ("interquartile mean", f"{self.interquartile_mean:.4g}   ({_between(middle)})"),
            ("length", f"{self.mean_length:.1f}"),
            (
                "speed",
                f"{self.steps_per_second:,.0f} steps per second, {self.steps:,} in {self.seconds:.1f} s",
            ),
            ("inputs", ", ".join(self.feeds)),
            ("action", self.action),
            *((side, ", ".join(done)) for side, done in self.transforms()),
        ]
        plans = [PlanRow(plan) for plan in self.plans]
        title = f"{self.model} on {self.env_id}"
        return Card(title, [fact for fact in facts if fact[1]], plans=plans or None, warnings=self.advice)


def _between(interval: tuple[float, float]) -> str:
    return f"95 % interval {interval[0]:.4g} to {interval[1]:.4g}"
