"""Times several contenders in one process, turn by turn: medians, ratios with their spread, machine load."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Call = Callable[[], Any]

_SETTLE_S, _MOST_SETTLE_S = 0.002, 0.1
"""Pause before a contender's turn, and the longest one: the threads of the one before spin for a while (those
of ONNX Runtime for 33 ms), and would take a core from the next."""

_WARM_CALLS = 3
_BLOCK_S = 0.003


@dataclass(frozen=True)
class Timing:
    """Microseconds per call.

    Attributes:
        median, low, high: median and quartiles over the rounds.
        ratio: median over the median of the base contender; None for the base itself.
        ratio_low, ratio_high: quartiles of the ratio within a round, in which machine load is the same for
            both.
        best, ratio_best: the third-fastest round and its ratio, for a machine that others keep busy.
    """

    median: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    best: float = math.nan
    ratio_best: float | None = None


def interleaved(
    calls: Mapping[str, Call], base: str | None = None, seconds: float = 1.0, min_rounds: int = 12
) -> dict[str, Timing]:
    """Time `calls` turn by turn, for `seconds` in total; ratios are over `base`."""
    block = {name: _block_size(call) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        while len(rounds[names[0]]) < min_rounds or time.perf_counter() < stop:
            for name in names:
                rounds[name].append(_turn(calls[name], block[name]) * 1e6)
            names = names[1:] + names[:1]
    finally:
        gc.enable()
    return {
        name: _timing(values, rounds[base] if base in rounds and name != base else None)
        for name, values in rounds.items()
    }


def geometric_mean(ratios: Iterable[float]) -> float:
    """The geometric mean; NaN without values."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


class ForeignLoad:
    """Cores that other processes kept busy from `start` to `stop`, by /proc/stat; None without that file."""

    def __init__(self) -> None:
        self._began = self._now()

    def cores(self) -> float | None:
        """Cores that others kept busy since construction."""
        began, now = self._began, self._now()
        if began is None or now is None or now[2] <= began[2]:
            return None
        return max(0.0, (now[0] - began[0] - (now[1] - began[1])) / (now[2] - began[2]))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return None
        busy = (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        return busy, time.process_time(), time.perf_counter()


def machine() -> dict[str, Any]:
    """The machine and the versions behind the numbers."""
    import jax
    import numpy

    try:
        import onnxruntime
    except ImportError:  # on a machine that only measures an accelerator
        onnxruntime = None
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
        cpu += " (AVX-512)" if any("avx512f" in line for line in lines) else ""
    except OSError:
        pass
    versions = {"jax": jax.__version__, "numpy": numpy.__version__}
    if onnxruntime is not None:
        versions["onnxruntime"] = onnxruntime.__version__
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def as_dict(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """For JSON: absent ratios left out, three decimals."""
    return {
        name: {key: round(value, 3) for key, value in asdict(timing).items() if value is not None}
        for name, timing in timings.items()
    }


def _turn(call: Call, count: int) -> float:
    _settle()
    for _ in range(_WARM_CALLS if count > 1 else 1):
        call()
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def _settle() -> None:
    """Wait until no thread of this process works any more."""
    stop = time.perf_counter() + _MOST_SETTLE_S
    quiet = 0
    while quiet < 3 and time.perf_counter() < stop:
        before = time.process_time()
        time.sleep(_SETTLE_S)
        quiet = quiet + 1 if time.process_time() - before < _SETTLE_S / 10 else 0


def _block_size(call: Call) -> int:
    for _ in range(_WARM_CALLS):
        call()
    started = time.perf_counter()
    call()
    spent = max(time.perf_counter() - started, 1e-6)
    return max(1, min(200, round(_BLOCK_S / spent)))


def _timing(values: list[float], base: list[float] | None) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    best = sorted(values)[2]
    if base is None:
        return Timing(median, low, high, best=best)
    within = statistics.quantiles([value / other for value, other in zip(values, base, strict=True)], n=4)
    return Timing(
        median,
        low,
        high,
        median / statistics.median(base),
        within[0],
        within[2],
        best,
        best / sorted(base)[2],
    )
