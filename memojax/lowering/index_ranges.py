"""Derive the range of whole numbers from their computation: an index known to be in range needs no check.

Ranges follow the graph back by name, with the shapes and static values of the trace. If nothing is known of
a value, its range is that of its dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .._types import GraphValue
from ..model.graph import Graph, Node
from ..ops._common import is_static, normalize_axis

Range = tuple[int, int]
"""The least and the greatest value, both included."""

_MOST_STEPS = 200
"""Nodes to follow for one value; the range of a longer chain is that of its dtype."""


def makers_of(graph: Graph) -> dict[str, Node]:
    """Name of a value in any scope -> the node that computes it, without names that several scopes define."""
    makers = {made: node for node in graph.all_nodes() for made in node.outputs if made}
    times = Counter(made for node in graph.all_nodes() for made in node.outputs)
    times.update(value.name for node in graph.all_nodes() for body in node.bodies for value in body.inputs)
    times.update(name for node in graph.all_nodes() for body in node.bodies for name in body.initializers)
    return {name: node for name, node in makers.items() if times[name] == 1}


@dataclass
class Ranges:
    """Ranges of the values of one trace: `makers` is name -> node, `env` is name -> value."""

    makers: Mapping[str, Node]
    env: Mapping[str, GraphValue]
    _known: dict[str, Range | None] = field(default_factory=dict)

    def of(self, name: str) -> Range | None:
        """The range of a value; None if it does not hold whole numbers."""
        if name not in self._known:
            self._known[name] = None  # counts as a step while its inputs are looked at
            self._known[name] = self._found(name)
        return self._known[name]

    def _found(self, name: str) -> Range | None:
        value = self.env.get(name)
        widest = _of_dtype(value)
        if value is None or widest is None:
            return None
        if is_static(value):
            return (int(np.min(value)), int(np.max(value))) if np.size(value) else (0, 0)
        node = self.makers.get(name)
        if node is None or node.domain or len(self._known) > _MOST_STEPS:
            return widest
        rule = _RULES.get(node.op_type)
        found = rule(self, node, name) if rule is not None else None
        # Past the dtype's range the computation may wrap around, so any value can come out.
        if found is None or found[0] < widest[0] or found[1] > widest[1]:
            return widest
        return found

    def inputs(self, node: Node) -> list[Range] | None:
        """The ranges of all inputs of a node; None if any is unknown."""
        found = [self.of(name) for name in node.inputs]
        return None if None in found else found  # pyright: ignore[reportReturnType]

    def length(self, node: Node, axis: int) -> int:
        """Length of the first input of a node along an axis."""
        shape = np.shape(self.env[node.inputs[0]])
        return shape[normalize_axis(axis, len(shape))] if shape else 1


Rule = Callable[[Ranges, Node, str], "Range | None"]


def _of_dtype(value: GraphValue) -> Range | None:
    dtype = getattr(value, "dtype", None)
    if dtype is None or not (dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer)):
        return None
    if dtype == np.bool_:
        return 0, 1
    limits = ml_dtypes.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _same(ranges: Ranges, node: Node, name: str) -> Range | None:
    return ranges.of(node.inputs[0])


def _union(ranges: Ranges, node: Node, name: str) -> Range | None:
    found = ranges.inputs(node)
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _chosen(ranges: Ranges, node: Node, name: str) -> Range | None:
    x, y = (ranges.of(value) for value in node.inputs[1:3])
    return (min(x[0], y[0]), max(x[1], y[1])) if x and y else None


def _position(ranges: Ranges, node: Node, name: str) -> Range | None:
    return 0, max(0, ranges.length(node, node.attributes.get("axis", 0)) - 1)


def _top(ranges: Ranges, node: Node, name: str) -> Range | None:
    if name == node.outputs[0]:
        return ranges.of(node.inputs[0])
    return 0, max(0, ranges.length(node, node.attributes.get("axis", -1)) - 1)


def _drawn(ranges: Ranges, node: Node, name: str) -> Range | None:
    return 0, max(0, ranges.length(node, -1) - 1)


def _clip(ranges: Ranges, node: Node, name: str) -> Range | None:
    found = ranges.of(node.inputs[0])
    if found is None:
        return None
    low, high = found
    bounds = [ranges.of(value) if value else None for value in (*node.inputs[1:3], "", "")[:2]]
    if bounds[0] is not None:
        low, high = max(low, bounds[0][0]), max(high, bounds[0][1])
    if bounds[1] is not None:
        low, high = min(low, bounds[1][0]), min(high, bounds[1][1])
    return low, high


def _least(ranges: Ranges, node: Node, name: str) -> Range | None:
    found = ranges.inputs(node)
    return (min(low for low, _ in found), min(high for _, high in found)) if found else None


def _greatest(ranges: Ranges, node: Node, name: str) -> Range | None:
    found = ranges.inputs(node)
    return (max(low for low, _ in found), max(high for _, high in found)) if found else None


def _remainder(ranges: Ranges, node: Node, name: str) -> Range | None:
    found = ranges.inputs(node)
    if not found or found[1][0] <= 0:
        return None
    (low, _), (_, divisor) = found
    return 1 - divisor if node.attributes.get("fmod") and low < 0 else 0, divisor - 1


def _corners(combine: Callable[[int, int], int]) -> Rule:
    """A rule for a function of two values whose extremes lie at the ends of their ranges."""

    def rule(ranges: Ranges, node: Node, name: str) -> Range | None:
        found = ranges.inputs(node)
        if not found:
            return None
        corners = [combine(a, b) for a in found[0] for b in found[1]]
        return min(corners), max(corners)

    return rule


def _gathered(ranges: Ranges, node: Node, name: str) -> Range | None:
    # Only for an index in range: one out of range gives a fill value that the data does not hold.
    index = ranges.of(node.inputs[1])
    shape = np.shape(ranges.env[node.inputs[0]])
    if index is None or not shape:
        return None
    axis = normalize_axis(node.attributes.get("axis", 0), len(shape))
    length = min(shape) if node.op_type == "GatherND" else shape[axis]
    return ranges.of(node.inputs[0]) if -length <= index[0] and index[1] < length else None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "Identity",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Transpose",
            "Expand",
            "Tile",
            "Slice",
            "Split",
            "Cast",
            "ReduceMax",
            "ReduceMin",
        ],
        _same,
    ),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), _gathered),
    "ArgMax": _position,
    "ArgMin": _position,
    "TopK": _top,
    "Multinomial": _drawn,
    "Clip": _clip,
    "Min": _least,
    "Max": _greatest,
    "Concat": _union,
    "Where": _chosen,
    "Mod": _remainder,
    "Add": _corners(lambda a, b: a + b),
    "Sub": _corners(lambda a, b: a - b),
    "Mul": _corners(lambda a, b: a * b),
}
"""ONNX operator -> the rule from the ranges of its inputs to the range of an output."""


def outside(value: GraphValue, low: Any, high: Any) -> GraphValue:
    """Mask of the elements of `value` that lie outside a range."""
    return (value < low) | (value > high)
