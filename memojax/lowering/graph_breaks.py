"""Graph breaks: an operator that must run on the host cuts the graph into compiled parts and host calls.

A part has every node that can run before the next host call; values cross a cut as NumPy arrays. A graph
without such operators is one part, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import LoweringError, MemojaxError
from ..model.graph import Graph, Node, Value
from ..ops.registry import OpDef
from ..ops.resolve import Operators
from ..ops.static import PICKING
from ..xla.limits import BREAKS, FOLDED
from .interpreter import size_of


@dataclass(frozen=True)
class Part:
    """A part of a graph that compiles.

    `graph.inputs` are inputs of the whole graph and outputs of earlier steps.
    """

    graph: Graph


@dataclass(frozen=True)
class HostCall:
    """A node that runs on the host, on NumPy values."""

    node: Node
    definition: OpDef

    def __call__(self, env: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, from the values in `env`."""
        inputs = [env[name] if name else None for name in self.node.inputs]
        context: dict[str, Callable[[], Any] | Any] = {
            "n_outputs": len(self.node.outputs),
            "opset": self.node.opset,
            "output_names": self.node.outputs,
            "key": None,
        }
        try:
            with np.errstate(all="ignore"):
                outputs = self.definition.call(inputs, self.node.attributes, context)
        except Exception as cause:
            what = (
                str(cause)
                if isinstance(cause, (ValueError, MemojaxError))
                else f"{type(cause).__name__}: {cause}"
            )
            raise LoweringError(
                f"node {self.node.name!r} ({self.node.op_type}, opset {self.node.opset}), on the host: {what}"
            ) from cause
        FOLDED.check(
            sum(map(size_of, outputs)), f"node {self.node.name!r} ({self.node.op_type}), on the host,"
        )
        return {
            name: np.asarray(value) for name, value in zip(self.node.outputs, outputs, strict=False) if name
        }


def host_nodes(graph: Graph, operators: Operators) -> list[Node]:
    """Nodes that need a break: they run on the host, and depend on an input."""
    moving = {value.name for value in graph.inputs}
    made: set[str] = set()
    found = []
    for node in graph.nodes:
        if moving.isdisjoint(node.reads()):
            continue
        call = operators.of(node)
        if any(node.inputs[i] in moving for i in call.host):
            found.append(node)
            made.update(node.outputs)
        if call.definition is None or not call.definition.shape_only or not made.isdisjoint(node.inputs):
            moving.update(node.outputs)
    BREAKS.check(len(found), "this model")
    return found


def unmasked(breaks: Sequence[Node]) -> list[Node]:
    """Those of `breaks` that no mask avoids: `masked.py` keeps entries of NonZero and Compress in place."""
    return [node for node in breaks if node.op_type not in PICKING or node.domain]


def split(graph: Graph, operators: Operators) -> list[Part | HostCall]:
    """Parts and host calls of a graph, in the order in which they run."""
    breaks = {id(node) for node in host_nodes(graph, operators)}
    if not breaks:
        return [Part(graph)]
    # The level of a value is the number of host calls on the longest way to it. Part k holds the nodes of
    # level k, and the host calls of level k follow it. Part k is step 2k, and its host calls are step 2k + 1.
    level: dict[str, int] = {}
    parts: dict[int, list[Node]] = {}
    calls: dict[int, list[Node]] = {}
    last_read = {value.name: 2 * len(graph.nodes) for value in graph.outputs}
    for node in graph.nodes:
        mine = max((level.get(name, 0) for name in node.reads()), default=0)
        on_host = id(node) in breaks
        (calls if on_host else parts).setdefault(mine, []).append(node)
        level.update(dict.fromkeys(filter(None, node.outputs), mine + on_host))
        for name in node.reads():
            last_read[name] = max(last_read.get(name, 0), 2 * mine + on_host)
    steps: list[Part | HostCall] = []
    for index in range(max([*parts, *calls]) + 1):
        if part := _part(graph, parts.get(index, []), 2 * index, last_read):
            steps.append(Part(part))
        for node in calls.get(index, []):
            definition = operators.of(node).definition
            if definition is not None:
                steps.append(HostCall(node, definition))
    return steps


def _part(graph: Graph, nodes: list[Node], step: int, last_read: Mapping[str, int]) -> Graph | None:
    """The graph of `nodes`; its outputs are the values that a later step or the caller reads."""
    if not nodes:
        return None
    made = {name for node in nodes for name in node.outputs if name}
    read = {name for node in nodes for name in node.reads()}
    declared = {value.name: value for value in graph.inputs}
    taken = [declared.get(name, Value(name)) for name in sorted(read - made - set(graph.initializers))]
    initializers = {name: array for name, array in graph.initializers.items() if name in read}
    outputs = tuple(Value(name) for name in sorted(made) if last_read.get(name, 0) > step)
    return Graph(graph.name, tuple(taken), outputs, initializers, tuple(nodes)) if outputs else None
