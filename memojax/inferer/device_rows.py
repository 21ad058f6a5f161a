"""Runs `jax.Array`s through the plans of one engine, on their own device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._types import Arrays
from ..errors import InputShapeError
from ..plans.elsewhere import Elsewhere
from ..rows.checks import chosen_device, device_rows, on_device
from ..rows.device_choice import DeviceChoice
from ..xla.settings import own_settings
from ..xla.views import can_view, has_views, view
from .engine_rows import EngineRows

NO_ROWS = (
    "no input of this model has a row for each agent, so there is no batch to run: call memojax.run, which "
    "runs the model once"
)


class DeviceRows:
    """Runs batches of `jax.Array`s.

    A plan takes a fixed number of rows. Other numbers of rows are put together and cut on the device, by
    views and a few executables for each plan (`RowAssembly`). No number of rows needs a compile of its own.
    If a device has no views, or a compile is forbidden, rows go through the host's memory.
    """

    def __init__(self, rows: EngineRows, key: Callable[[], np.ndarray], choice: DeviceChoice):
        """Deal rows out as `rows` does; `key` draws the keys of a random model."""
        self._rows = rows
        self._key = key
        self._choice = choice

    def infer(self, inputs: Mapping[str, Any]) -> Arrays:
        """Run `jax.Array`s on their device.

        Raises:
            InputError: they do not fit.
            DeviceError: they are on several devices, and `strict=True` refuses that.
        """
        base = self._rows
        specs, outputs = base.typed.api.inputs, base.typed.api.outputs
        given, device = chosen_device(specs, inputs, self._choice)
        if share_host_memory(device, base.engine.device):
            # NumPy reads the memory of a CPU's arrays without a copy. So they share the plans of NumPy
            # arrays, and have the same promises.
            rows = {name: np.asarray(row) for name, row in given.items()}
            answers = base.hit(rows) or base.infer(rows)
            return {name: on_device(answer, device) for name, answer in answers.items()}
        rows, n, device = device_rows(specs, given, self._choice, cast_later=True)
        if n < 0:
            raise InputShapeError(NO_ROWS)
        if n == 0:
            return {spec.name: on_device(np.zeros(spec.rows(0), spec.dtype), device) for spec in outputs}
        base.check_indices(rows, n, None)
        there = base.engine.on(device)
        results = self._run(there, rows, n)
        named: Arrays = dict(zip(base.typed.computed, results, strict=True))
        for name in base.typed.constant:
            named[name] = on_device(base.constant_rows(name, n), device)
        return {spec.name: named[spec.name] for spec in outputs}

    def _run(self, there: Elsewhere, rows: Sequence[jax.Array], n: int) -> list[jax.Array]:
        """Computed outputs for `n` rows."""
        base = self._rows
        taken, size = base.arrived(n, there.cache)
        if taken == n:
            results = self._part(there, rows, 0, n, size)
            return results if size == n else [first_rows(result, n) for result in results]
        base.refuse_mixing(f"running {n} rows in parts")
        places, parts = base.engine.with_one_set_of_weights(lambda: self._parts(there, rows, n, taken, size))
        base.refuse_mixing(f"running {n} rows in parts")  # one of the plans may have shown it
        joined = there.join(parts, places, n)
        return joined if joined is not None else there.join.by_host(parts, places, n)

    def _parts(
        self, there: Elsewhere, rows: Sequence[jax.Array], n: int, taken: int, size: int
    ) -> tuple[list[int], list[list[jax.Array]]]:
        """The first row of each part, and its results, padding included.

        The first part has `taken` rows and runs on the plan for `size`.
        """
        places: list[int] = []
        parts = []
        done = 0
        while True:
            places.append(done)
            parts.append(self._part(there, rows, done, taken, size))
            done += taken
            if done == n:
                return places, parts
            taken, size = self._rows.route.of(n - done, there.cache)

    def _part(
        self, there: Elsewhere, rows: Sequence[jax.Array], start: int, taken: int, size: int
    ) -> list[jax.Array]:
        """Results of `taken` rows from `start` on, and of their padding."""
        base = self._rows
        plan = there.cache.get(size)
        if size != taken:
            base.refuse_mixing(f"padding {taken} rows to a plan for {size}")
            there.cache.count_padding(size - taken)
        specs = base.typed.api.inputs
        given: Sequence[Any] | None = rows
        if any(
            row.dtype != spec.dtype or (not spec.shared and row.shape[0] != size)
            for spec, row in zip(specs, rows, strict=True)
        ):
            assembly = plan.assembly
            if assembly is None:
                raise AssertionError("a plan for jax.Arrays puts their rows together")
            given = assembly(rows, start, taken)
            if given is None:
                given = assembly.by_host(rows, start, taken)
        return list(plan(given, self._key() if plan.random else None))


def share_host_memory(device: jax.Device, other: jax.Device) -> bool:
    """Whether both devices are CPUs: NumPy reads their memory, so they can share plans."""
    return device.platform == other.platform == "cpu"


def first_rows(result: jax.Array, n: int) -> jax.Array:
    """The first `n` rows of an array on one device."""
    if result.shape[0] == n:
        return result
    device = next(iter(result.devices()))
    if has_views(device) and can_view(result.dtype) and result.size:
        return view(result, 0, n)
    with own_settings():
        return on_device(np.array(np.asarray(result)[:n]), device)
