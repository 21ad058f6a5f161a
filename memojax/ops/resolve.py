"""The operators of a graph's nodes, looked up once and shared by all passes over the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import LoweringError, MemojaxError
from ..model.graph import Graph, Node
from .registry import OpDef, lookup


@dataclass(frozen=True, slots=True)
class Call:
    """The operator of one node, and its answers for this node.

    Attributes:
        definition: the operator's definition; None if ONNX's function body is used instead.
        static: positions of the inputs that must be known while tracing.
        host: positions of the inputs that make the node run on the host if they depend on data.
        draws: whether the node, or a node in its subgraphs, draws random numbers.
        loops: whether there is a `Loop` in the node's subgraphs.
        attributes: the node's attributes, by name.
    """

    definition: OpDef | None
    static: tuple[int, ...]
    host: tuple[int, ...]
    draws: bool
    loops: bool
    attributes: dict[str, Any]


class Operators:
    """The operators of the nodes of a graph and its subgraphs.

    Nodes are told apart by identity, so this object keeps them alive.
    """

    def __init__(self) -> None:
        self._calls: dict[int, tuple[Node, Call]] = {}
        self._plain: dict[tuple[str, str, int], Call] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as an empty object.

        Identities of nodes have no meaning in a copy, and an operator may be a function without a name.
        """
        return Operators, ()

    def of(self, node: Node) -> Call:
        """The operator of `node`.

        Raises:
            LoweringError: the operator cannot read the node's attributes.
        """
        found = self._calls.get(id(node))
        if found is None:
            found = self._calls[id(node)] = (node, self.look_up(node))
        return found[1]

    def look_up(self, node: Node) -> Call:
        """The operator of a node that is not remembered, such as one made anew for each trace."""
        if node.attributes:
            return self._look_up(node)
        kind = node.domain, node.op_type, node.opset
        if (call := self._plain.get(kind)) is None:
            call = self._look_up(node)
            if call.definition is not None and not call.definition.asks_nodes:
                self._plain[kind] = call
        return call

    def _look_up(self, node: Node) -> Call:
        definition = lookup(node.domain, node.op_type, node.opset)
        draws = any(self.draw(body) for body in node.bodies)
        loops = any(self.loop(body) for body in node.bodies)
        attributes = {name: value for name, value in node.attributes.items() if not name.startswith("__")}
        if definition is None:
            return Call(None, (), (), draws, loops, attributes)
        try:
            static, host = definition.static_positions(node), definition.host_positions(node)
            draws = draws or definition.draws(node)
        except MemojaxError:
            raise
        except Exception as cause:
            raise LoweringError(
                f"node {node.name!r} ({node.op_type}, opset {node.opset}): {type(cause).__name__}: {cause}"
            ) from cause
        return Call(definition, static, host, draws, loops, attributes)

    def draw(self, graph: Graph) -> bool:
        """Whether any node in `graph` draws random numbers."""
        return any(self.of(node).draws for node in graph.nodes)

    def loop(self, graph: Graph) -> bool:
        """Whether there is a `Loop` in `graph`."""
        return any(self.of(node).loops or node.op_type == "Loop" for node in graph.nodes)
