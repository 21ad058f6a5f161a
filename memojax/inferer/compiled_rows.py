"""Runs NumPy rows through the plans of one engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._types import Arrays
from ..errors import BatchSizeError, InputShapeError, RowsMixError
from ..lowering.batch_axis import BatchedFunction
from ..lowering.index_checks import RowChecks
from ..lowering.typed_model import TypedModel
from ..model.signature import TensorSpec
from ..plans.cache import PlanCache
from ..plans.engine import Engine
from ..rows.checks import checked_rows, shared_value
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import aligned_empty
from .constant_outputs import ConstantOutputs
from .device_rows import NO_ROWS, DeviceRows, share_host_memory
from .histogram import BatchHistogram
from .routes import OnePlan, Route


class CompiledRows:
    """Runs batches of a model whose element shapes are numbers."""

    def __init__(
        self,
        engine: Engine,
        route: Route,
        key: Callable[[], np.ndarray],
        choice: DeviceChoice,
        checked: bool = False,
    ):
        """Deal rows out to the plans of `engine` by `route`.

        Args:
            engine: the holder of the plans.
            route: the rule that deals rows out.
            key: draws a key for each call of a random model.
            choice: the device rule for `jax.Array`s.
            checked: see `InferOptions`.
        """
        typed = engine.typed
        self.engine = engine
        self.cache: PlanCache = engine.cache
        self.route: OnePlan | Route = OnePlan(typed.only_rows) if typed.only_rows else route
        self.histogram: BatchHistogram = BatchHistogram()
        self._key = key
        self.on_device: DeviceRows = DeviceRows(self, key, choice)
        self._local = threading.local()
        self._constants = ConstantOutputs(typed)
        self._inputs = typed.api.inputs
        self._computed = typed.computed
        batched = [spec.name for spec in self._inputs if not spec.shared]
        self.first_name: str = batched[0] if batched else ""
        self.has_constants: bool = bool(typed.constant)
        self._checks = RowChecks(typed.fn) if checked and isinstance(typed.fn, BatchedFunction) else None

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights."""
        return self.engine.typed

    def cache_on(self, device: jax.Device | None) -> PlanCache:
        """The plans for `jax.Array`s on a device; for None or a shared CPU, the plans for NumPy batches."""
        if device is None or share_host_memory(device, self.engine.device):
            return self.cache
        return self.engine.on(device).cache

    def hit(self, inputs: Mapping[str, Any]) -> Arrays | None:
        """Outputs by name, if a plan takes the inputs unchanged; else None, and nothing has run."""
        try:
            plan = self.cache.hit(inputs[self.first_name].shape[0])
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
        if plan is None or len(inputs) != len(self._inputs):
            return None
        named: Any = plan.answer(inputs, self._key)
        if named is None:
            return None
        return self.in_order(named, plan.size) if self.has_constants else named

    def narrowed(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """NumPy floats cast to the model's float types; None if any input is anything else.

        Environments give float64, so this way is short. The plan checks the shapes.
        """
        rows = {}
        for spec in self._inputs:
            row = inputs.get(spec.name)
            if type(row) is not np.ndarray or row.dtype.kind != "f" or spec.dtype.kind != "f":
                return None
            rows[spec.name] = row if row.dtype == spec.dtype else row.astype(spec.dtype, order="C")
        return rows

    def in_order(self, named: Arrays, n: int) -> Arrays:
        """Computed and constant outputs for `n` rows, in the model's order."""
        return self._constants.in_order(self.typed, named, n)

    def infer(self, inputs: Mapping[str, Any], ids: Sequence[int] | None = None) -> Arrays:
        """Run NumPy rows that need a cast, a split or a compile; errors name the agents in `ids`.

        Raises:
            InputError: the inputs do not fit.
            IndexRangeError: with `checked`, an index lies outside of the axis that it points into.
        """
        rows, n = checked_rows(self._inputs, inputs)
        if n < 0:
            raise InputShapeError(NO_ROWS)
        if n == 0:
            return {spec.name: np.zeros(spec.rows(0), spec.dtype) for spec in self.typed.api.outputs}
        self.check_indices(rows, n, ids)
        return self.in_order(dict(zip(self._computed, self.run(rows, n), strict=True)), n)

    def check_indices(self, rows: Sequence[Any], n: int, ids: Sequence[int] | None) -> None:
        """Check that every index is in range, if the model is loaded with `checked=True`.

        Raises:
            IndexRangeError: one does not.
        """
        if self._checks is not None:
            each = [
                np.broadcast_to(row, (n, *row.shape)) if spec.shared else np.asarray(row)
                for spec, row in zip(self._inputs, rows, strict=True)
            ]
            self._checks(self.typed.params, each, ids)

    def run(self, rows: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """Computed outputs of a whole batch of `n` rows, in as many parts as the route asks for."""
        self.arrived(n)
        taken, size = self.route.of(n, self.cache)
        if taken == n:
            return self._run_part(rows, n, size)
        self.refuse_mixing(f"running {n} rows in parts")
        parts = self.engine.with_one_set_of_weights(lambda: self._run_parts(rows, n))
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _run_parts(self, rows: Sequence[np.ndarray], n: int) -> list[list[np.ndarray]]:
        parts, done = [], 0
        while done < n:
            taken, size = self.route.of(n - done, self.cache)
            parts.append(self._run_part(_part(self._inputs, rows, done, done + taken), taken, size))
            done += taken
        return parts

    def run_at_once(self, rows: Sequence[Any], n: int, ids: Sequence[int] | None = None) -> list[np.ndarray]:
        """Computed outputs of `n` rows that one plan runs.

        Raises:
            BatchSizeError: no plan runs that many rows.
        """
        size = self.route.at_once(n, self.cache)
        if size is None:
            taken = self.route.of(n, self.cache)[0]
            raise BatchSizeError(
                f"{n} rows cannot run at once here, {taken} can: pass as many as select_batch_size gives, "
                "or call infer_arrays"
            )
        alone = [
            shared_value(spec, row) if spec.shared else row
            for spec, row in zip(self._inputs, rows, strict=True)
        ]
        self.check_indices(alone, n, ids)
        return self._run_part(alone, n, size)

    def arrived(self, n: int) -> None:
        """Count a batch of `n` rows, and let the route prepare for it.

        Raises:
            CompileForbiddenError: the batch needs a compile that the options forbid.
        """
        self.histogram.arrived(n)
        self.route.arrived(n, self.cache)

    def constant_rows(self, name: str, n: int) -> np.ndarray:
        """A constant output for `n` rows."""
        return self._constants.template(self.typed, n)[name]

    def refuse_mixing(self, what: str) -> None:
        """Check that rows do not influence each other, before `what` is done to them.

        Raises:
            RowsMixError: they do; the message names the outputs.
        """
        if self.engine.mixing is None:
            self.engine.mixing = self.typed.mixing_outputs()
        refuse_mixing(self.engine.mixing, what, self.typed.rule if self.typed.only_rows else "")

    def _run_part(self, rows: Sequence[np.ndarray], n: int, size: int) -> list[np.ndarray]:
        plan = self.cache.get(size)
        self.histogram.ran(size)
        key = self._key() if plan.random else None
        if size == n:
            return plan(rows, key)
        self.refuse_mixing(f"padding {n} rows to a plan for {size}")
        self.cache.count_padding(size - n)
        return [result[:n] for result in plan(self.padded(rows, n, size), key)]

    def padded(self, rows: Sequence[np.ndarray], n: int, size: int) -> list[np.ndarray]:
        """`n` rows with zeros behind them, in buffers of this thread that its next call writes to."""
        kept: dict[int, list[np.ndarray]] = self._local.__dict__.setdefault("buffers", {})
        if (buffers := kept.get(size)) is None:
            buffers = kept[size] = [aligned_empty(spec.rows(size), spec.dtype) for spec in self._inputs]
        for spec, buffer, row in zip(self._inputs, buffers, rows, strict=True):
            if spec.shared:
                buffer[...] = row
            else:
                buffer[:n] = row
                buffer[n:] = 0
        return buffers


def _part(specs: Sequence[TensorSpec], rows: Sequence[Any], start: int, stop: int) -> list[Any]:
    return [row if spec.shared else row[start:stop] for spec, row in zip(specs, rows, strict=True)]


def refuse_mixing(mixing: Sequence[str], what: str, rule: str = "") -> None:
    """Check that `mixing` is empty.

    Raises:
        RowsMixError: it names outputs in which rows influence each other.
    """
    if mixing:
        why = f" ({rule})" if rule else ""
        raise RowsMixError(
            f"{what} needs rows that do not influence each other, but in this model{why} they do (output "
            f"{', '.join(map(repr, mixing))}): use MemoizingDynamicInferer, which runs every batch at its "
            "exact size"
        )
