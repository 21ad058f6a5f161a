"""Which operator each node of a graph is: looked up once, and handed to every pass over the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import LoweringError, MemojaxError
from ..model.graph import Graph, Node
from .registry import OpDef, lookup


@dataclass(frozen=True, slots=True)
class Call:
    """A node's operator, and what it says about this node.

    Attributes:
        definition: what lowers it; None where the specification's function body has to.
        static: places of the inputs that must be known while tracing.
        host: places of the inputs that make it run on the host where they depend on data.
        draws: whether it, or a node in its subgraphs, draws random numbers.
        loops: whether there is a `Loop` in its subgraphs.
        attributes: attributes that the operator takes.
    """

    definition: OpDef | None
    static: tuple[int, ...]
    host: tuple[int, ...]
    draws: bool
    loops: bool
    attributes: dict[str, Any]


class Operators:
    """The operators of a graph's nodes, subgraphs included; a node is known by its identity, and kept
    alive."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[Node, Call]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles (and copies) empty: identities mean nothing elsewhere, and operators may be functions
        without a name."""
        return Operators, ()

    def of(self, node: Node) -> Call:
        """What `node` calls.

        Raises:
            LoweringError: its attributes are such that its operator cannot say.
        """
        found = self._calls.get(id(node))
        if found is None:
            found = self._calls[id(node)] = (node, self.look_up(node))
        return found[1]

    def look_up(self, node: Node) -> Call:
        """The same for a node that is made anew for each trace, and that is not worth remembering."""
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
