"""Compiles the plans of one model on one device: traces and lowers under one lock, compiles outside of it."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from ..errors import BatchSizeError, CompileError, LoweringError
from ..kernels.direct import Direct, direct
from ..kernels.library import opened
from ..kernels.rewrite import rewrite
from ..kernels.threads import usable_cores
from ..lowering.typed_model import TypedModel
from ..model.signature import TensorSpec
from ..ops.inline import inlined
from ..xla.cpu_client import cpu_device
from ..xla.draws import at_once
from ..xla.limits import COMPILED, for_one_executable
from ..xla.memory import check_memory
from ..xla.options import compiled as compiled_for
from ..xla.options import over_defaults
from ..xla.settings import own_settings
from .candidates import DEFAULT, HALVES, KERNELS, Candidate, plain, unordered, without_kernels
from .choice import chosen, pays_in_halves
from .columns import with_columns
from .direct import direct_calls
from .dispatch import Meter, by_name, lean_call, never, on_device, on_host
from .draws import without_loops
from .halves import FIRST_ROW, Halves, can_halve, half_of
from .hoist import Hoister, Residual
from .in_order import in_order
from .input_buffers import Staging
from .long_chains import cut, steps_of
from .packing import DRAWN_BYTES, PACKED_BYTES, Packing
from .plan import LINKED_NOW, Compiled, Executable, Plan
from .strides import with_more_channels
from .way import Lowered, Way
from .weight_arguments import Leading, WeightArguments

log: logging.Logger = logging.getLogger("memojax")

Weights = Literal["auto", "constant", "argument"]

trace_lock: threading.RLock = threading.RLock()
"""Held while JAX traces, which is Python work that only one thread can do at a time anyway."""

_LARGE = 8 << 20
"""Bytes of weights from which "auto" passes them as arguments on CPU, because constants double compile
times."""


class PlanCompiler:
    """Compiles the plans of one model for one device, and holds the weights that all sizes share."""

    def __init__(
        self,
        typed: TypedModel,
        device: jax.Device,
        weights: Weights = "auto",
        precision: str | None = "highest",
        *,
        host: bool = True,
        like: PlanCompiler | None = None,
        threads: int | None = None,
        cores: int | None = None,
    ):
        """Prepare to compile `typed` for `device`.

        Set `keep_traces` to keep the trace of each plan for autotuning.

        Args:
            typed: the model.
            device: the device that runs the plans.
            weights: "constant" (part of the executables), "argument" (passed with each call), or "auto":
                constant for small weights on CPU.
            precision: precision of matrix products on accelerators, by JAX's names.
            host: whether the plans take and give NumPy arrays (else `jax.Array`s).
            like: a compiler of the same weights on the same device, with which to share computed values.
            threads: see `InferOptions`.
            cores: number of cores that will run the plans; by default those of this thread.
        """
        self.typed = typed
        self.device = device
        self.precision: str | None = precision if device.platform != "cpu" else None
        self.host = host
        self.threads = threads
        self.cores: int = cores or min(usable_cores(), threads or usable_cores())
        self.keep_traces = False
        self._name = plain_name(typed.name or "function")
        self._packs_inputs = device.platform != "cpu"
        leaves, self._structure = jax.tree.flatten(typed.params)
        self.weight_bytes: int = sum(leaf.nbytes for leaf in leaves)
        self.largest_weight: Any | int = max((leaf.nbytes for leaf in leaves), default=0)
        large = self.weight_bytes > _LARGE
        self.weights: Weights = (
            weights if weights != "auto" else "argument" if device.platform != "cpu" or large else "constant"
        )
        shares = like is not None and like.holds(leaves)
        self._hoister = (
            like._hoister if like is not None and shares else Hoister(leaves, limited=typed.model is not None)
        )
        self._arguments = (
            like._arguments if like is not None and shares else WeightArguments(self._hoister, device)
        )
        self._halves = (
            Halves(typed, self._arguments, self._rows, self._output_packing)
            if host and device.platform == "cpu" and can_halve(typed) and device == cpu_device()
            else None
        )
        shapes = {spec.name: spec for spec in typed.api.outputs}
        self._outputs = [shapes[name] for name in typed.computed]
        self.input_bytes: int = sum(map(_bytes, typed.api.inputs))
        self.row_bytes: int = self.input_bytes + sum(map(_bytes, self._outputs))

    def holds(self, leaves: Sequence[Any]) -> bool:
        """Whether this compiler works with exactly these weights."""
        own = self._hoister.leaves
        return len(own) == len(leaves) and all(a is b for a, b in zip(own, leaves, strict=True))

    @property
    def default(self) -> Candidate:
        """The candidate for sizes that have no remembered choice."""
        return KERNELS if self.device.platform == "cpu" and opened() is not None else DEFAULT

    def lower(
        self, size: int, candidate: Candidate | None = None, residual: Residual | None = None
    ) -> Lowered:
        """Trace (unless `residual` is given) and lower for `size` rows, for a candidate.

        Raises:
            LoweringError: the model cannot be traced at this size.
        """
        if size < 1:
            raise BatchSizeError(f"a plan needs at least one row, got batch size {size}")
        candidate = candidate or self.default
        meter = Meter()
        started = time.perf_counter()
        with trace_lock:
            # One lock around both steps: they are Python work, so another thread would only take turns here.
            residual = residual or self.trace(size * candidate.rows, candidate)
            finish = self.prepare(size, residual, meter, candidate)
        spent = time.perf_counter() - started

        def compile_now() -> Plan:
            begun = time.perf_counter()
            executable = finish()
            ms = (spent + time.perf_counter() - begun) * 1e3
            plan = Plan(size, executable, meter, self.device.platform, ms, self.typed.random)
            plan.traced = residual if self.keep_traces and candidate.rows == 1 else None
            return plan

        return Lowered(size, compile_now)

    def adopt(
        self,
        size: int,
        compiled: Compiled,
        ms: float,
        candidate: Candidate = DEFAULT,
        residual: Residual | None = None,
    ) -> Plan:
        """A plan from an executable compiled elsewhere; `residual` names its weight arguments, if any."""
        meter = Meter()
        packing = self._output_packing(size)
        if compiled.beside is not None:
            if self._halves is None:
                raise LookupError("this plan runs in two halves")
            nodes = self.trace(half_of(size), HALVES).nodes if residual else ()
            halves = self._halves.executable(size, compiled, nodes, meter)
            return Plan(size, halves, meter, self.device.platform, ms, self.typed.random)
        if residual:
            residual, candidate = self._with_kernels(size, residual, candidate)
        leading = Leading()
        if residual:
            count = len(residual.nodes)
            formats = _formats(compiled.executable, count) if candidate.layouts else ()
            leading = self._arguments.place(residual.nodes, formats)
        executable = self._executable(size, compiled, packing, leading, candidate, meter)
        return Plan(size, executable, meter, self.device.platform, ms, self.typed.random)

    def updating(self, typed: TypedModel) -> Callable[[], None]:
        """Prepare the weights of `typed`; the returned function switches all plans to them, also later ones.

        This needs weights that are arguments, and equal names, shapes and dtypes. A concurrent call sees all
        the old weights or all the new ones.
        """
        replace = self._arguments.replacing(jax.tree.leaves(typed.params))

        def update() -> None:
            replace()
            self.typed = typed

        return update

    def trace(self, size: int, candidate: Candidate | None = None) -> Residual:
        """Trace the model at `size` rows for a candidate, and split off the computation on weights alone."""
        kernels = (candidate or self.default).kernels and opened() is not None
        arguments = [*map(_abstract, self._hoister.leaves), *self._rows(size)]
        with trace_lock, own_settings(self.precision), for_one_executable():
            closed = at_once(jax.make_jaxpr(self._function())(*arguments))
            if self.device.platform == "cpu" and not kernels:  # the kernels have their own way
                return with_columns(self._hoister.split(with_more_channels(closed)), self._hoister)
            return self._hoister.split(closed)

    def constants(self, residual: Residual) -> list[np.ndarray]:
        """The values of the leading arguments of `residual`, computed from the weights."""
        return self._hoister.values(residual.nodes)

    def prepare(
        self, size: int, residual: Residual, meter: Meter, candidate: Candidate = DEFAULT
    ) -> Callable[[], Executable]:
        """Lower a traced size for a candidate, and return the function that compiles it.

        `residual` was traced for `candidate.rows` times the size. `meter` counts the executable's calls.
        """
        way = self._way(size, residual, candidate)
        packing = self._output_packing(way.rows)
        constants = self.constants(way.residual) if self.weights == "constant" else None
        # Such a plan has its executable as any other: for its memory, its file and its HLO. Calls run the
        # program, which holds the weights, so the executable takes them as arguments and needs no copy.
        program = direct(way.whole, constants) if way.candidate.kernels and self.host else None
        leading = Leading() if constants is not None else self._arguments.place(way.residual.nodes)
        arguments: Sequence[Any] = leading.values
        if program is not None and constants is not None:
            arguments = [*map(_abstract, constants)]
        if way.in_halves:
            arguments = [*map(_abstract, arguments)]
        # The user's JAX settings must not change what is compiled.
        with trace_lock, own_settings(self.precision):
            try:
                lowered = self._lowered(size, way, arguments, constants, packing)
            except Exception as cause:
                # Without groups or halves of ours, the error concerns the model itself.
                if not way.ordered and not way.in_halves:
                    raise
                log.debug("batch size %d cannot be traced as %r: %s", size, way.candidate.name, cause)
                return self.prepare(size, residual, meter, plain(candidate))

        def finish() -> Executable:
            try:
                with jax.profiler.TraceAnnotation(
                    "memojax compile", batch_size=size, candidate=way.candidate.name
                ):
                    made = self._compiled(size, lowered, way, program)
                    kept = leading
                    if way.in_halves and self._halves:
                        return self._halves.executable(size, made, leading.nodes, meter)
                    if way.candidate.layouts:
                        formats = _formats(made.executable, len(arguments))
                        kept = self._arguments.place(leading.nodes, formats)
                    return self._executable(size, made, packing, kept, way.candidate, meter)
            except LoweringError:
                raise
            except Exception as cause:
                simpler = self._simpler(size, way, candidate, cause)
                return self.prepare(size, residual, meter, simpler)()

        return finish

    def _way(self, size: int, residual: Residual, candidate: Candidate) -> Way:
        """Rewrite a trace for a candidate: with kernels, without loops, and in pieces or in order."""
        residual, candidate = self._with_kernels(size, residual, candidate)
        on_cpu = self.device.platform == "cpu"
        whole = residual
        if candidate.halves or (candidate == DEFAULT and pays_in_halves(residual, size, self.cores)):
            half = self._halves.of(size, residual, self.trace) if self._halves else None
            if half is not None:
                COMPILED.check(steps_of(half), f"batch size {size}")
                chooses = candidate == DEFAULT
                return Way(whole, half, HALVES, False, chooses, half_of(size), in_halves=True)
            candidate = DEFAULT
        if on_cpu:  # Accelerators have kernels of their own for draws.
            residual = without_loops(residual)
        whole = residual
        COMPILED.check(steps_of(residual), f"batch size {size}")
        pieces = cut(residual) if on_cpu else None
        chooses = candidate == DEFAULT and on_cpu
        if chooses:
            candidate = chosen(residual, over_defaults(self.device, {}))
        ordered = self._ordered(size, residual, candidate, not chooses) if pieces is None else None
        if ordered is not None:
            return Way(whole, *ordered, ordered=True, chosen=chooses, rows=size)
        return Way(whole, pieces or residual, unordered(candidate), ordered=False, chosen=chooses, rows=size)

    def _lowered(
        self,
        size: int,
        way: Way,
        arguments: Sequence[Any],
        constants: Sequence[np.ndarray] | None,
        packing: Packing,
    ) -> Any:
        """JAX's lowered function of the weight arguments, then the rows."""
        count = len(arguments)
        rows = self._rows(way.rows)
        if len(rows) < len(way.residual.inputs):
            rows.append(FIRST_ROW)
        inputs = self._input_packing(rows)

        def run(*given: Any) -> Any:
            rows = given[count:] if inputs is None else inputs.parts(given[count:])
            weights = given[:count] if count or constants is None else constants
            outputs = way.candidate.trace(way.residual, weights, rows)
            return packing.pack(outputs) if self.host else tuple(outputs)

        # XLA shows this name in profiles and dumps.
        run.__name__ = f"{self._name}_batch_{size}"
        place = SingleDeviceSharding(self._halves.here if way.in_halves and self._halves else self.device)
        given = rows if inputs is None else inputs.results([row.dtype for row in rows])
        places: Any = place
        if way.candidate.layouts:
            arguments = [_abstract(value) for value in arguments]
            places = (*[Format(Layout.AUTO, place)] * count, *[place] * len(given))
        return jax.jit(run, in_shardings=places, out_shardings=place).lower(*arguments, *given)

    def _compiled(self, size: int, lowered: Any, way: Way, program: Direct | None) -> Compiled:
        with own_settings(self.precision):
            compiled = compiled_for(lowered, self.device, way.candidate.options)
            beside = self._halves.beside(compiled) if way.in_halves and self._halves else None
        if self.typed.model is not None:
            check_memory(compiled, size)
            if program is not None:
                check_memory(program, size)
        return Compiled(compiled, program, beside)

    def _simpler(self, size: int, way: Way, wanted: Candidate, cause: Exception) -> Candidate:
        """The candidate to try after XLA refused `way`: first without our choice, then without kernels.

        A problem with either costs only speed.

        Raises:
            CompileError: nothing simpler is left.
        """
        if way.ordered or way.in_halves or (way.chosen and way.candidate.options):
            log.debug("batch size %d does not compile as %r: %s", size, way.candidate.name, cause)
            return plain(wanted)
        if way.candidate.kernels:
            log.warning("batch size %d: XLA takes no kernels here (%s): it uses its own", size, cause)
            return DEFAULT
        raise CompileError(f"XLA could not compile batch size {size} for {self.device}: {cause}") from cause

    def _with_kernels(
        self, size: int, residual: Residual, candidate: Candidate
    ) -> tuple[Residual, Candidate]:
        """The residual with calls of kernels in it, if `candidate` wants kernels and they can run a part."""
        kernels = opened() if candidate.kernels and self.device.platform == "cpu" else None
        if kernels is None:
            return residual, candidate if not candidate.kernels else without_kernels(candidate)
        kernels.use_threads()
        try:
            rewritten = rewrite(residual, size, self._hoister, kernels, self.threads)
        except Exception as cause:  # A mistake in the rewriting must not keep a model from running.
            log.warning("batch size %d: no kernels for this model (%r): XLA uses its own", size, cause)
            return residual, without_kernels(candidate)
        return (rewritten, candidate) if rewritten else (residual, without_kernels(candidate))

    def _ordered(
        self, size: int, residual: Residual, candidate: Candidate, deep: bool
    ) -> tuple[Residual, Candidate] | None:
        """The residual in groups that run in order, if `candidate` wants that and groups pay."""
        if not candidate.ordered or self.device != cpu_device():
            return None
        try:
            grouped = in_order(residual, deep)
        except Exception as cause:  # A mistake in the grouping must not keep a model from running.
            log.warning("batch size %d: no plan in order (%r): XLA chooses the order", size, cause)
            return None
        return (grouped, candidate) if grouped else None

    def _executable(
        self,
        size: int,
        made: Compiled,
        packing: Packing,
        leading: Leading,
        candidate: Candidate,
        meter: Meter,
    ) -> Executable:
        rows = self._rows(size)
        if made.program is not None:
            specs = [(row.shape, row.dtype) for row in rows]
            run, answer = direct_calls(
                made.program, specs, leading, self.typed.api, self.typed.computed, self.typed.random, meter
            )
            return Executable(made, run, answer, candidate.name)
        call = lean_call(made.executable)
        if not self.host:
            return Executable(made, on_device(call, leading), never, candidate.name)
        staging = Staging(
            [row.shape for row in rows], [row.dtype for row in rows], self.device, self._input_packing(rows)
        )
        run = on_host(call, staging, packing, leading)
        typed = self.typed
        answer = by_name(run, call, staging, packing, leading, typed.api, typed.computed, typed.random, meter)
        if size * self.input_bytes <= LINKED_NOW:
            run([np.zeros(row.shape, row.dtype) for row in rows])
        return Executable(made, run, answer, candidate.name)

    def _function(self) -> Callable[..., Any]:
        """A new function for each size, because JAX frees an executable only with its jit object."""
        n_weights, n_inputs, typed, structure = (
            len(self._hoister.leaves),
            len(self.typed.api.inputs),
            self.typed,
            self._structure,
        )

        def run(*given: Any) -> Any:
            rows = given[n_weights : n_weights + n_inputs]
            key = jax.random.wrap_key_data(given[-1], impl="threefry2x32") if typed.random else None
            with inlined() if typed.model else nullcontext():
                return typed.fn(jax.tree.unflatten(structure, given[:n_weights]), rows, key)

        return run

    def _rows(self, size: int) -> list[jax.ShapeDtypeStruct]:
        """Abstract inputs at `size` rows, and the key of a random model."""
        rows = [jax.ShapeDtypeStruct(spec.rows(size), spec.dtype) for spec in self.typed.api.inputs]
        return [*rows, jax.ShapeDtypeStruct((2,), np.uint32)] if self.typed.random else rows

    def _output_packing(self, size: int) -> Packing:
        """The layout of outputs; shapes that depend on the batch size are evaluated abstractly."""
        dtypes = [spec.dtype for spec in self._outputs]
        limit = DRAWN_BYTES if self.typed.random and self.device.platform == "cpu" else PACKED_BYTES
        if all(spec.is_fixed for spec in self._outputs):
            return Packing.of([spec.rows(size) for spec in self._outputs], dtypes, limit)
        weights = jax.tree.unflatten(self._structure, [*map(_abstract, self._hoister.leaves)])
        key = jax.ShapeDtypeStruct((2,), np.uint32)

        def shapes(params: Any, rows: Any, key: Any) -> Any:
            drawn = jax.random.wrap_key_data(key, impl="threefry2x32") if self.typed.random else None
            return self.typed.fn(params, rows[: len(self.typed.api.inputs)], drawn)

        with trace_lock, own_settings(self.precision):
            found = jax.eval_shape(shapes, weights, self._rows(size), key)
        return Packing.of([value.shape for value in found], dtypes, limit)

    def _input_packing(self, rows: Sequence[Any]) -> Packing | None:
        """The packing of small inputs for an accelerator, where each transfer costs a microsecond."""
        small = sum(math.prod(row.shape) * row.dtype.itemsize for row in rows) <= PACKED_BYTES
        if not (self.host and self._packs_inputs and small and len(rows) > 1):
            return None
        return Packing.of([row.shape for row in rows], [row.dtype for row in rows])


def plain_name(name: str) -> str:
    """A model's name in XLA's alphabet: the last part of its path, in letters, digits and underscores."""
    return (
        re.sub(
            r"\W+", "_", name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".onnx"), flags=re.ASCII
        ).strip("_")[:60]
        or "model"
    )


def _formats(compiled: Any, count: int) -> tuple[Any, ...]:
    """The layouts that an executable wants for its first `count` arguments."""
    return compiled.input_formats[0][:count]


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.rows(1)) * spec.dtype.itemsize


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
