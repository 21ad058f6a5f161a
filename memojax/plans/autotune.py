"""Autotuning: compile other candidates of a size, time them, and swap in the fastest between two calls."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import CompileError, InputError, LoweringError
from ..lowering.row_probe import random_rows
from ..xla.background import is_worker, submit
from ..xla.options import has_avx512, has_sound_convolutions
from .candidates import (
    CONVOLUTIONS,
    DEFAULT,
    EIGEN,
    EIGEN_CONVOLUTIONS,
    FLIPPED,
    FUSED,
    KERNELS,
    KERNELS_ORDERED,
    LAYERS,
    LAYOUTS,
    LOOPS,
    NARROW,
    NO_TRITON,
    ORDERED,
    PLAIN,
    THREE_PASSES,
    TWO_ROWS,
    Candidate,
    fits,
)
from .compiler import PlanCompiler
from .draws import without_loops
from .hoist import Residual
from .in_order import in_order
from .plan import Executable, Plan

Autotune = Literal["off", "preload", "background"]

Done: TypeAlias = Callable[[Plan], None]

log: logging.Logger = logging.getLogger("memojax")

DEFAULT_BUDGET_MB = 256
_MARGIN = 1.04
"""Minimum gain of a candidate; less is noise."""

_SECONDS = 0.15
"""Time of one comparison, which has at least `_ROUNDS` rounds."""
_ROUNDS = 9
_BLOCK_SECONDS = 0.001
_WIDE_MATRIX = 2 << 20
"""Bytes of a weight matrix that exceed a core's cache, so other layouts may help a batch of one."""

_PRODUCTS = ("dot_general", "scan", "while", "cond")
"""Primitives that are matrix products, or whose bodies usually hold some."""

_FULL_PRECISION = ("highest", "float32")
"""Precisions for which XLA takes all passes of a product, so fewer passes may be faster."""


class Tuner:
    """Tunes the plans of one inferer.

    CPU plans can be tuned if their weights are constants, GPU plans always. Tuning takes time on the
    background worker (or in `preload`), and memory for a second copy of weights, up to `budget` bytes.
    """

    def __init__(self, mode: Autotune = "off", budget_mb: float = DEFAULT_BUDGET_MB):
        """Tune preloaded sizes ("preload"), or also sizes in use, on the worker ("background")."""
        if mode not in ("off", "preload", "background"):
            raise InputError(f"autotune must be 'off', 'preload' or 'background', got {mode!r}")
        self.mode: Autotune = mode
        self.budget: int = int(budget_mb * (1 << 20))
        self._spent: weakref.WeakKeyDictionary[Plan, int] = weakref.WeakKeyDictionary()

    def handles(self, compiler: PlanCompiler) -> bool:
        """Whether the plans of `compiler` can be tuned."""
        platform = compiler.device.platform
        tunable = platform == "gpu" or (platform == "cpu" and compiler.weights == "constant")
        return self.mode != "off" and compiler.host and tunable

    def now(self, compiler: PlanCompiler, plan: Plan, done: Done = lambda plan: None) -> None:
        """Tune `plan` in this thread; then `done(plan)`."""
        # Outside of the worker, a preload waits for this, so there are no pauses.
        for _ in self._steps(compiler, plan, lambda plan: True, done, pause=is_worker()):
            pass

    def when_hot(self, compiler: PlanCompiler, plan: Plan, alive: Callable[[Plan], bool], done: Done) -> None:
        """Tune `plan` on the worker after about fifty calls, while `alive(plan)`; then `done(plan)`."""
        reference = weakref.ref(plan)  # The meter belongs to the plan and must not keep it alive.

        def start() -> None:
            if (plan := reference()) is not None:
                _in_background(self._steps(compiler, plan, alive, done, pause=True))

        plan.meter.when_hot = start

    def _steps(
        self, compiler: PlanCompiler, plan: Plan, alive: Callable[[Plan], bool], done: Done, pause: bool
    ) -> Iterator[None]:
        # A generator: each yield is a point where the worker may do more urgent work.
        # Taken from the plan: the trace is large, and nothing needs it afterwards.
        residual, plan.traced = plan.traced or compiler.trace(plan.size), None
        rows = _rows(compiler, plan.size)
        default = best = plan.executable
        tried = candidates(residual, plan.size, compiler)
        # Where the kernels are this plan's default, XLA's own code competes as well.
        if default.candidate.startswith(KERNELS.name):
            tried.insert(0, DEFAULT)
        elif default.candidate != DEFAULT.name:
            tried.insert(0, PLAIN)
        tried = [candidate for candidate in tried if candidate.name != default.candidate]
        for candidate in tried:
            yield
            # The plan may have been dropped or replaced since the last step.
            if not alive(plan):
                return
            if candidate.packs and self._used() + 2 * compiler.weight_bytes > self.budget:
                log.debug("batch size %d: no room in autotune_budget_mb for %r", plan.size, candidate.name)
                continue
            executable = _compiled(compiler, plan, residual, candidate)
            yield
            # Speed never counts without equal numbers.
            if executable is None or not _agrees(plan, executable, rows, default):
                continue
            gain = compare(best.run, executable.run, rows, pause)
            log.debug(
                "batch size %d: candidate %r takes 1/%.2f of the time of %r",
                plan.size,
                candidate.name,
                gain,
                best.candidate,
            )
            if gain > _MARGIN:
                best = executable
        yield
        # Once more against the default: the winner of several noisy comparisons may have won by luck.
        gain = compare(default.run, best.run, rows, pause) if best is not default else 0.0
        if gain > _MARGIN:
            # One assignment: calls under way finish on the old executable.
            plan.executable = best
            self._spent[plan] = 2 * compiler.weight_bytes
            log.info(
                "batch size %d: %r is %.2f times as fast as the default", plan.size, best.candidate, gain
            )
        # 1.0 records that the default won, so no other process tunes this size again.
        plan.gain = gain if gain > _MARGIN else 1.0
        done(plan)

    def _used(self) -> int:
        return sum(self._spent.values())


