"""Plans over several devices: each device runs its own part of the rows, with a copy of all weights."""

from __future__ import annotations

import logging
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
from ..xla.limits import for_one_executable
from ..xla.options import compiled as compiled_for
from ..xla.options import over_defaults
from ..xla.settings import own_settings
from .artifact import PlanArtifact
from .compiler import plain_name, trace_lock
from .disk_cache import DiskCache, environment_key
from .dispatch import Meter, never
from .plan import Compiled, Executable, Plan
from .serialized import accelerator_key, as_bytes, from_bytes
from .way import Lowered

log: logging.Logger = logging.getLogger("memojax")


class ShardedCompiler:
    """Compiles one model for rows over the devices of a mesh, and holds its weights on each device."""

    def __init__(
        self,
        typed: TypedModel,
        sharding: NamedSharding,
        precision: str | None,
        disk: DiskCache | PlanArtifact | None = None,
    ):
        """Put the weights of `typed` on every device of `sharding`; keep executables in `disk`."""
        self.sharding: NamedSharding = sharding
        self.disk_hits: int = 0
        self._devices: Any = sharding.mesh.devices
        self.devices: list[jax.Device] = list(self._devices.flat)
        self.count: int = self._devices.size
        # A model without a fingerprint (a function, new weights) cannot be told from others on disk.
        self._fingerprint = typed.fingerprint
        self._disk = disk if typed.fingerprint else None
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
        """Load `size` rows, a multiple of the number of devices, from disk; else trace and lower them."""
        started = time.perf_counter()
        if self._disk is not None and (plan := self._loaded(size, self._disk, started)) is not None:
            return Lowered(size, lambda: plan)
        run, shapes, params = self._function(size)
        with trace_lock, own_settings(self._precision), for_one_executable():
            lowered = jax.jit(run).lower(params, shapes)

        def finish() -> Plan:
            try:
                with own_settings(self._precision):
                    done = compiled_for(lowered, self.devices[0])
            except Exception as cause:
                raise CompileError(
                    f"XLA could not compile batch size {size} over {self.count} devices: {cause}"
                ) from cause
            self._store(size, done)
            return self._plan(size, done, started)

        return Lowered(size, finish)

    def _function(self, size: int) -> tuple[Any, list[Any], Any]:
        """The function of `size` rows over all devices, the shapes that it takes, and the weights."""
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
        return run, shapes, params

    def _plan(self, size: int, done: Any, started: float) -> Plan:
        ms = (time.perf_counter() - started) * 1e3
        return Plan(size, Executable(Compiled(done), self._caller(done), never), Meter(), self._platform, ms)

    def _loaded(self, size: int, disk: DiskCache | PlanArtifact, started: float) -> Plan | None:
        """The plan from disk; None if no stored plan loads."""
        key = self._key(size)
        payload = disk.get(key)
        if payload is None:
            return None
        try:
            plan = self._plan(size, from_bytes(payload, self.devices).executable, started)
        # A compile replaces an entry with any fault.
        except Exception as cause:
            log.warning(
                "a stored plan for batch size %d could not be loaded (%s): it compiles again", size, cause
            )
            disk.forget(key)
            return None
        self.disk_hits += 1
        return plan

    def _store(self, size: int, done: Any) -> None:
        if self._disk is None:
            return
        try:
            self._disk.put(self._key(size), as_bytes(Compiled(done))[0])
        except Exception as cause:
            log.debug("batch size %d cannot be stored: %s", size, cause)

    def _key(self, size: int) -> dict[str, Any]:
        mesh = self.sharding.mesh
        name = self.typed.name or "function"
        return {
            **environment_key(),
            "model": self._fingerprint,
            "name": name.rsplit("/", 1)[-1],
            "size": size,
            "platform": self._platform,
            "precision": self._precision,
            "options": over_defaults(self.devices[0], {}),
            "mesh": [list(self._devices.shape), list(map(str, mesh.axis_names))],
            "rows": str(self.sharding.spec),
            # Raised whenever the meaning of an entry changes, so older entries are not found.
            "layout": 1,
            **accelerator_key(self.devices[0]),
        }

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
