"""Uncertainty of a mean: Student's interval, and rliable's interquartile mean with its interval."""

from __future__ import annotations

import math

import numpy as np

BOOTSTRAPS = 2000
"""Resamples of a bootstrapped interval, as in rliable."""

_CHUNK = 1 << 22
"""Upper limit of numbers in memory at once while resampling."""


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation; NaN for fewer than two values or an infinite one."""
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def student_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval for the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = student_quantile(level, len(values) - 1) * deviation(values) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def student_quantile(level: float, freedom: int) -> float:
    """The number that |T| stays below with probability `level`, for Student's T with `freedom` degrees.

    The sums are Abramowitz and Stegun's 26.7.3 and 26.7.4. SciPy has this number too, but its import would
    take as long as a tenth of `memojax evaluate`.
    """
    odd = freedom % 2
    steps = np.arange(1, freedom // 2)
    terms = np.cumprod([1.0, *((2 * steps - 1 + odd) / (2 * steps + odd))])[: freedom // 2]

    def below(angle: float) -> float:
        cosine = math.cos(angle)
        total = math.sin(angle) * float((terms * (cosine * cosine) ** np.arange(len(terms))).sum())
        return 2 / math.pi * (angle + cosine * total) if odd else total

    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if below(middle) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, without a quarter at each end (rounded down).

    This is rliable's `aggregate_iqm`, which is `scipy.stats.trim_mean(values, 0.25)`. NaN without values.
    """
    count = values.shape[-1]
    if not count:
        return np.full(values.shape[:-1], math.nan)
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, repetitions: int = BOOTSTRAPS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean over resampled episodes; NaN for fewer than two values.

    It equals rliable's `get_interval_estimates`.
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
    """`-81.9 ± 1.5`, with as many digits as the error justifies."""
    if math.isnan(mean):
        return "-"
    digits = decimals(error)
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def decimals(error: float) -> int:
    """Digits behind the point that a number with this standard error justifies."""
    return 1 if not math.isfinite(error) or error == 0 else max(0, min(6, 1 - math.floor(math.log10(error))))
