"""Runs rows on several devices; each device pads, splits and cuts its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from .._types import Arrays
from ..errors import InputShapeError
from ..lowering.typed_model import TypedModel
from ..plans.cache import PlanCache
from ..plans.row_assembly import RowAssembly, RowJoin
from ..plans.sharded import ShardedCompiler
from .constant_outputs import ConstantOutputs
from .device_rows import first_rows
from .histogram import BatchHistogram
from .routes import Route

NO_ROWS = "no input of this model has a row for each agent: there are no rows to spread"


class ShardedRows:
    """Runs batches on the plans of one `ShardedCompiler`; a route chooses the plans."""

    def __init__(self, compiler: ShardedCompiler, cache: PlanCache, route: Route):
        """Deal rows out to the plans of `cache` by `route`.

        The sizes of `route` are multiples of the number of devices.
        """
        self.histogram: BatchHistogram = BatchHistogram()
        self._compiler = compiler
        self._cache = cache
        self._route = route
        self._count = compiler.count
        self._specs = compiler.typed.api.inputs
        self._constants = ConstantOutputs(compiler.typed)
        self._assemblies: dict[int, list[RowAssembly]] = {}
        self._joins = [RowJoin(device) for device in compiler.devices]

    @property
    def _typed(self) -> TypedModel:
        return self._compiler.typed

    def arrived(self, n: int) -> tuple[int, int]:
        """Count a new batch of `n` rows, and let the route prepare for it.

        Returns:
            How many rows to take at first, and the size of the plan that runs them.

        Raises:
            CompileForbiddenError: it would need a compile that is not allowed.
        """
        self.histogram.arrived(n)
        return self._route.arrived(n, self._cache)

    def on_host(self, rows: Sequence[np.ndarray], n: int, first: tuple[int, int] | None = None) -> Arrays:
        """Run NumPy rows: padded, spread, computed, gathered and cut.

        `first` is the answer of `arrived` about them; without it, the route is asked.

        Raises:
            InputShapeError: no input has rows.
        """
        if n < 0:
            raise InputShapeError(NO_ROWS)
        if n == 0:
            return {spec.name: np.zeros(spec.rows(0), spec.dtype) for spec in self._typed.api.outputs}
        taken, size = first or self._route.of(n, self._cache)
        parts, done = [], 0
        while True:
            plan = self._cache.get(size)
            self._ran(taken, size)
            spread = [
                self._compiler.put(
                    row if spec.shared else _padded(row[done : done + taken], size), shared=spec.shared
                )
                for spec, row in zip(self._specs, rows, strict=True)
            ]
            parts.append([np.asarray(value)[:taken] for value in plan(spread)])
            done += taken
            if done == n:
                break
            taken, size = self._route.of(n - done, self._cache)
        results = (
            parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        )
        return self._constants.in_order(self._typed, dict(zip(self._typed.computed, results, strict=True)), n)

    def in_place(self, given: Mapping[str, jax.Array], n: int, first: tuple[int, int] | None) -> Arrays:
        """Run `n` rows that are already spread over the devices; no row moves to another device.

        `first` is the answer of `arrived` about them, and None for no rows.
        """
        rows = list(given.values())
        if first is None:
            results = self._empty()
        else:
            taken, size = first
            as_they_are = taken == size == n and all(
                row.dtype == spec.dtype for spec, row in zip(self._specs, rows, strict=True)
            )
            if as_they_are:
                plan = self._cache.get(size)
                self._ran(n, size)
                results = plan(rows)
            else:
                results = self._in_parts(rows, n, taken, size)
        named = dict(zip(self._typed.computed, results, strict=True))
        for name in self._typed.constant:
            named[name] = self._compiler.put(self._constants.template(self._typed, n)[name], shared=False)
        return {spec.name: named[spec.name] for spec in self._typed.api.outputs}

    def _empty(self) -> list[jax.Array]:
        specs = {spec.name: spec for spec in self._typed.api.outputs}
        return [
            self._compiler.put(np.zeros(specs[name].rows(0), specs[name].dtype), shared=False)
            for name in self._typed.computed
        ]

    def _in_parts(self, rows: Sequence[jax.Array], n: int, taken: int, size: int) -> list[jax.Array]:
        """Each device pads and splits its own rows, and cuts its own results.

        The first part has `taken` rows and runs on the plan for `size`.
        """
        count, devices = self._count, self._compiler.devices
        own = [_shards(row, devices) for row in rows]
        places: list[int] = []
        parts: list[list[list[jax.Array]]] = [[] for _ in devices]
        done = 0
        while True:
            plan = self._cache.get(size)
            self._ran(taken, size)
            assemblies = self._assemblies_for(size // count)
            made = [
                _filled(assembly, [shards[index] for shards in own], done // count, taken // count)
                for index, assembly in enumerate(assemblies)
            ]
            results = [_shards(result, devices) for result in plan(self._joined(made, size))]
            for index in range(count):
                parts[index].append([shards[index] for shards in results])
            places.append(done // count)
            done += taken
            if done == n:
                break
            taken, size = self._route.of(n - done, self._cache)
        ends = [_cut(join, part, places, n // count) for join, part in zip(self._joins, parts, strict=True)]
        return [self._whole(list(shards), n) for shards in zip(*ends, strict=True)]

    def _ran(self, taken: int, size: int) -> None:
        self.histogram.ran(size)
        self._cache.count_padding(size - taken)

    def _assemblies_for(self, each: int) -> list[RowAssembly]:
        found = self._assemblies.get(each)
        if found is None:
            found = [RowAssembly(self._specs, each, device) for device in self._compiler.devices]
            self._assemblies[each] = found
        return found

    def _joined(self, made: Sequence[Sequence[jax.Array]], size: int) -> list[jax.Array]:
        """One array over all devices for each input, from the arrays of each device."""
        return [
            row if spec.shared else self._whole([one[index] for one in made], size)
            for index, (spec, row) in enumerate(zip(self._specs, made[0], strict=True))
        ]

    def _whole(self, shards: Sequence[jax.Array], n: int) -> jax.Array:
        shape = (n, *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._compiler.sharding, list(shards))


def _shards(array: jax.Array, devices: Sequence[jax.Device]) -> list[jax.Array]:
    """The part of each device, in the order of `devices`; the whole array if each device has all of it."""
    if array.is_fully_replicated:
        return [array] * len(devices)
    own = {shard.device: shard.data for shard in array.addressable_shards}
    return [own[device] for device in devices]


def _filled(assembly: RowAssembly, rows: Sequence[jax.Array], start: int, count: int) -> list[jax.Array]:
    """The rows of a plan on one device; NumPy makes them without views, or if a compile is forbidden."""
    made = assembly(rows, start, count)
    return made if made is not None else assembly.by_host(rows, start, count)


def _cut(
    join: RowJoin, parts: Sequence[Sequence[jax.Array]], places: Sequence[int], n: int
) -> list[jax.Array]:
    """The first `n` rows of each output on one device."""
    if len(parts) == 1:
        return [first_rows(result, n) for result in parts[0]]
    joined = join(parts, places, n)
    return joined if joined is not None else join.by_host(parts, places, n)


def _padded(row: np.ndarray, size: int) -> np.ndarray:
    """A copy of `row`, followed by zeros. JAX may keep the copy."""
    padded = np.zeros((size, *row.shape[1:]), row.dtype)
    padded[: len(row)] = row
    return padded
