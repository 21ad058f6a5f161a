"""Find the values that a graph needs while tracing, back from the inputs that operators declare `static`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..model.expand import schema_of
from ..model.graph import Graph, Node
from .resolve import Operators

PICKING = ("NonZero", "Compress")
"""Operators whose output has as many entries as a mask picks; see `lowering.masked`."""


def needed_statically(
    graph: Graph, operators: Operators, *, branches: bool = False, masked: bool = False
) -> set[str]:
    """Names of the values that decide a shape in `graph` or its subgraphs; they may be of outer scopes.

    Args:
        graph: the graph.
        operators: its operators.
        branches: whether to add values that decide which branch of an `If` runs.
        masked: whether to leave out masks and numbers of picked entries, since entries are kept in place.
    """
    needed: set[str] = set()
    _collect(graph, operators, needed, branches, _kept(graph) if masked else frozenset())
    return needed


def _kept(graph: Graph) -> frozenset[str]:
    """Values at which the search stops: entries that masks of data pick, and the numbers of such entries."""
    moving = {value.name for value in graph.inputs}
    picked: set[str] = set()
    for node in graph.all_nodes():
        if node.reads() & moving:
            moving.update(node.outputs)
            if node.op_type in PICKING and not node.domain and node.inputs[-1] in moving:
                picked.update(node.outputs)
    return frozenset(picked | counts_of(graph)) if picked else frozenset()


def counts_of(graph: Graph) -> set[str]:
    """Values that are the number of places where a mask holds: its elements, cast to numbers and summed."""
    makers = {made: node for node in graph.all_nodes() for made in node.outputs if made and not node.domain}
    picked = {node.inputs[-1] for node in graph.all_nodes() if node.op_type in PICKING}
    roots = {_behind(makers, name, (*_REGROUPING, "Expand")) for name in picked}
    sums = [node for node in graph.all_nodes() if node.op_type == "ReduceSum"]
    found = {node.outputs[0]: mask_of_count(makers, node) for node in sums}
    return {
        name
        for name, mask in found.items()
        if mask and _behind(makers, mask, (*_REGROUPING, "Expand")) in roots
    }


def mask_of_count(makers: Mapping[str, Node], node: Node) -> str | None:
    """The mask whose places a ReduceSum counts; None if the ReduceSum sums other values."""
    cast = makers.get(_behind(makers, node.inputs[0], _REGROUPING))
    return (
        _behind(makers, cast.inputs[0], _REGROUPING) if cast is not None and cast.op_type == "Cast" else None
    )


def _behind(makers: Mapping[str, Node], name: str, passing: Sequence[str]) -> str:
    """The value from which `name` comes by operators in `passing`."""
    while (node := makers.get(name)) is not None and node.op_type in passing:
        name = node.inputs[0]
    return name


_REGROUPING = ("Reshape", "Flatten", "Identity", "Unsqueeze", "Squeeze")
"""Operators that keep every element of a mask, and so the number of places where it holds."""


def _collect(
    graph: Graph, operators: Operators, needed: set[str], branches: bool, kept: frozenset[str]
) -> None:
    for node in reversed(graph.nodes):
        call = operators.of(node)
        stops = not kept.isdisjoint(node.outputs)
        wanted = not needed.isdisjoint(node.outputs) and not stops
        wanted = wanted and not (call.definition is not None and call.definition.shape_only)
        if wanted:
            needed.update(filter(None, node.inputs))
        for body in node.bodies:
            if wanted:
                needed.update(value.name for value in body.outputs)
            _collect(body, operators, needed, branches, kept)
            formals = zip(reversed(body.inputs), reversed(node.inputs), strict=False)
            needed.update(actual for formal, actual in formals if actual and formal.name in needed)
        if not (stops and node.op_type in PICKING):
            needed.update(node.inputs[i] for i in call.static if node.inputs[i])
        if branches and node.op_type == "If" and not node.domain:
            needed.add(node.inputs[0])


def origin_of(graph: Graph, name: str) -> str:
    """The origin of a value, for an error message."""
    if any(value.name == name for value in graph.inputs):
        return f"the graph input {name!r}"
    for node in graph.all_nodes():
        if name in node.outputs:
            inputs = ", ".join(map(repr, filter(None, node.inputs)))
            return f"{name!r}, computed by node {node.name!r} ({node.op_type}) from {inputs}"
    return f"{name!r}"


def inputs_behind(graph: Graph, name: str) -> list[str]:
    """The graph inputs from which a value of any scope is computed, in the file's order."""
    makers = {made: node for node in graph.all_nodes() for made in node.outputs if made}
    seen, waiting = {name}, [name]
    while waiting:
        node = makers.get(waiting.pop())
        new = node.reads() - seen if node is not None else set()
        seen |= new
        waiting += new
    return [value.name for value in graph.inputs if value.name in seen]


def has_function_body(node: Node) -> bool:
    """Whether ONNX defines the node's operator by other operators."""
    schema = schema_of(node)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)
