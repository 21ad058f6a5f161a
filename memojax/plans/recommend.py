"""The few batch sizes that would have served past batches best, by exact dynamic programming."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BatchSizeError
from .plan import PlanInfo


@dataclass(frozen=True)
class Recommendation:
    """The best fixed sizes for a histogram of batch sizes.

    Attributes:
        sizes: sizes for `bucketing=` and `preload=`; each batch is padded to the next larger one.
        seconds: total time of all calls padded to these sizes, and of compiling these plans.
        seconds_exact: total time with a plan for each size seen, compiles included.
    """

    sizes: list[int]
    seconds: float
    seconds_exact: float

    def __str__(self) -> str:
        saved = self.seconds_exact - self.seconds
        what = f"saves {saved:.3f} s of" if saved > -5e-4 else f"costs {-saved:.3f} s over"
        return (
            f"{len(self.sizes)} plan(s), sizes {self.sizes}: {what} {self.seconds_exact:.3f} s "
            "(calls and compiles together)"
        )


def recommend_for(plans: Iterable[PlanInfo], histogram: Mapping[int, int], max_plans: int) -> Recommendation:
    """`recommend` with the times of an inferer's plans.

    Raises:
        BatchSizeError: no batch has run yet, or `max_plans` is less than 1.
    """
    # The last plan of a size counts, which is the most used one.
    plans = sorted(plans, key=lambda plan: plan.calls)
    latency = {plan.size: plan.median_us / 1e6 for plan in plans if plan.median_us is not None}
    compiling = {plan.size: plan.compile_ms / 1e3 for plan in plans}
    return recommend(histogram, latency, compiling, max_plans, {plan.size: plan.calls for plan in plans})


def recommend(
    histogram: Mapping[int, int],
    latency: Mapping[int, float],
    compile_seconds: Mapping[int, float],
    max_plans: int,
    calls: Mapping[int, int] | None = None,
) -> Recommendation:
    """Up to `max_plans` sizes that minimise the total time over `histogram`.

    Args:
        histogram: batch size -> number of calls.
        latency: batch size -> seconds per call, for measured sizes; others are interpolated or extrapolated.
        compile_seconds: batch size -> seconds to compile its plan, for known sizes; others take the mean.
        calls: batch size -> number of calls behind its latency, as the weight of the measurement.

    Raises:
        BatchSizeError: no batch has run yet, or `max_plans` is less than 1.
    """
    if max_plans < 1:
        raise BatchSizeError(f"max_plans must be at least 1, got {max_plans}")
    sizes = sorted(size for size, count in histogram.items() if size > 0 and count > 0)
    if not sizes or not latency:
        raise BatchSizeError(
            "no batch has run yet, so there is nothing to recommend from: call the inferer first"
        )
    seconds = interpolator(latency, calls)
    mean = sum(compile_seconds.values()) / len(compile_seconds) if compile_seconds else 0.0

    def cost(first: int, last: int) -> float:
        """Seconds of all calls of sizes[first..last], padded to sizes[last], and of that plan's compile."""
        calls = sum(histogram[size] for size in sizes[first : last + 1])
        return calls * seconds(sizes[last]) + compile_seconds.get(sizes[last], mean)

    # best[k][j] is the least cost of serving sizes[0..j] with k + 1 plans, the largest of them sizes[j].
    best = [[cost(0, j) for j in range(len(sizes))]]
    origin: list[list[int]] = [[-1] * len(sizes)]
    for _ in range(1, min(max_plans, len(sizes))):
        row, back = [], []
        for j in range(len(sizes)):
            options = [(best[-1][i] + cost(i + 1, j), i) for i in range(j)]
            value, i = min(options, default=(float("inf"), -1))
            row.append(value)
            back.append(i)
        best.append(row)
        origin.append(back)
    last = len(sizes) - 1
    k = min(range(len(best)), key=lambda index: best[index][last])
    chosen, j = [], last
    for level in range(k, -1, -1):
        chosen.append(sizes[j])
        j = origin[level][j]
    exact = sum(histogram[size] * seconds(size) + compile_seconds.get(size, mean) for size in sizes)
    return Recommendation(sorted(chosen), best[k][last], exact)


def interpolator(
    points: Mapping[int, float], weights: Mapping[int, int] | None = None
) -> Callable[[int], float]:
    """A non-decreasing function near `points`: linear between them, proportional beyond the last.

    Times that fall while sizes grow are noise, for example from a single call with cold caches. Their mean,
    weighted by `weights`, replaces them, which gives the closest non-decreasing function.
    """
    sizes: Sequence[int] = sorted(points)
    levels: list[tuple[float, float, int]] = []  # mean, weight, sizes
    for size in sizes:
        mean, weight, count = points[size], float(max(1, (weights or {}).get(size, 1))), 1
        while levels and levels[-1][0] > mean:
            before, its_weight, its_count = levels.pop()
            mean = (before * its_weight + mean * weight) / (its_weight + weight)
            weight, count = weight + its_weight, count + its_count
        levels.append((mean, weight, count))
    values = [mean for mean, _, count in levels for _ in range(count)]

    def at(size: int) -> float:
        index = bisect.bisect_left(sizes, size)
        if (index < len(sizes) and sizes[index] == size) or index == 0:
            return values[index]
        if index == len(sizes):
            return values[-1] * size / sizes[-1]
        share = (size - sizes[index - 1]) / (sizes[index] - sizes[index - 1])
        return values[index - 1] + share * (values[index] - values[index - 1])

    return at
