"""Draws evaluations: the returns, and the time per call by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import EvaluationError
from .statistics import plus_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW_CALLS = 5
"""Calls below which a median says too little to draw."""

_FEW_SIZES = 8
"""Up to this number of batch sizes, the axis names each."""

_MARKERS = "os^Dv<>P"
"""One for each evaluation, so that lines are told apart in print without color."""


class Drawn(Protocol):
    """The part of an `Evaluation` that the picture shows."""

    @property
    def model(self) -> str: ...
    @property
    def env_id(self) -> str: ...
    @property
    def episodes(self) -> Sequence[Any]: ...
    @property
    def returns(self) -> np.ndarray: ...
    @property
    def mean_return(self) -> float: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def batch_sizes(self) -> Mapping[int, int]: ...
    @property
    def call_us(self) -> Mapping[int, float]: ...
    def confidence_interval(self) -> tuple[float, float]:
        """The confidence interval of the mean return."""
        ...


def plot(evaluations: Drawn | Sequence[Drawn], path: str | PathLike[str] | None = None) -> Figure:
    """A matplotlib figure of the returns (episodes, mean, 95 % interval) and of the median time per call.

    Args:
        evaluations: one evaluation or several.
        path: file to write as well; the suffix gives the format.

    Raises:
        MissingPackageError: matplotlib is not installed.
        EvaluationError: there is nothing to draw, or matplotlib does not know the suffix.
    """
    from ..display.figure import NotebookFigure, tidy

    evaluations = evaluations if isinstance(evaluations, Sequence) else [evaluations]
    if not evaluations:
        raise EvaluationError("no evaluation to draw")
    figure = NotebookFigure(figsize=(11, 4.2), layout="constrained")
    returns, latency = figure.subplots(1, 2)
    rng = np.random.default_rng(0)
    slowest, drawn = 0.0, set[int]()
    for index, one in enumerate(evaluations):
        color = f"C{index}"
        spread = rng.uniform(-0.18, 0.18, len(one.episodes))
        returns.scatter(index + spread, one.returns, s=10, alpha=0.45, color=color, linewidths=0)
        low, high = one.confidence_interval()
        error = None if np.isnan(low) else [[one.mean_return - low], [high - one.mean_return]]
        returns.errorbar(
            index, one.mean_return, error, fmt="_", ms=28, mew=2, capsize=6, color="black", zorder=3
        )
        note = plus_minus(one.mean_return, one.standard_error)
        returns.annotate(note, (index + 0.24, one.mean_return), va="center", fontsize=9)
        sizes = sorted(size for size in one.call_us if one.batch_sizes[size] >= _FEW_CALLS)
        medians, marker = [one.call_us[size] for size in sizes], _MARKERS[index % len(_MARKERS)]
        # Open markers: points of equal times stay visible.
        latency.plot(sizes, medians, f"{marker}-", ms=7, mfc="none", color=color, label=one.model)
        slowest = max([slowest, *medians])
        drawn.update(sizes)
    returns.set_xticks(range(len(evaluations)), [one.model for one in evaluations])
    returns.set_xlim(-0.6, len(evaluations) - 0.2)
    returns.set(
        title=f"{evaluations[0].env_id}: return of {len(evaluations[0].episodes)} episodes", ylabel="return"
    )
    latency.set(title="time per call of the policy", xlabel="batch size", ylabel="median microseconds")
    latency.set_ylim(0, 1.2 * slowest or 1.0)
    if len(drawn) <= _FEW_SIZES:
        latency.set_xticks(sorted(drawn), [str(size) for size in sorted(drawn)])
    if len(evaluations) > 1:
        latency.legend(frameon=False)
    for axes in (returns, latency):
        tidy(axes)
    if path is not None:
        try:
            figure.savefig(path, dpi=130)
        except ValueError as cause:
            raise EvaluationError(f"{path}: {cause}") from cause
    return figure
