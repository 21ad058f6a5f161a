"""The result of an evaluation: returns with their uncertainty, and the inferer's work."""

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
        index: the episode's number, from 0.
        seed: seed of the environment's reset.
        total: sum of rewards, over all agents.
        length: number of steps.
        truncated: whether a limit of steps ended it, not the task.
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
    """The result of `memojax.evaluate`; arrays are in the order of the episode numbers.

    >>> policy = memojax.policies.bundled("acrobot_ppo")
    >>> result = memojax.evaluate(policy, "Acrobot-v1", episodes=2, num_envs=2)
    >>> low, high = result.confidence_interval()
    >>> low <= result.mean_return <= high
    True

    Attributes:
        model: name of the policy.
        env_id: name of the environment.
        episodes: finished episodes.
        asked: number of episodes asked for.
        num_envs: number of environments side by side.
        deterministic: whether the policy gave its best action, not a drawn one.
        steps: environment steps, including unfinished episodes.
        seconds: wall clock from the first reset to the last step, without the making of environments.
        policy_seconds: the inferer's part of `seconds`, compiles included.
        compile_seconds: compile time of plans that did not exist before; `policy_seconds` does not include
            plans compiled ahead.
        batch_sizes: batch size -> number of calls.
        call_us: batch size -> median microseconds of a call, measured here. The first call of a size is left
            out, so a size called once is missing.
        plans: plans of the inferer; `calls` counts only this evaluation.
        padded_rows: rows computed only to fill a plan.
        action: how the outputs gave the action.
        feeds: how the inputs were fed.
        observation_transforms, action_transforms: transforms of observations before the model, of actions
            after it.
        advice: likely mistakes, one sentence each.
        metadata: metadata of the model file.
        interrupted: whether it was stopped by Ctrl-C, or by an error that carries this as `partial`.
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
        """int64[episodes]: number of steps."""
        return np.array([episode.length for episode in self.episodes], np.int64)

    @property
    def seeds(self) -> np.ndarray:
        """int64[episodes]: seed of each environment's reset."""
        return np.array([episode.seed for episode in self.episodes], np.int64)

    @property
    def mean_return(self) -> float:
        """Mean over episodes; NaN without finished episodes."""
        return float(self.returns.mean()) if self.episodes else math.nan

    @property
    def std_return(self) -> float:
        """Sample standard deviation over episodes; NaN for fewer than two."""
        return deviation(self.returns)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean return; NaN for fewer than two episodes."""
        return self.std_return / math.sqrt(len(self.episodes)) if self.episodes else math.nan

    @property
    def interquartile_mean(self) -> float:
        """Mean of the middle half of the returns (rliable's IQM), which a few odd episodes do not move."""
        return float(interquartile_mean(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean number of steps of an episode; NaN without finished episodes."""
        return float(self.lengths.mean()) if self.episodes else math.nan

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of wall clock, compiles included."""
        return self.steps / self.seconds if self.seconds else math.nan

    @property
    def environment_seconds(self) -> float:
        """Wall clock without the policy's part."""
        return max(0.0, self.seconds - self.policy_seconds)

    def plan_size(self, size: int) -> int | None:
        """Size of the smallest plan that holds a batch of `size`; None if there is none."""
        return min((plan.size for plan in self.plans if plan.size >= size), default=None)

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the mean return; NaN for fewer than two episodes."""
        return student_interval(self.returns, level)

    def interquartile_interval(
        self, level: float = 0.95, repetitions: int = BOOTSTRAPS, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrapped percentile interval of the interquartile mean (rliable's); NaN below two episodes."""
        return bootstrap_interval(self.returns, level, repetitions, seed)

    def agent_returns(self, agent: str) -> np.ndarray:
        """float64[episodes]: sum of rewards of one of several agents; NaN where it did not appear."""
        return np.array([episode.agents.get(agent, math.nan) for episode in self.episodes], np.float64)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the returns and the time per call; `memojax.evaluation.plot` draws several evaluations."""
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
        """All values in JSON's types."""
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
        """("observations", their transforms) and ("actions", their transforms), without empty ones."""
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
