"""Cost of a model by batch size: running mean and variance, interpolated between the sizes seen."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

WINDOW = 64
"""Samples after which old ones begin to fade, so a slower machine shows up."""

_MARGIN = 1.0
"""Standard deviations added to the mean for an upper estimate."""

_FEW = 8
"""Minimum samples before a size's own deviation is trusted."""

_MOST_RATIO = 2.0
"""Upper limit of sample over mean, so one interrupted call does not raise the deviation of all sizes."""


@dataclass
class Timing:
    """Mean and variance of seconds, by Welford's method; no new sample weighs less than 1 / `WINDOW`."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one sample."""
        self.count += 1
        weight = 1 / (self.count if self.count < WINDOW else WINDOW)
        delta = seconds - self.mean
        self.mean += weight * delta
        self.variance = (1 - weight) * (self.variance + weight * delta * delta)

    def age(self) -> None:
        """Let all samples so far count as one, so new samples soon outweigh them."""
        self.count = min(self.count, 1)

    @property
    def std(self) -> float:
        """Standard deviation, in seconds."""
        return self.variance**0.5

    @property
    def upper(self) -> float:
        """Seconds that a sample rarely exceeds."""
        return self.mean + _MARGIN * self.std


class Timings:
    """`Timing` by batch size."""

    def __init__(self) -> None:
        self._least: float | None = None
        self._by_size: dict[int, Timing] = {}
        self._sizes: list[int] = []
        self._ratios = Timing()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` took `seconds`."""
        timing = self._by_size.get(size)
        if timing is None:
            timing = Timing()
            timing.add(seconds)
            self._by_size[size] = timing
        else:
            if timing.mean > 0:
                ratio = seconds / timing.mean
                self._ratios.add(ratio if ratio < _MOST_RATIO else _MOST_RATIO)
            timing.add(seconds)
        if len(self._sizes) < len(self._by_size):
            self._sizes = sorted(self._by_size)
        if size == self._sizes[0]:
            self._least = None

    @property
    def least(self) -> float:
        """Usual seconds of the smallest batch seen, below which little fits; 0 before the first sample."""
        least = self._least
        if least is None:
            self._least = least = self._upper(self._sizes[0]) if self._sizes else 0.0
        return least

    def get(self, size: int) -> Timing | None:
        """Timing of `size` itself, without interpolation."""
        return self._by_size.get(size)

    def items(self) -> list[tuple[int, Timing]]:
        """(size, timing), by size."""
        return [(size, self._by_size[size]) for size in self._sizes]

    def age(self) -> None:
        """Age all timings; see `Timing.age`."""
        for timing in self._by_size.values():
            timing.age()

    def estimate(self, size: int) -> float | None:
        """Seconds that a batch of `size` rarely exceeds; None before the first sample.

        Between two measured sizes the estimate is linear. Beyond the largest it continues the line through
        the last two sizes, or is proportional if only one was measured. Below the smallest it is the
        smallest's.
        """
        exact = self._by_size.get(size)
        if exact is not None:
            return self._upper(size)
        if not self._sizes:
            return None
        above = bisect.bisect(self._sizes, size)
        if above == 0:
            return self._upper(self._sizes[0])
        if above < len(self._sizes):
            return self._line(self._sizes[above - 1], self._sizes[above], size)
        last = self._sizes[-1]
        cost = self._upper(last)
        if len(self._sizes) == 1:
            return cost * size / last
        return max(cost, self._line(self._sizes[-2], last, size))

    def _line(self, small: int, large: int, size: int) -> float:
        low, high = self._upper(small), self._upper(large)
        return low + (high - low) * (size - small) / (large - small)

    def _upper(self, size: int) -> float:
        """`Timing.upper`; a size with few samples takes at least the model's relative deviation."""
        timing = self._by_size[size]
        if timing.count >= _FEW:
            return timing.upper
        return timing.mean + _MARGIN * max(timing.std, self._ratios.std * timing.mean)


class CompileTimings:
    """Seconds of compiles by brain; threads may share it.

    Background compiles wait in a queue. So a compile took the time since its request, or since the end of the
    previous compile, whichever is less.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._lock = threading.Lock()
        self._by_brain: dict[Hashable, Timing] = {}
        self._all = Timing()
        self._last_done = float("-inf")

    def add(self, brain: Hashable, seconds: float) -> None:
        """Record a compile of `brain`."""
        with self._lock:
            self._add(brain, seconds)

    def watch(self, brain: Hashable, compile: Future[None]) -> None:
        """Record a background compile when it is done."""
        asked = self._clock()

        def done(future: Future[None]) -> None:
            now = self._clock()
            with self._lock:
                if not future.cancelled() and future.exception() is None:
                    self._add(brain, now - max(asked, self._last_done))
                self._last_done = now

        compile.add_done_callback(done)

    def expected(self, brain: Hashable) -> float | None:
        """Seconds that a compile of `brain` rarely exceeds, by its own or all compiles; None at first."""
        with self._lock:
            timing = self._by_brain.get(brain, self._all)
            return timing.upper if timing.count else None

    def _add(self, brain: Hashable, seconds: float) -> None:
        self._by_brain.setdefault(brain, Timing()).add(seconds)
        self._all.add(seconds)
