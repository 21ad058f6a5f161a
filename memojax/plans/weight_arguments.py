"""Weights as arguments: on a device, once for all sizes, and swapped between two calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..xla.settings import own_settings
from .hoist import Hoister, Node, evaluate


class Leading:
    """The arguments that an executable takes before the rows, `values` of `nodes`; replacing `values` swaps them between two calls.

    Each costs a call a third of a microsecond. Small ones end to end in one argument would cost more: slices of it are copied, or are
    fused into their readers again and again, until XLA runs out of memory.
    """

    __slots__ = ("__weakref__", "nodes", "values")

    def __init__(self, nodes: Sequence[Node] = (), values: Sequence[Any] = ()):
        self.nodes = tuple(nodes)
        self.values = tuple(values)


class Placing:
    """The arguments of all sizes of one model, on one device."""

    def __init__(self, hoister: Hoister, device: jax.Device):
        """Place what `hoister` makes of its weights on `device`."""
        self._hoister = hoister
        self._device = device
        self._placed: dict[Node, jax.Array] = {}
        self._leading: weakref.WeakSet[Leading] = weakref.WeakSet()
        self._lock = threading.Lock()

    def place(self, nodes: Sequence[Node]) -> Leading:
        """The arguments for `nodes`; arrays that other sizes use too are the same ones."""
        with self._lock:
            missing = [node for node in nodes if node not in self._placed]
            self._placed.update(zip(missing, self._on_device(self._hoister.values(missing)), strict=True))
            leading = Leading(nodes, [self._placed[node] for node in nodes])
            self._leading.add(leading)
            return leading

    def replace(self, leaves: Sequence[Any]) -> None:
        """Go on with other weights; a call that runs meanwhile sees all the old ones or all the new ones."""
        with self._lock:
            nodes = list(self._placed)
            fresh = dict(zip(nodes, self._on_device(evaluate(nodes, leaves)), strict=True))
            self._hoister.replace(leaves)
            self._placed = fresh
            for leading in list(self._leading):
                leading.values = tuple(fresh[node] for node in leading.nodes)

    def _on_device(self, values: Sequence[np.ndarray]) -> list[jax.Array]:
        """Copies on the device: JAX may go on reading the memory of a NumPy array that it is given, and whoever owns it may write there."""
        with own_settings():
            return [jax.device_put(np.array(value), self._device) for value in values]
