"""Weights as arguments: on a device, once for all sizes, and swapped between two calls."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .hoist import Hoister, Node, evaluate

_SMALL = 16 * 1024
"""Bytes; values up to here share one argument per dtype, because every argument costs a call a third of a microsecond."""


class Leading:
    """The arguments that an executable takes before the rows: `values`, one for each of `groups`.

    A group is one large value, or several small ones end to end. Replacing `values` swaps the weights between two calls.
    """

    __slots__ = ("__weakref__", "groups", "nodes", "shapes", "values")

    def __init__(self, nodes: Sequence[Node] = (), shapes: Sequence[tuple[int, ...]] = (), groups: Sequence[tuple[Node, ...]] = ()):
        self.nodes = tuple(nodes)
        self.shapes = dict(zip(nodes, shapes, strict=True))
        self.groups = tuple(groups)
        self.values: tuple[Any, ...] = ()

    def unpack(self, values: Sequence[Any]) -> list[Any]:
        """In a traced function: the value of each node."""
        found = {}
        for group, value in zip(self.groups, values, strict=True):
            stop = 0
            for node in group:
                start, stop = stop, stop + math.prod(self.shapes[node])
                found[node] = value if len(group) == 1 else value[start:stop].reshape(self.shapes[node])
        return [found[node] for node in self.nodes]


class Placing:
    """The arguments of all sizes of one model, on one device."""

    def __init__(self, hoister: Hoister, device: jax.Device):
        """Place what `hoister` makes of its weights on `device`."""
        self._hoister = hoister
        self._device = device
        self._placed: dict[tuple[Node, ...], jax.Array] = {}
        self._leading: weakref.WeakSet[Leading] = weakref.WeakSet()
        self._lock = threading.Lock()

    def place(self, nodes: Sequence[Node]) -> Leading:
        """The arguments for `nodes`; arrays that other sizes use too are the same ones."""
        with self._lock:
            specs = [self._hoister.spec(node) for node in nodes]
            leading = Leading(nodes, [shape for shape, _ in specs], _grouped(nodes, specs))
            for group in leading.groups:
                if group not in self._placed:
                    self._placed[group] = self._on_device(self._hoister.values(group))
            leading.values = tuple(self._placed[group] for group in leading.groups)
            self._leading.add(leading)
            return leading

    def replace(self, leaves: Sequence[Any]) -> None:
        """Go on with other weights; a call that runs meanwhile sees all the old ones or all the new ones."""
        with self._lock:
            nodes = list(dict.fromkeys(node for group in self._placed for node in group))
            values = dict(zip(nodes, evaluate(nodes, leaves), strict=True))
            fresh = {group: self._on_device([values[node] for node in group]) for group in self._placed}
            self._hoister.replace(leaves)
            self._placed = fresh
            for leading in list(self._leading):
                leading.values = tuple(fresh[group] for group in leading.groups)

    def _on_device(self, values: Sequence[np.ndarray]) -> jax.Array:
        """A copy on the device: JAX may go on reading the memory of a NumPy array that it is given, and whoever owns it may write there."""
        flat = np.array(values[0]) if len(values) == 1 else np.concatenate([value.ravel() for value in values])
        with jax.enable_x64(True):
            return jax.device_put(flat, self._device)


def _grouped(nodes: Sequence[Node], specs: Sequence[tuple[tuple[int, ...], np.dtype]]) -> list[tuple[Node, ...]]:
    groups: dict[Any, list[Node]] = {}
    for node, (shape, dtype) in zip(nodes, specs, strict=True):
        small = math.prod(shape) * dtype.itemsize <= _SMALL and max(shape, default=1) == math.prod(shape)
        groups.setdefault(dtype if small else node, []).append(node)
    return [tuple(group) for group in groups.values()]
