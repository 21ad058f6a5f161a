"""Weights as arguments: placed on a device once for all sizes, and swapped between two calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import filterfalse
from typing import Any

import jax
import numpy as np

from ..xla.settings import own_settings
from .hoist import Hoister, Node, evaluate


class Leading:
    """The arguments that an executable takes before the rows; a new `values` swaps them between two calls.

    Each argument costs a call a third of a microsecond. One flat argument for all small weights would cost
    more: XLA would copy its slices, or fuse them into each reader until memory runs out.
    """

    __slots__ = ("__weakref__", "devices", "formats", "nodes", "values")

    def __init__(
        self,
        nodes: Sequence[Node] = (),
        values: Sequence[Any] = (),
        formats: Sequence[Any] = (),
        devices: Sequence[jax.Device] = (),
    ):
        """Hold arguments, laid out as an executable wants them.

        Args:
            nodes: what the arguments are.
            values: the arguments.
            formats: the layouts that an executable wants, one for each of `values`; empty for JAX's.
            devices: devices of this process's CPU, each of which reads the arguments; `values` then has a
                tuple for each device. Empty for one device, where they are.
        """
        self.nodes: tuple[Node, ...] = tuple(nodes)
        self.formats: tuple[Any, ...] = tuple(formats)
        self.devices: tuple[jax.Device, ...] = tuple(devices)
        self.values: tuple[Any, ...] = self.laid_out(values)

    def laid_out(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """`values` in the executable's layouts, or for each of its devices."""
        if self.devices:
            # The devices share the memory of the arrays, which NumPy's views keep alive.
            views = [np.asarray(value) for value in values]
            with own_settings():
                return tuple(
                    tuple(jax.device_put(view, device, may_alias=True) for view in views)
                    for device in self.devices
                )
        if not self.formats:
            return tuple(values)
        with own_settings():
            return tuple(jax.device_put(value, to) for value, to in zip(values, self.formats, strict=True))


class WeightArguments:
    """The arguments of all sizes of one model, on one device."""

    def __init__(self, hoister: Hoister, device: jax.Device):
        """Place the values that `hoister` computes on `device`."""
        self._hoister = hoister
        self._device = device
        self._placed: dict[Node, jax.Array] = {}
        self._leading: weakref.WeakSet[Leading] = weakref.WeakSet()
        self._lock = threading.Lock()

    def place(
        self, nodes: Sequence[Node], formats: Sequence[Any] = (), devices: Sequence[jax.Device] = ()
    ) -> Leading:
        """The arguments for `nodes`, in `formats` or on `devices` if given; sizes share the arrays."""
        with self._lock:
            missing = list(filterfalse(self._placed.__contains__, nodes))
            self._placed.update(zip(missing, self._on_device(self._hoister.values(missing)), strict=True))
            leading = Leading(nodes, [self._placed[node] for node in nodes], formats, devices)
            self._leading.add(leading)
            return leading

    def replacing(self, leaves: Sequence[Any]) -> Callable[[], None]:
        """Prepare other weights, and return the function that switches to them.

        The preparation does all work that takes time or memory. A concurrent call sees all old or all new
        weights.
        """
        with self._lock:
            nodes, every = list(self._placed), list(self._leading)
        with_layouts = [leading for leading in every if leading.formats or leading.devices]
        fresh = self._fresh(nodes, leaves)
        laid_out = {one: one.laid_out([fresh[node] for node in one.nodes]) for one in with_layouts}

        def replace() -> None:
            with self._lock:
                # Sizes compiled since the preparation may have placed further nodes.
                fresh.update(self._fresh(list(filterfalse(fresh.__contains__, self._placed)), leaves))
                self._hoister.replace(leaves)
                self._placed = fresh
                for leading in list(self._leading):
                    values = laid_out.get(leading)
                    leading.values = values or leading.laid_out([fresh[node] for node in leading.nodes])

        return replace

    def _fresh(self, nodes: Sequence[Node], leaves: Sequence[Any]) -> dict[Node, jax.Array]:
        return dict(zip(nodes, self._on_device(evaluate(nodes, leaves)), strict=True))

    def _on_device(self, values: Sequence[np.ndarray]) -> list[jax.Array]:
        """Copies on the device, because JAX may read an array's memory after its owner has changed it."""
        with own_settings():
            return [jax.device_put(np.array(value), self._device) for value in values]
