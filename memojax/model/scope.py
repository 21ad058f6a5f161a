"""Check that a graph can run in order: names are defined once and before they are read, calls are valid."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping

from ..errors import ModelLoadError
from .graph import Graph, Node
from .spec import check_call


def check_graph(graph: Graph) -> None:
    """Check a whole graph, with functions inlined, and its subgraphs.

    Raises:
        ModelLoadError: a name is undefined, defined twice or read too early, or ONNX does not allow a call.
    """
    _check(graph, {})


def _check(graph: Graph, around: MutableMapping[str, None]) -> None:
    known: MutableMapping[str, None] = ChainMap({}, around) if around else {}
    own: dict[str, None] = known.maps[0] if isinstance(known, ChainMap) else known  # pyright: ignore
    own.update(dict.fromkeys(value.name for value in graph.inputs))
    own.update(dict.fromkeys(graph.initializers))
    for node in graph.nodes:
        check_call(node)
        for name in node.inputs:
            if name and name not in known:
                raise ModelLoadError(
                    f"node {node.name!r} ({node.op_type}) reads {name!r}, which nothing "
                    f"{_where(graph.nodes, name)}"
                )
        for body in node.bodies:
            _check(body, known)
        for name in node.outputs:
            if name in own and name:
                raise ModelLoadError(
                    f"{name!r} is defined twice; the second time by node {node.name!r} ({node.op_type})"
                )
            own[name] = None
    for value in graph.outputs:
        if value.name not in known or not value.name:
            raise ModelLoadError(f"no node in graph {graph.name!r} makes its output {value.name!r}")


def _where(nodes: Iterable[Node], name: str) -> str:
    later = any(name in node.outputs for node in nodes)
    return "makes before it: the nodes are out of order" if later else "in the model defines"
