"""Runs NumPy rows through the plans of one engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import jax
import numpy as np

from .._types import Arrays
from ..errors import BatchSizeError, InputShapeError
from ..model.signature import TensorSpec
from ..plans.cache import PlanCache
from ..plans.engine import Engine
from ..rows.checks import checked_rows, shared_value
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import aligned_empty
from .device_rows import NO_ROWS, DeviceRows, share_host_memory
from .engine_rows import EngineRows
from .routes import Route


@final
class CompiledRows(EngineRows):
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
        super().__init__(engine, route, checked)
        typed = engine.typed
        self._key = key
        self.on_device: DeviceRows = DeviceRows(self, key, choice)
        self._local = threading.local()
        self._computed = typed.computed
        batched = [spec.name for spec in self._inputs if not spec.shared]
        self.first_name: str = batched[0] if batched else ""
        self.has_constants: bool = bool(typed.constant)

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

        For plans that read large arrays where they lie: others cast while they copy (`plans/dispatch.py`).
        The plan checks the shapes.
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

    def run(self, rows: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """Computed outputs of a whole batch of `n` rows, in as many parts as the route asks for."""
        taken, size = self.arrived(n)
        if taken == n:
            return self._run_part(rows, n, size)
        self.refuse_mixing(f"running {n} rows in parts")
        parts = self.engine.with_one_set_of_weights(lambda: self._run_parts(rows, n, taken, size))
        self.refuse_mixing(f"running {n} rows in parts")  # one of the plans may have shown it
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _run_parts(self, rows: Sequence[np.ndarray], n: int, taken: int, size: int) -> list[list[np.ndarray]]:
        """The parts of a batch; the first has `taken` rows and runs on the plan for `size`."""
        parts, done = [], 0
        while True:
            parts.append(self._run_part(_part(self._inputs, rows, done, done + taken), taken, size))
            done += taken
            if done == n:
                return parts
            taken, size = self.route.of(n - done, self.cache)

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
