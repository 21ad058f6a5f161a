"""One batch size: trace and lower under one lock, compile outside it, run."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from .errors import BatchSizeError, CompileError, LoweringError
from .typed import TypedModel

Weights = Literal["constant", "argument"]

_trace_lock = threading.RLock()
_SAMPLE_EVERY = 8
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
    """

    size: int
    compile_ms: float
    calls: int
    median_us: float | None
    bytes: int | None
    platform: str


class Plan:
    """A compiled executable for one batch size; call it with one `[n, *element_shape]` array per input."""

    __slots__ = ("_calls", "_compiled", "_leading", "_times", "_x64", "compile_ms", "dtypes", "platform", "random", "shapes", "size")

    def __init__(self, size: int, compiled: Any, typed: TypedModel, leading: tuple[Any, ...], platform: str, compile_ms: float):
        self.size = size
        self.shapes = tuple((size, *spec.shape) for spec in typed.api.inputs)
        self.dtypes = tuple(spec.dtype for spec in typed.api.inputs)
        self.random = typed.random
        self.platform = platform
        self.compile_ms = compile_ms
        self._compiled = compiled
        self._leading = leading
        self._x64 = any(dtype.itemsize == 8 and dtype.kind in "iuf" or dtype.itemsize == 16 for dtype in self.dtypes)
        self._calls = itertools.count()
        self._times: deque[float] = deque(maxlen=64)

    def __call__(self, rows: Sequence[Any], key: np.ndarray | None = None) -> Sequence[jax.Array]:
        """One array per computed output, on the plan's device; `key` is a uint32[2] for a random model."""
        if next(self._calls) % _SAMPLE_EVERY:
            return self._run(rows, key)
        started = time.perf_counter()
        results = self._run(rows, key)
        jax.block_until_ready(results)
        self._times.append(time.perf_counter() - started)
        return results

    def _run(self, rows: Sequence[Any], key: np.ndarray | None) -> Sequence[jax.Array]:
        given = (*self._leading, *rows) if key is None else (*self._leading, *rows, key)
        if self._x64:
            with jax.enable_x64(True):
                return self._compiled(*given)
        return self._compiled(*given)

    @property
    def calls(self) -> int:
        """How often it ran."""
        return self._calls.__reduce__()[1][0]

    def info(self) -> PlanInfo:
        """Size, costs and use so far."""
        times = sorted(self._times)
        median = times[len(times) // 2] * 1e6 if times else None
        return PlanInfo(self.size, self.compile_ms, self.calls, median, _bytes(self._compiled), self.platform)


@dataclass(frozen=True)
class Lowered:
    """A traced and lowered size that waits to be compiled."""

    size: int
    compile: Callable[[], Plan]


class Planner:
    """Makes the plans of one model on one device; holds the weights that all sizes share."""

    def __init__(self, typed: TypedModel, device: jax.Device, weights: Weights = "constant", precision: str | None = "highest"):
        """Plan `typed` for `device`; `precision` is that of matrix products on accelerators (JAX's names)."""
        self.typed = typed
        self.device = device
        self.weights: Weights = weights
        self.precision = precision if device.platform != "cpu" else None
        self._leaves, self._structure = jax.tree.flatten(typed.params)
        self._placed: tuple[Any, ...] = ()
        if weights == "argument":
            with jax.enable_x64(True):
                self._placed = tuple(jax.device_put(leaf, device) for leaf in self._leaves)

    def lower(self, size: int) -> Lowered:
        """Trace and lower for `size` rows.

        Raises:
            LoweringError: the model cannot be traced at this size.
        """
        if size < 1:
            raise BatchSizeError(f"a plan needs at least one row, got batch size {size}")
        started = time.perf_counter()
        with _trace_lock, ExitStack() as scope:
            scope.enter_context(jax.enable_x64(True))
            if self.precision:
                scope.enter_context(jax.default_matmul_precision(self.precision))
            place = SingleDeviceSharding(self.device)
            lowered = jax.jit(self._function(), in_shardings=place, out_shardings=place).lower(*self._arguments(size))
        spent = time.perf_counter() - started

        def compile_now() -> Plan:
            begun = time.perf_counter()
            try:
                compiled = lowered.compile()
            except LoweringError:
                raise
            except Exception as cause:
                raise CompileError(f"XLA could not compile batch size {size} for {self.device}: {cause}") from cause
            ms = (spent + time.perf_counter() - begun) * 1e3
            return Plan(size, compiled, self.typed, self._placed, self.device.platform, ms)

        return Lowered(size, compile_now)

    def _function(self) -> Callable[..., Any]:
        """A fresh function for each size: an executable is freed only with the jit object that it came from."""
        n_inputs, typed, leaves = len(self.typed.api.inputs), self.typed, self._leaves
        n_leading = len(self._placed)

        def run(*given: Any) -> Any:
            params = jax.tree.unflatten(self._structure, given[:n_leading] if n_leading else leaves)
            rows = given[n_leading : n_leading + n_inputs]
            key = jax.random.wrap_key_data(given[-1], impl="threefry2x32") if typed.random else None
            return typed.fn(params, rows, key)

        return run

    def _arguments(self, size: int) -> list[Any]:
        rows = [jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype) for spec in self.typed.api.inputs]
        key = [jax.ShapeDtypeStruct((2,), np.uint32)] if self.typed.random else []
        return [*self._placed, *rows, *key]


def _bytes(compiled: Any) -> int | None:
    try:
        memory = compiled.memory_analysis()
        return int(memory.generated_code_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes)
    except Exception:
        return None
