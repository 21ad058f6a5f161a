"""Replace each `If` whose condition is known at load by the nodes of the branch that it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import MemojaxError
from ..model.expand import rewrite_graph
from ..model.graph import Graph, Node, Value, prune
from ..ops.resolve import Operators
from ..xla.limits import Budget
from .interpreter import Run

_MOST_ELEMENTS = 64
"""A larger initializer counts as a weight. Weights can be replaced later, so they decide no `If`."""


def fold_branches(graph: Graph) -> Graph:
    """`graph` without the branches that bound inputs and small constants rule out.

    The operators of a branch that is ruled out may be unsupported.
    """
    while (found := _decided(graph)) is not None:
        graph = _inlined(graph, *found)
    return graph


def _decided(graph: Graph) -> tuple[Node, bool] | None:
    """The first `If` whose condition is known, and the value of its condition."""
    operators = Operators()
    known = {name for name, array in graph.initializers.items() if _decides(graph, name, array)}
    for node in graph.nodes:
        if not node.reads() <= known and not (node.op_type == "If" and node.inputs[0] in known):
            continue
        if node.op_type == "If" and not node.domain:
            condition = _value(graph, operators, node.inputs[0])
            if condition is not None:
                return node, condition
        elif operators.of(node).definition is not None and not operators.of(node).draws:
            known.update(filter(None, node.outputs))
    return None


def _decides(graph: Graph, name: str, value: object) -> bool:
    if name in graph.bound:
        return isinstance(value, np.ndarray)
    return isinstance(value, np.ndarray) and (
        value.ndim == 0 or (value.dtype.kind in "iub" and value.size <= _MOST_ELEMENTS)
    )


def _value(graph: Graph, operators: Operators, name: str) -> bool | None:
    """The value of a condition; None if it cannot be computed here."""
    part = prune(replace(graph, outputs=(*graph.outputs, Value(name))), [name])
    needed = frozenset(made for node in part.nodes for made in node.outputs)
    env = dict(part.initializers)
    try:
        Run(part, needed, operators, Budget(len(part.nodes)), None).nodes(part.nodes, env)
    except MemojaxError:
        return None
    value = env[name]
    return bool(value.ravel()[0]) if isinstance(value, np.ndarray) and value.size == 1 else None


def _inlined(graph: Graph, node: Node, condition: bool) -> Graph:
    """`graph` with the nodes of one branch in the place of the `If`."""
    body: Graph = node.attributes["then_branch" if condition else "else_branch"]
    # A branch may use names that the graph around it uses as well, so its own names get a prefix.
    own = {made for inner in body.nodes for made in inner.outputs if made} | set(body.initializers)
    prefix = f"{node.name}/{node.outputs[0]}/"
    taken = rewrite_graph(body, lambda name: prefix + name if name in own else name, {}, prefix)
    given = [
        Node("Identity", "", node.opset, f"{prefix}{value.name}", (value.name,), (target,))
        for value, target in zip(taken.outputs, node.outputs, strict=False)
        if target
    ]
    at = next(place for place, one in enumerate(graph.nodes) if one is node)
    nodes = (*graph.nodes[:at], *taken.nodes, *given, *graph.nodes[at + 1 :])
    return prune(replace(graph, nodes=nodes, initializers={**graph.initializers, **taken.initializers}))
