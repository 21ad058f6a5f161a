"""Makes the plans of one model on one device: trace and lower under one lock, compile outside it."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from ..errors import BatchSizeError, CompileError, LoweringError
from ..lowering.typed_model import TypedModel
from ..model.signature import TensorSpec
from ..ops.inline import inlined
from ..xla.options import compiled as compiled_for
from ..xla.settings import own_settings
from .candidates import DEFAULT, Candidate
from .dispatch import Meter, by_name, lean_call, never, on_device, on_host
from .hoist import Hoister, Residual
from .input_buffers import Staging
from .packing import PACKED_BYTES, Packing
from .plan import Executable, Plan
from .weight_arguments import Leading, Placing

Weights = Literal["auto", "constant", "argument"]

trace_lock = threading.RLock()
"""Held while JAX traces: Python work that only one thread can do at a time anyway."""

_LARGE = 8 << 20
"""Bytes of weights from which "auto" passes them as arguments, even on CPU: as constants they would double compile times."""


_LINKED_NOW = 1 << 20
"""Bytes of input up to which a plan is called once before it is used: the first call links the code, 1.5 ms that a small one would feel."""


@dataclass(frozen=True)
class Lowered:
    """A traced and lowered size that waits to be compiled."""

    size: int
    compile: Callable[[], Plan]

    def then(self, finish: Callable[[Plan], None]) -> Lowered:
        """The same, with `finish(plan)` called once it is compiled."""

        def compile_and_finish() -> Plan:
            plan = self.compile()
            finish(plan)
            return plan

        return Lowered(self.size, compile_and_finish)


class PlanCompiler:
    """Plans of one model on one device; holds the weights that all sizes share."""

    def __init__(
        self,
        typed: TypedModel,
        device: jax.Device,
        weights: Weights = "auto",
        precision: str | None = "highest",
        *,
        host: bool = True,
        like: PlanCompiler | None = None,
    ):
        """Plan `typed` for `device`.

        Args:
            weights: "constant" (part of the executables), "argument" (passed with each call), or "auto": constant for small weights on CPU.
            precision: of matrix products on accelerators (JAX's names).
            host: whether the plans take and give NumPy arrays (else `jax.Array`s).
            like: a compiler of the same weights on the same device, which shares what it made of them.

        Set `keep_traces` to have plans keep what was traced, for autotuning.
        """
        self.typed = typed
        self.device = device
        self.precision = precision if device.platform != "cpu" else None
        self.host = host
        self.keep_traces = False
        self._name = plain_name(typed.name or "function")
        self._packs_inputs = device.platform != "cpu"
        leaves, self._structure = jax.tree.flatten(typed.params)
        self.weight_bytes = sum(leaf.nbytes for leaf in leaves)
        self.largest_weight = max((leaf.nbytes for leaf in leaves), default=0)
        large = self.weight_bytes > _LARGE
        self.weights: Weights = (
            weights if weights != "auto" else "argument" if device.platform != "cpu" or large else "constant"
        )
        shares = like is not None and like.holds(leaves)
        self._hoister = like._hoister if like is not None and shares else Hoister(leaves)
        self._placing = like._placing if like is not None and shares else Placing(self._hoister, device)
        shapes = {spec.name: spec for spec in typed.api.outputs}
        self._outputs = [shapes[name] for name in typed.computed]
        self.input_bytes = sum(map(_bytes, typed.api.inputs))
        self.row_bytes = self.input_bytes + sum(map(_bytes, self._outputs))

    def holds(self, leaves: Sequence[Any]) -> bool:
        """Whether these are the weights that this compiler works with."""
        own = self._hoister.leaves
        return len(own) == len(leaves) and all(a is b for a, b in zip(own, leaves, strict=True))

    def lower(self, size: int, candidate: Candidate = DEFAULT, residual: Residual | None = None) -> Lowered:
        """Trace (unless that has been done: `residual`) and lower for `size` rows, by the default candidate or another.

        Raises:
            LoweringError: the model cannot be traced at this size.
        """
        if size < 1:
            raise BatchSizeError(f"a plan needs at least one row, got batch size {size}")
        meter = Meter()
        started = time.perf_counter()
        with trace_lock:
            residual = residual or self.trace(size * candidate.rows)
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
        compiled: Any,
        ms: float,
        candidate: Candidate = DEFAULT,
        residual: Residual | None = None,
    ) -> Plan:
        """A plan from an executable that was compiled before; where weights are its arguments, for `residual`."""
        meter = Meter()
        packing = self._output_packing(size)
        leading = self._placing.place(residual.nodes) if residual else Leading()
        executable = self._executable(size, compiled, packing, leading, candidate, meter)
        return Plan(size, executable, meter, self.device.platform, ms, self.typed.random)

    def update(self, params: Any) -> None:
        """Give all plans, and those still to be made, other weights of the same names, shapes and dtypes; only where they are arguments.

        A call that runs meanwhile sees all the old weights or all the new ones.
        """
        self._placing.replace(jax.tree.leaves(params))

    def trace(self, size: int) -> Residual:
        """The model at `size` rows, without what depends on weights alone."""
        arguments = [*map(_abstract, self._hoister.leaves), *self._rows(size)]
        with trace_lock, own_settings(self.precision):
            return self._hoister.split(jax.make_jaxpr(self._function())(*arguments))

    def constants(self, residual: Residual) -> list[np.ndarray]:
        """The values that `residual` begins with, made of the weights."""
        return self._hoister.values(residual.nodes)

    def prepare(
        self, size: int, residual: Residual, meter: Meter, candidate: Candidate = DEFAULT
    ) -> Callable[[], Executable]:
        """Lower a traced size by a candidate; gives what compiles it. The executable counts its calls in `meter`.

        `residual` was traced for `candidate.rows` times as many rows.
        """
        packing = self._output_packing(size)
        constants = self.constants(residual) if self.weights == "constant" else None
        leading = Leading() if constants is not None else self._placing.place(residual.nodes)
        count = len(leading.values)

        rows = self._rows(size)
        inputs = self._input_packing(rows)

        def run(*given: Any) -> Any:
            rows = given[count:] if inputs is None else inputs.parts(given[count:])
            outputs = candidate.trace(residual, given[:count] if constants is None else constants, rows)
            return packing.pack(outputs) if self.host else tuple(outputs)

        # What profiles and dumps call the executable.
        run.__name__ = f"{self._name}_batch_{size}"
        place = SingleDeviceSharding(self.device)
        given = rows if inputs is None else inputs.results([row.dtype for row in rows])
        with trace_lock, own_settings(self.precision):
            lowered = jax.jit(run, in_shardings=place, out_shardings=place).lower(*leading.values, *given)

        def finish() -> Executable:
            try:
                with jax.profiler.TraceAnnotation(
                    "memojax compile", batch_size=size, candidate=candidate.name
                ):
                    with own_settings(self.precision):
                        compiled = compiled_for(lowered, self.device, candidate.options)
                    return self._executable(size, compiled, packing, leading, candidate, meter)
            except LoweringError:
                raise
            except Exception as cause:
                raise CompileError(
                    f"XLA could not compile batch size {size} for {self.device}: {cause}"
                ) from cause

        return finish

    def _executable(
        self, size: int, compiled: Any, packing: Packing, leading: Leading, candidate: Candidate, meter: Meter
    ) -> Executable:
        call = lean_call(compiled)
        if not self.host:
            return Executable(compiled, on_device(call, leading), never, candidate.name)
        rows = self._rows(size)
        staging = Staging(
            [row.shape for row in rows], [row.dtype for row in rows], self.device, self._input_packing(rows)
        )
        run = on_host(call, staging, packing, leading)
        typed = self.typed
        answer = by_name(run, call, staging, packing, leading, typed.api, typed.computed, typed.random, meter)
        if size * self.input_bytes <= _LINKED_NOW:
            run([np.zeros(row.shape, row.dtype) for row in rows])
        return Executable(compiled, run, answer, candidate.name)

    def _function(self) -> Callable[..., Any]:
        """A fresh function for each size: an executable is freed only with the jit object that it came from."""
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
        """Inputs at `size` rows, and the key of a random model."""
        rows = [jax.ShapeDtypeStruct(spec.rows(size), spec.dtype) for spec in self.typed.api.inputs]
        return [*rows, jax.ShapeDtypeStruct((2,), np.uint32)] if self.typed.random else rows

    def _output_packing(self, size: int) -> Packing:
        """How outputs are laid out; where an element's shape depends on the batch, the shapes are evaluated."""
        dtypes = [spec.dtype for spec in self._outputs]
        if all(spec.is_fixed for spec in self._outputs):
            return Packing.of([spec.rows(size) for spec in self._outputs], dtypes)
        weights = jax.tree.unflatten(self._structure, [*map(_abstract, self._hoister.leaves)])
        key = jax.ShapeDtypeStruct((2,), np.uint32)

        def shapes(params: Any, rows: Any, key: Any) -> Any:
            drawn = jax.random.wrap_key_data(key, impl="threefry2x32") if self.typed.random else None
            return self.typed.fn(params, rows[: len(self.typed.api.inputs)], drawn)

        with trace_lock, own_settings(self.precision):
            found = jax.eval_shape(shapes, weights, self._rows(size), key)
        return Packing.of([value.shape for value in found], dtypes)

    def _input_packing(self, rows: Sequence[Any]) -> Packing | None:
        """How inputs travel to an accelerator: few transfers of a microsecond each are what a small batch waits for."""
        small = sum(math.prod(row.shape) * row.dtype.itemsize for row in rows) <= PACKED_BYTES
        if not (self.host and self._packs_inputs and small and len(rows) > 1):
            return None
        return Packing.of([row.shape for row in rows], [row.dtype for row in rows])


def plain_name(name: str) -> str:
    """A model's name, made fit for XLA: the last part of a path, letters, digits and underscores."""
    return (
        re.sub(
            r"\W+", "_", name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".onnx"), flags=re.ASCII
        ).strip("_")[:60]
        or "model"
    )


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.rows(1)) * spec.dtype.itemsize


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
