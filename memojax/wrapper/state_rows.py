"""Reads and writes rows of hidden state on a device.

The executables take powers of two of rows, so a new number of agents rarely needs a compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array
from ..model.signature import TensorSpec
from ..plans.row_assembly import RowAssembly
from ..xla.settings import own_settings
from ..xla.views import can_view, has_views, view


def on_host(device: jax.Device) -> bool:
    """Whether state for rows on `device` is in NumPy arrays, as it is for CPUs."""
    return device.platform == "cpu"


class StateRows:
    """Takes rows out of stores `[capacity, *shape]` on one device, and puts rows into them."""

    def __init__(self, specs: Sequence[TensorSpec], device: jax.Device):
        """Work on stores of `specs` on `device`."""
        self.device = device
        self._specs = [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in specs]
        self._assemblies: dict[int, RowAssembly] = {}

    def take(
        self, stores: Sequence[Any], rows: np.ndarray, fresh: np.ndarray, dones: Array | None
    ) -> list[jax.Array]:
        """The `rows` of each store as one array `[n, *shape]`; zeros for agents of `fresh` and `dones`."""
        n, room = len(rows), _room(len(rows))
        places, zeroed = np.zeros(room, np.int32), np.zeros(room, np.bool_)
        places[:n], zeroed[:n] = rows, fresh
        if dones is not None:
            zeroed[:n] |= np.asarray(dones).astype(np.bool_)  # a byte for each agent
        with own_settings():
            taken = _take(list(stores), places, zeroed)
        return [self._first(states, n) for states in taken]

    def put(
        self, stores: Sequence[Any], rows: np.ndarray, valid: np.ndarray, states: Sequence[Array]
    ) -> list[jax.Array]:
        """The stores after `states`, one array `[n, *shape]` for each, have replaced the `valid` rows."""
        n, room = len(rows), _room(len(rows))
        # An index past the last row drops the state.
        places = np.full(room, stores[0].shape[0] if stores else 0, np.int32)
        places[:n][valid] = rows[valid]
        given = self._filled(states, room)
        with own_settings():
            return _put(list(stores), places, given)

    def _filled(self, arrays: Sequence[Array], room: int) -> list[Any]:
        """Arrays of rows on this device, filled up to `room` rows."""
        with own_settings():
            placed = [jax.device_put(array, self.device) for array in arrays]
        n = placed[0].shape[0] if placed else 0
        assembly = self._assemblies.get(room)
        if assembly is None:
            assembly = self._assemblies[room] = RowAssembly(self._specs, room, self.device)
            assembly.prepare()
        filled = assembly(placed, 0, n)
        return filled if filled is not None else assembly.by_host(placed, 0, n)

    def _first(self, states: jax.Array, n: int) -> jax.Array:
        if states.shape[0] == n:
            return states
        if has_views(self.device) and can_view(states.dtype) and states.size:
            return view(states, 0, n)
        with own_settings():
            return jax.device_put(np.asarray(states)[:n], self.device)


def _room(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@jax.jit
def _take(stores: list[jax.Array], rows: jax.Array, zeroed: jax.Array) -> list[jax.Array]:
    return [
        jnp.where(zeroed.reshape(-1, *[1] * (store.ndim - 1)), jnp.zeros((), store.dtype), store[rows])
        for store in stores
    ]


@jax.jit
def _put(stores: list[jax.Array], rows: jax.Array, states: list[jax.Array]) -> list[jax.Array]:
    # The old stores are not donated: an interrupt before the new ones are in place must not lose both.
    return [
        store.at[rows].set(state.astype(store.dtype), mode="drop")
        for store, state in zip(stores, states, strict=True)
    ]
