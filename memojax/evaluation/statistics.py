"""How sure a mean is: Student's interval, and rliable's interquartile mean with a bootstrapped interval."""

from __future__ import annotations

import math

import numpy as np

BOOTSTRAPS = 2000
"""Resamples of a bootstrapped interval; rliable's default."""

_CHUNK = 1 << 22
"""Numbers in memory at once while resampling."""


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


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: a quarter of the values is cut at each end, rounded down.

    This is rliable's `aggregate_iqm`, that is `scipy.stats.trim_mean(values, 0.25)`. NaN where there is no
    value.
    """
    count = values.shape[-1]
    if not count:
        return np.full(values.shape[:-1], math.nan)
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, repetitions: int = BOOTSTRAPS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean over resampled episodes, as rliable's
    `get_interval_estimates`.

    NaN for fewer than two values.
    """
    if len(values) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = []
    rows = max(1, _CHUNK // len(values))
    for begin in range(0, repetitions, rows):
        size = (min(rows, repetitions - begin), len(values))
        means.append(interquartile_mean(values[rng.integers(len(values), size=size)]))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def plus_minus(mean: float, error: float) -> str:
    """`-81.9 ± 1.5`: as many digits as the error justifies."""
    if math.isnan(mean):
        return "-"
    digits = 1 if math.isnan(error) or error == 0 else max(0, min(6, 1 - math.floor(math.log10(error))))
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"
