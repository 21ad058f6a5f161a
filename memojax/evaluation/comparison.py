"""Compares two policies on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EvaluationError
from .result import Evaluation
from .statistics import deviation, plus_minus, student_interval


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same seeds: `other` minus `baseline`.

    Attributes:
        baseline, other: names of the policies.
        differences: seed -> difference of returns, for the seeds that both have finished.
        difference: mean of the differences.
        standard_error: standard error of that mean.
        interval: 95 % Student interval of that mean.
    """

    baseline: str
    other: str
    differences: Mapping[int, float]
    difference: float
    standard_error: float
    interval: tuple[float, float]

    @property
    def episodes(self) -> int:
        """Number of seeds that both have finished."""
        return len(self.differences)

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """All values in JSON's types."""
        return {
            "baseline": self.baseline,
            "other": self.other,
            "episodes": self.episodes,
            "difference": self.difference,
            "standard_error": self.standard_error,
            "interval": list(self.interval),
            "differences": {str(seed): value for seed, value in self.differences.items()},
        }

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "differ" if self.significant else "may be equal"
        return (
            f"{self.other} minus {self.baseline}: return {plus_minus(self.difference, self.standard_error)} "
            f"(95 % interval {low:.3g} to {high:.3g}, {self.episodes} paired episodes: they {verdict})"
        )

    __repr__ = __str__


def compare(baseline: Evaluation, other: Evaluation) -> Comparison:
    """Paired comparison of two policies: both share the luck of a seed, so it cancels out.

    >>> a, b = (
    ...     memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), episodes=3, max_steps=9, name=name)
    ...     for name in ("old", "new")
    ... )
    >>> memojax.evaluation.compare(a, b)
    new minus old: return 0.0 ± 0.0 (95 % interval 0 to 0, 3 paired episodes: they may be equal)

    Raises:
        EvaluationError: the environments differ, or no seed is common.
    """
    if baseline.env_id != other.env_id:
        raise EvaluationError(
            f"{baseline.model} ran on {baseline.env_id} and {other.model} on {other.env_id}: compare them "
            "on one environment"
        )
    mine = {episode.seed: episode.total for episode in baseline.episodes}
    differences = {
        episode.seed: episode.total - mine[episode.seed] for episode in other.episodes if episode.seed in mine
    }
    if not differences:
        raise EvaluationError(
            f"{baseline.model} and {other.model} have no seed in common: evaluate both with the same seed="
        )
    pairs = np.array(list(differences.values()), np.float64)
    error = deviation(pairs) / math.sqrt(len(pairs))
    return Comparison(
        baseline.model, other.model, differences, float(pairs.mean()), error, student_interval(pairs)
    )
