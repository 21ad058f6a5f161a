"""Which values a graph needs while tracing, found by walking back from the inputs that operators declare `static`."""

from __future__ import annotations

from ..model.expand import schema_of
from ..model.graph import Graph, Node
from .resolve import Operators


def needed_statically(graph: Graph, operators: Operators, *, branches: bool = False) -> set[str]:
    """Names (of any value, outer scopes' included) whose values decide a shape somewhere in `graph` or its subgraphs.

    With `branches`, also those whose values decide which branch of an `If` runs.
    """
    needed: set[str] = set()
    _collect(graph, operators, needed, branches)
    return needed


def _collect(graph: Graph, operators: Operators, needed: set[str], branches: bool) -> None:
    for node in reversed(graph.nodes):
        call = operators.of(node)
        wanted = not needed.isdisjoint(node.outputs)
        wanted = wanted and not (call.definition is not None and call.definition.shape_only)
        if wanted:
            needed.update(filter(None, node.inputs))
        for body in node.bodies:
            if wanted:
                needed.update(value.name for value in body.outputs)
            _collect(body, operators, needed, branches)
            formals = zip(reversed(body.inputs), reversed(node.inputs), strict=False)
            needed.update(actual for formal, actual in formals if actual and formal.name in needed)
        needed.update(node.inputs[i] for i in call.static if node.inputs[i])
        if branches and node.op_type == "If" and not node.domain:
            needed.add(node.inputs[0])


def origin_of(graph: Graph, name: str) -> str:
    """Where a value comes from, for an error message."""
    if any(value.name == name for value in graph.inputs):
        return f"the graph input {name!r}"
    for node in graph.all_nodes():
        if name in node.outputs:
            return f"{name!r}, computed by node {node.name!r} ({node.op_type}) from {', '.join(map(repr, filter(None, node.inputs)))}"
    return f"{name!r}"


def inputs_behind(graph: Graph, name: str) -> list[str]:
    """The graph inputs that a value (of any scope) is computed from, in the file's order."""
    makers = {made: node for node in graph.all_nodes() for made in node.outputs if made}
    seen, waiting = {name}, [name]
    while waiting:
        node = makers.get(waiting.pop())
        new = node.reads() - seen if node is not None else set()
        seen |= new
        waiting += new
    return [value.name for value in graph.inputs if value.name in seen]


def has_function_body(node: Node) -> bool:
    """Whether the spec defines the node's operator by other operators."""
    schema = schema_of(node)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)
