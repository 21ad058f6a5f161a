"""What a model costs, by batch size: running mean and variance, interpolated between the sizes seen."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

WINDOW = 64
"""Samples after which old ones begin to fade, so that a machine that slows down is noticed."""

_MARGIN = 1.0
"""Standard deviations added to the mean where time must not run out."""

_FEW = 8
"""Samples from which on their deviation is taken at its word."""

_MOST_RATIO = 2.0
"""Of a sample to the mean of its size: one that was interrupted should not count for all sizes."""


@dataclass
class Timing:
    """Mean and variance of a stream of seconds, by Welford's method; the weight of a sample is never less than 1 / `WINDOW`."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, seconds: float) -> None:
        """Take in one sample."""
        self.count += 1
        weight = 1 / min(self.count, WINDOW)
        delta = seconds - self.mean
        self.mean += weight * delta
        self.variance = (1 - weight) * (self.variance + weight * delta * delta)

    def age(self) -> None:
        """Count what was seen as one sample, so that new ones soon outweigh it."""
        self.count = min(self.count, 1)

    @property
    def std(self) -> float:
        """Standard deviation, in seconds."""
        return self.variance**0.5

    @property
    def upper(self) -> float:
        """Seconds that are rarely exceeded."""
        return self.mean + _MARGIN * self.std


class Timings:
    """`Timing` by batch size."""

    def __init__(self) -> None:
        self._by_size: dict[int, Timing] = {}
        self._sizes: list[int] = []
        self._ratios = Timing()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def least(self) -> float:
        """Seconds below which nothing is likely to fit: what the smallest batch seen takes; 0 before the first sample."""
        return self._upper(self._sizes[0]) if self._sizes else 0.0

    def add(self, size: int, seconds: float) -> None:
        """Note that a batch of `size` took `seconds`."""
        timing = self._by_size.get(size)
        if timing is None:
            timing = Timing()
            timing.add(seconds)
            self._by_size[size] = timing
        else:
            if timing.mean > 0:
                self._ratios.add(min(seconds / timing.mean, _MOST_RATIO))
            timing.add(seconds)
        if len(self._sizes) < len(self._by_size):
            self._sizes = sorted(self._by_size)

    def get(self, size: int) -> Timing | None:
        """What was seen of `size` itself."""
        return self._by_size.get(size)

    def items(self) -> list[tuple[int, Timing]]:
        """(size, timing), by size."""
        return [(size, self._by_size[size]) for size in self._sizes]

    def age(self) -> None:
        """Make all that was seen weak; see `Timing.age`."""
        for timing in self._by_size.values():
            timing.age()

    def estimate(self, size: int) -> float | None:
        """Seconds that a batch of `size` rarely exceeds; None before the first sample.

        On the line between the next smaller and larger sizes seen; beyond the largest on the line through the last two, or in
        proportion to the size where only one is known; below the smallest as that one.
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
        """`Timing.upper`; a size seen a few times only scatters at least as all sizes of the model do."""
        timing = self._by_size[size]
        if timing.count >= _FEW:
            return timing.upper
        return timing.mean + _MARGIN * max(timing.std, self._ratios.std * timing.mean)


class CompileTimings:
    """Seconds that compiles take, by brain; safe to share between threads.

    Compiles in the background queue up behind each other, so that one took the time since it was asked for or since the one before
    it was done, whichever is less.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._lock = threading.Lock()
        self._by_brain: dict[Hashable, Timing] = {}
        self._all = Timing()
        self._last_done = float("-inf")

    def add(self, brain: Hashable, seconds: float) -> None:
        """Note a compile of `brain`."""
        with self._lock:
            self._add(brain, seconds)

    def watch(self, brain: Hashable, compile: Future[None]) -> None:
        """Note a compile that goes on in the background, when it is done."""
        asked = self._clock()

        def done(future: Future[None]) -> None:
            now = self._clock()
            with self._lock:
                if not future.cancelled() and future.exception() is None:
                    self._add(brain, now - max(asked, self._last_done))
                self._last_done = now

        compile.add_done_callback(done)

    def expected(self, brain: Hashable) -> float | None:
        """Seconds that a compile of `brain` rarely exceeds, or one of the others if it had none; None if there were none at all."""
        with self._lock:
            timing = self._by_brain.get(brain, self._all)
            return timing.upper if timing.count else None

    def _add(self, brain: Hashable, seconds: float) -> None:
        self._by_brain.setdefault(brain, Timing()).add(seconds)
        self._all.add(seconds)
