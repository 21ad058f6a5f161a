"""Graph breaks: where an operator must run on the host, the graph is cut into parts that compile and calls between them.

A part has every node that can run before the next call; values cross a cut as NumPy arrays. A graph without such operators is one
part, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.graph import Graph, Node, Value
from ..ops import lookup
from ..ops.registry import OpDef
from ..ops.static import PICKING


@dataclass(frozen=True)
class Part:
    """A piece of a graph that compiles: `graph.inputs` are what it takes from the graph's inputs and from earlier steps."""

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
        with np.errstate(all="ignore"):
            outputs = self.definition.call(inputs, self.node.attributes, context)
        return {
            name: np.asarray(value) for name, value in zip(self.node.outputs, outputs, strict=False) if name
        }


def host_nodes(graph: Graph, *, masked: bool = False) -> list[Node]:
    """Nodes that need a break: they run on the host, and depend on an input; `masked`: without those whose picks are kept in place."""
    moving = {value.name for value in graph.inputs}
    found = []
    for node in graph.nodes:
        definition = lookup(node.domain, node.op_type, node.opset)
        if not node.reads() & moving:
            continue
        if definition is not None and any(node.inputs[i] in moving for i in definition.host_positions(node)):
            found.append(node)
        if (
            definition is None
            or not definition.shape_only
            or any(name in _made_by(found) for name in node.inputs)
        ):
            moving.update(node.outputs)
    return [node for node in found if not (masked and node.op_type in PICKING and not node.domain)]


def split(graph: Graph) -> list[Part | HostCall]:
    """The steps of a graph, in order."""
    breaks = {id(node) for node in host_nodes(graph)}
    if not breaks:
        return [Part(graph)]
    level: dict[str, int] = {}
    at: dict[int, list[Node]] = {}
    calls: dict[int, list[Node]] = {}
    for node in graph.nodes:
        mine = max((level.get(name, 0) for name in node.reads()), default=0)
        on_host = id(node) in breaks
        (calls if on_host else at).setdefault(mine, []).append(node)
        level.update(dict.fromkeys(filter(None, node.outputs), mine + on_host))
    steps: list[Part | HostCall] = []
    last = max([*at, *calls])
    for index in range(last + 1):
        nodes = at.get(index, [])
        later = [node for upper in range(index + 1, last + 1) for node in at.get(upper, [])]
        later += [node for upper in range(index, last + 1) for node in calls.get(upper, [])]
        if part := _part(graph, nodes, later):
            steps.append(Part(part))
        for node in calls.get(index, []):
            definition = lookup(node.domain, node.op_type, node.opset)
            if definition is not None:
                steps.append(HostCall(node, definition))
    return steps


def _part(graph: Graph, nodes: list[Node], later: list[Node]) -> Graph | None:
    """The graph of `nodes`, whose outputs are what `later` nodes and the whole graph take."""
    if not nodes:
        return None
    made = {name for node in nodes for name in node.outputs if name}
    read = {name for node in nodes for name in node.reads()}
    wanted = {name for node in later for name in node.reads()} | {value.name for value in graph.outputs}
    declared = {value.name: value for value in graph.inputs}
    taken = [declared.get(name, Value(name)) for name in sorted(read - made - set(graph.initializers))]
    initializers = {name: array for name, array in graph.initializers.items() if name in read}
    outputs = tuple(Value(name) for name in sorted(made & wanted))
    return Graph(graph.name, tuple(taken), outputs, initializers, tuple(nodes)) if outputs else None


def _made_by(nodes: list[Node]) -> set[str]:
    return {name for node in nodes for name in node.outputs}
