"""What an evaluation found: returns with their uncertainty, and what the inferer did for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import EvaluationError
from ..plans.plan import PlanInfo


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Attributes:
        index: its number, from 0.
        seed: what its environment was reset with.
        total: sum of rewards.
        length: steps.
        truncated: whether a limit of steps ended it rather than the task.
    """

    index: int
    seed: int
    total: float
    length: int
    truncated: bool


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
        compile_seconds: what plans took that were not there before; a plan that was made ahead is no part of `policy_seconds`.
        batch_sizes: batch size -> number of calls.
        call_us: batch size -> median microseconds of a call as seen from here; the first call of a size is left out, so that a
            size called once is not there.
        plans: plans of the inferer; `calls` counts this evaluation's only.
        padded_rows: rows that were computed only to fill a plan.
        action: how the action was read from the outputs.
        feeds: how the inputs were fed.
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
        """The plan that a batch of `size` ran on: the smallest that holds it; None where it was split or has no plan."""
        return min((plan.size for plan in self.plans if plan.size >= size), default=None)

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the mean return; NaN for fewer than two episodes."""
        return student_interval(self.returns, level)

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
            "mean_length": self.mean_length,
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            "policy_seconds": self.policy_seconds,
            "compile_seconds": self.compile_seconds,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "seeds": self.seeds.tolist(),
            "truncated": [episode.truncated for episode in self.episodes],
            "batch_sizes": {str(size): count for size, count in self.batch_sizes.items()},
            "call_us": {str(size): value for size, value in self.call_us.items()},
            "plans": [vars(plan) for plan in self.plans],
            "padded_rows": self.padded_rows,
            "action": self.action,
            "feeds": list(self.feeds),
            "metadata": dict(self.metadata),
        }

    def __str__(self) -> str:
        done = (
            f"{len(self.episodes)} episodes"
            if not self.interrupted
            else f"{len(self.episodes)} of {self.asked} episodes, interrupted"
        )
        return (
            f"{self.model} on {self.env_id}: return {plus_minus(self.mean_return, self.standard_error)}, length {self.mean_length:.1f}, "
            f"{self.steps_per_second:,.0f} steps per second ({done})"
        )

    __repr__ = __str__


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same seeds: `other` minus `baseline`.

    Attributes:
        episodes: seeds that both have finished.
        difference: mean over them of the difference of returns.
        standard_error: of that mean.
        interval: its 95 % Student interval.
    """

    baseline: str
    other: str
    episodes: int
    difference: float
    standard_error: float
    interval: tuple[float, float]

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def compare(baseline: Evaluation, other: Evaluation) -> Comparison:
    """Paired comparison of two policies: the luck of a seed, which both share, cancels out.

    Raises:
        EvaluationError: other environments, or no seed in common.
    """
    if baseline.env_id != other.env_id:
        raise EvaluationError(
            f"{baseline.model} ran on {baseline.env_id} and {other.model} on {other.env_id}: compare them on one environment"
        )
    mine = {episode.seed: episode.total for episode in baseline.episodes}
    pairs = np.array(
        [episode.total - mine[episode.seed] for episode in other.episodes if episode.seed in mine], np.float64
    )
    if not len(pairs):
        raise EvaluationError(
            f"{baseline.model} and {other.model} have no seed in common: evaluate both with the same seed="
        )
    error = deviation(pairs) / math.sqrt(len(pairs))
    return Comparison(
        baseline.model, other.model, len(pairs), float(pairs.mean()), error, student_interval(pairs)
    )


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation; NaN for fewer than two values, and where one is infinite."""
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def student_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval for the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * deviation(values) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def plus_minus(mean: float, error: float) -> str:
    """`-81.9 ± 1.5`: as many digits as the error justifies."""
    if math.isnan(mean):
        return "-"
    digits = 1 if math.isnan(error) or error == 0 else max(0, min(6, 1 - math.floor(math.log10(error))))
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"