def candidates(residual: Residual, size: int, compiler: PlanCompiler) -> list[Candidate]:
    """Candidates worth trying on the compiler's device, judging by the operations of a model."""
    if compiler.device.platform != "cpu":
        return _on_gpu(residual, compiler)
    names = [step.primitive.name for step in residual.steps]
    products = sum(names.count(name) for name in _PRODUCTS)
    convolutions = _has_convolutions(residual)
    found = []
    if products or convolutions:
        found.append(FUSED)
    if products > 1:
        found.append(LAYERS)
    if products and size > 1:  # XLA itself compiles a row times a matrix, with or without Eigen.
        found += [EIGEN, LOOPS]
    if convolutions:
        found += [CONVOLUTIONS, EIGEN_CONVOLUTIONS] if has_sound_convolutions() else [EIGEN_CONVOLUTIONS]
    if has_avx512():
        found.append(NARROW)
    if in_order(without_loops(residual)) is not None:
        found.append(ORDERED)
        if compiler.default.kernels:
            found.append(KERNELS_ORDERED)
    typed = compiler.typed
    if size == 1 and products and compiler.largest_weight >= _WIDE_MATRIX:
        found.append(FLIPPED)
        # The second row is only filling, so it must not reach the first one, nor the next random draw.
        plain = typed.only_rows is None and not any(spec.shared for spec in typed.api.inputs)
        if plain and not typed.random and not typed.mixing_outputs():
            found.append(TWO_ROWS)
    constants = compiler.constants(residual)
    return [candidate for candidate in found if fits(candidate, residual, constants)]


def _on_gpu(residual: Residual, compiler: PlanCompiler) -> list[Candidate]:
    names = {step.primitive.name for step in residual.steps}
    found = []
    if names.intersection(_PRODUCTS):
        found.append(NO_TRITON)
    # With a lower precision, XLA may use one pass already.
    if "dot_general" in names and compiler.precision in _FULL_PRECISION:
        found.append(THREE_PASSES)
    if names.intersection((*_PRODUCTS, "conv_general_dilated")) and compiler.weights == "argument":
        found.append(LAYOUTS)
    return found


