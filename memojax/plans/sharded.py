"""Plans over several devices: each device runs its own part of the rows, with a copy of all weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..errors import CompileError
from ..lowering.typed_model import TypedModel
from ..ops.inline import inlined
from ..xla.options import compiled as compiled_for
from ..xla.settings import own_settings
from .compiler import Lowered, plain_name, trace_lock
from .dispatch import Meter, never
from .plan import Executable, Plan


class ShardedCompiler:
    """Compiles one model for rows over the devices of a mesh, and holds its weights on each device."""

    def __init__(self, typed: TypedModel, sharding: NamedSharding, precision: str | None):
        """Put the weights of `typed` on every device of `sharding`, which spreads the rows."""
        self.sharding: NamedSharding = sharding
        self._devices: Any = sharding.mesh.devices
        self.count: int = self._devices.size
        self.everywhere: NamedSharding = NamedSharding(sharding.mesh, PartitionSpec())
        self._platform: str = self._devices.flat[0].platform
        self._precision = precision if self._platform != "cpu" else None
        self._now = typed, self._placed(typed.params)

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights; each update makes a new object."""
        return self._now[0]

    def update(self, typed: TypedModel) -> None:
        """Switch to the weights of `typed`; a concurrent call sees all old or all new weights."""
        self._now = typed, self._placed(typed.params)

    def lower(self, size: int) -> Lowered:
        """Trace and lower `size` rows, a multiple of the number of devices."""
        (typed, params), rows = self._now, self.sharding.spec[0]
        each = [PartitionSpec() if spec.shared else PartitionSpec(rows) for spec in typed.api.inputs]

        def part(params: Any, given: Sequence[Any]) -> tuple[Any, ...]:
            with inlined() if typed.model else nullcontext():
                return tuple(typed.fn(params, given, None))

        # `shard_map` gives each device a function of its own rows, so XLA has no reason to move rows.
        run = jax.shard_map(
            part,
            mesh=self.sharding.mesh,
            in_specs=(PartitionSpec(), each),
            out_specs=PartitionSpec(rows),
            check_vma=False,
        )
        run.__name__ = f"{plain_name(typed.name or 'function')}_batch_{size}_over_{self.count}"
        shapes = [
            jax.ShapeDtypeStruct(
                spec.shape if spec.shared else spec.rows(size),
                spec.dtype,
                sharding=NamedSharding(self.sharding.mesh, spread),
            )
            for spec, spread in zip(typed.api.inputs, each, strict=True)
        ]
        started = time.perf_counter()
        with trace_lock, own_settings(self._precision):
            lowered = jax.jit(run).lower(params, shapes)

        def finish() -> Plan:
            try:
                with own_settings(self._precision):
                    done = compiled_for(lowered, self._devices.flat[0])
            except Exception as cause:
                raise CompileError(
                    f"XLA could not compile batch size {size} over {self.count} devices: {cause}"
                ) from cause
            ms = (time.perf_counter() - started) * 1e3
            return Plan(size, Executable(done, self._caller(done), never), Meter(), self._platform, ms)

        return Lowered(size, finish)

    def put(self, value: Any, *, shared: bool) -> jax.Array:
        """`value` spread over the devices, or copied whole to each if all rows share it."""
        with own_settings():
            return jax.device_put(value, self.everywhere if shared else self.sharding)

    def _caller(self, done: Any) -> Any:
        def run(rows: Sequence[Any]) -> list[Any]:
            params = self._now[1]
            try:
                return list(done(params, rows))
            except FloatingPointError:  # The user's jax_debug_nans; NaN is an ordinary number here.
                with own_settings():
                    return list(done(params, rows))

        return run

    def _placed(self, params: Any) -> Any:
        with own_settings():
            # Copies: JAX may read a NumPy array's memory later, after its owner has changed it.
            return jax.tree.map(lambda leaf: jax.device_put(np.array(leaf), self.everywhere), params)
