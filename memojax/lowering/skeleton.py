"""What two exports of one network have in common: everything but the weights and the names."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from ..model.graph import Graph, Node
from .graph_function import GraphFunction


class Skeleton:
    """A graph without names: each value is known by the place where it is made or first read.

    Attributes:
        nodes: operators with their wires and attributes, and the wires of the outputs.
        constants: (name, value) of the other initializers, in the order in which nodes read them.
        weights: names of the weights, in the order in which nodes read them.
    """

    nodes: list[Hashable]
    constants: list[tuple[str, Hashable]]
    weights: list[str]

    def __init__(self, function: GraphFunction):
        """Take the names out of the graph of `function`."""
        self._function = function
        self._values: dict[str, np.ndarray] = dict(function.constants)
        self._places: dict[str, Hashable] = {
            value.name: ("input", place) for place, value in enumerate(function.graph.inputs)
        }
        self.constants, self.weights = [], []
        self.nodes = [*self._of_graph(function.graph)]
        # An output may be a weight itself, and unused weights have a place as well.
        self.weights += [name for name in function.params if name not in set(self.weights)]

    def _of_graph(self, graph: Graph) -> Iterator[Hashable]:
        for node in graph.nodes:
            # The body of an `If` reads weights after the node's own inputs.
            wires = tuple(map(self._place, node.inputs))
            attributes = tuple((name, self._plain(node.attributes[name])) for name in sorted(node.attributes))
            outputs = tuple(self._made(name) for name in node.outputs)
            yield node.domain, node.op_type, self._version(node), wires, outputs, attributes
        yield tuple(self._place(value.name) for value in graph.outputs)

    def _version(self, node: Node) -> Hashable:
        """The op-version, which may be the same in two opsets; the opset if an operator has none."""
        definition = self._function.operators.of(node).definition
        return node.opset if definition is None else id(definition)

    def _made(self, name: str) -> Hashable:
        if name:
            self._places[name] = len(self._places)
        return self._places.get(name)

    def _place(self, name: str) -> Hashable:
        if not name or name in self._places:
            return self._places.get(name)
        if name in self._function.params:
            self.weights.append(name)
            place: Hashable = ("weight", len(self.weights))
        else:
            value = self._values.get(name)
            self.constants.append((name, None if value is None else self._plain(value)))
            place = ("constant", len(self.constants))
        self._places[name] = place
        return place

    def _plain(self, value: Any) -> Hashable:
        """An attribute or constant as a value that compares by content."""
        if isinstance(value, Graph):
            outer = set(self._places)
            self._values.update(value.initializers)
            self._places.update((given.name, ("body", place)) for place, given in enumerate(value.inputs))
            body = tuple(self._of_graph(value))
            # What a body makes is unknown outside of it; weights and constants keep their places.
            self._places = {
                name: place
                for name, place in self._places.items()
                if name in outer or (isinstance(place, tuple) and place[0] != "body")
            }
            return body
        if isinstance(value, np.ndarray):
            content = tuple(value.ravel()) if value.dtype == object else value.tobytes()
            return value.dtype.str, value.shape, content
        if isinstance(value, tuple):
            return tuple(map(self._plain, value))
        return (
            repr(value) if isinstance(value, float) else value if isinstance(value, Hashable) else str(value)
        )