def compare(
    old: Callable[[Any], Any], new: Callable[[Any], Any], rows: Sequence[Any], pause: bool = False
) -> float:
    """Cautious speed of `new` over `old`: the lower of two ratios, of the medians and of the fast rounds."""
    # Both take turns in short blocks, in alternating order, so a change of clock or load hits both alike.
    # The first calls find caches cold, and link code.
    for run in (old, new):
        for _ in range(3):
            run(rows)
    # Blocks of about a millisecond: long against the clock's resolution, short against a change of load.
    count = max(1, int(_BLOCK_SECONDS / max(_block(old, rows, 1), 1e-6)))
    times: list[tuple[float, float]] = []
    stop = time.perf_counter() + _SECONDS
    while len(times) < _ROUNDS or (time.perf_counter() < stop and len(times) < 60):
        first, second = (old, new) if len(times) % 2 else (new, old)
        one, other = _block(first, rows, count), _block(second, rows, count)
        times.append((one, other) if first is old else (other, one))
        # On the worker, half of the time belongs to the program that is being served.
        if pause:
            time.sleep(min(sum(times[-1]) * count, 0.05))
    # The second fastest round: the very fastest may be a slip of the clock.
    before, after = zip(*times, strict=True)
    return min(statistics.median(before) / statistics.median(after), sorted(before)[1] / sorted(after)[1])


def _block(run: Callable[[Any], Any], rows: Sequence[Any], count: int) -> float:
    # Not timed: the other contender's weights and rows still fill the core's caches.
    run(rows)
    started = time.perf_counter()
    for _ in range(count):
        run(rows)
    return (time.perf_counter() - started) / count


def _compiled(
    compiler: PlanCompiler, plan: Plan, residual: Residual, candidate: Candidate
) -> Executable | None:
    """`plan` compiled by another candidate; None if this jaxlib cannot."""
    try:
        # XLA's own code takes convolutions of more channels, which the trace for kernels does not have.
        as_default = candidate.kernels == compiler.default.kernels or not _has_convolutions(residual)
        if candidate.rows > 1 or not as_default:
            residual = compiler.trace(plan.size * candidate.rows, candidate)
        return compiler.prepare(plan.size, residual, plan.meter, candidate)()
    except (CompileError, LoweringError) as cause:
        log.debug("batch size %d: candidate %r is not possible here: %s", plan.size, candidate.name, cause)
        return None


def _has_convolutions(residual: Residual) -> bool:
    return any(step.primitive.name == "conv_general_dilated" for step in residual.steps)


def _agrees(plan: Plan, executable: Executable, rows: Sequence[np.ndarray], default: Executable) -> bool:
    """Whether a candidate runs and agrees with the default; some jaxlibs compile code that cannot run."""
    # Weights that are arguments may change between the two calls, so there is a second try.
    for _ in range(2):
        expected = default.run(rows)
        try:
            given = executable.run(rows)
        except Exception as cause:
            name = executable.candidate
            log.debug("batch size %d: candidate %r does not run here: %s", plan.size, name, cause)
            return False
        if _equal(expected, given):
            return True
    log.warning(
        "batch size %d: candidate %r gives other numbers than the default, so it is dropped",
        plan.size,
        executable.candidate,
    )
    return False


def _equal(expected: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> bool:
    for one, other in zip(expected, given, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.dtype.kind in "biu":
            if not np.array_equal(one, other):
                return False
        # Another order of sums changes the last digits. A larger difference is a mistake of the compiler.
        elif not np.allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            return False
    return True


def _rows(compiler: PlanCompiler, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [random_rows(rng, size, spec) for spec in compiler.typed.api.inputs]
    return [*rows, np.zeros(2, np.uint32)] if compiler.typed.random else rows


def _in_background(steps: Iterator[None]) -> None:
    """Run each of `steps` as one task of the worker: compiles come between, and the program can end."""

    def step() -> None:
        with contextlib.suppress(StopIteration):
            next(steps)
            submit(step)

    submit(step)
