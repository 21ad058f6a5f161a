"""One batch size, compiled: rows in, rows out."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .runner import Answer, Rows, Run
from .typed import TypedModel

_SAMPLE_EVERY = 16
"""One call in so many is timed; a clock read costs a percent of the smallest call."""


@dataclass(frozen=True)
class PlanInfo:
    """What a plan is and has done.

    Attributes:
        size: batch size.
        compile_ms: milliseconds to trace, lower and compile.
        calls: how often it ran.
        median_us: median microseconds per call, over the last sampled ones; None before the first sample.
        bytes: memory that XLA reports for code, constants and temporaries; None where it does not say.
        platform: "cpu", "gpu", ...
        candidate: the recipe that it was compiled by; "default" until autotuning finds a better one.
        gain: time of the default over that of the candidate; 1.0 for the default itself, None before it was timed.
    """

    size: int
    compile_ms: float
    calls: int
    median_us: float | None
    bytes: int | None
    platform: str
    candidate: str = "default"
    gain: float | None = None


@dataclass(frozen=True)
class Executable:
    """What XLA compiled for one size, and how to call it.

    Attributes:
        compiled: JAX's compiled function.
        run: `run(rows)` with one array per input (and the key, for a random model): one array per computed output.
        answer: `answer({name: array}, draw)`: outputs by name, or None where an input is not just what the executable takes.
        candidate: name of the recipe that it was compiled by.
    """

    compiled: Any
    run: Run
    answer: Answer
    candidate: str = "default"

    def bytes(self) -> int | None:
        """Memory for code, temporaries and outputs, where XLA says it."""
        try:
            memory = self.compiled.memory_analysis()
            return int(memory.generated_code_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes)
        except Exception:
            return None


class Plan:
    """An executable for one batch size; call it with one `[n, *element_shape]` array per input.

    A host plan takes and gives NumPy arrays, a device plan `jax.Array`s. `executable` may be replaced while other threads call.
    """

    __slots__ = (
        "__weakref__", "_answer", "_due", "_executable", "_lock", "_peeks", "_run", "_tick", "_times",
        "compile_ms", "dtypes", "gain", "platform", "random", "shapes", "size",
    )  # fmt: skip

    def __init__(self, size: int, executable: Executable, typed: TypedModel, platform: str, compile_ms: float):
        self.size = size
        self.shapes = tuple((size, *spec.shape) for spec in typed.api.inputs)
        self.dtypes = tuple(spec.dtype for spec in typed.api.inputs)
        self.random = typed.random
        self.platform = platform
        self.compile_ms = compile_ms
        self.gain: float | None = None
        self.executable = executable
        self._lock = threading.Lock()
        self._tick = itertools.count().__next__
        self._peeks = 0
        self._due = False
        self._times: deque[float] = deque(maxlen=64)

    @property
    def executable(self) -> Executable:
        """What runs."""
        return self._executable

    @executable.setter
    def executable(self, executable: Executable) -> None:
        self._executable = executable
        self._run = executable.run
        self._answer = executable.answer

    def __call__(self, rows: Rows, key: np.ndarray | None = None) -> list[Any]:
        """One array per computed output, in order; `key` is a uint32[2] for a random model. NumPy results are read-only."""
        if key is not None:
            rows = [*rows, key]
        if self._tick() % _SAMPLE_EVERY:
            return self._run(rows)
        started = time.perf_counter()
        results = self._run(rows)
        if isinstance(results[0], jax.Array):
            jax.block_until_ready(results)
        self._times.append(time.perf_counter() - started)
        return results

    def answer(self, inputs: Mapping[str, Any], draw: Callable[[], np.ndarray] | None = None) -> dict[str, np.ndarray] | None:
        """Outputs by name; None (and nothing has run) where an input is missing or not a NumPy array of just this plan's shape and dtype.

        `draw` gives the key of a random model.
        """
        started = time.perf_counter() if self._due else 0.0
        named = self._answer(inputs, draw)
        if started and named is not None:
            self._times.append(time.perf_counter() - started)
            self._due = False
        if named is not None and not self._tick() % _SAMPLE_EVERY:
            self._due = True
        return named

    @property
    def calls(self) -> int:
        """How often it ran."""
        with self._lock:
            self._peeks += 1
            return self._tick() - self._peeks + 1

    def info(self) -> PlanInfo:
        """Size, costs and use so far."""
        times = sorted(self._times)
        median = times[len(times) // 2] * 1e6 if times else None
        executable = self._executable
        return PlanInfo(
            self.size, self.compile_ms, self.calls, median, executable.bytes(), self.platform, executable.candidate, self.gain
        )  # fmt: skip
