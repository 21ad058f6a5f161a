"""Replace functions by their bodies: a model's own at load, ONNX's when a node is lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnx.defs

from ..errors import ModelLoadError
from ..xla.limits import DEPTH, NAMES, NODES
from .attribute import Reference, value_of
from .graph import Graph, Node, domain_of, nodes_of, sort_nodes
from .names import string, strings
from .proto import node_proto, type_proto


@dataclass(frozen=True)
class Function:
    """A named list of nodes with formal inputs, outputs and attribute defaults."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


Functions = Mapping[tuple[str, str, str], Function]
"""(domain, op_type, overload) -> function."""


def function_of(proto: onnx.FunctionProto) -> Function:
    """Convert a FunctionProto with the opsets that it imports; without an import, ai.onnx is the newest."""
    opsets = {"": onnx.defs.onnx_opset_version()}
    opsets |= {domain_of(string(entry.domain)): entry.version for entry in proto.opset_import}
    defaults = {string(a.name): value_of(a, lambda _: None) for a in proto.attribute_proto}
    nodes = sort_nodes(nodes_of(proto.node, opsets), set(), outer=False)
    return Function(string(proto.name), strings(proto.input), strings(proto.output), nodes, defaults)


def functions_of(model: onnx.ModelProto) -> Functions:
    """The functions that a model defines; where ONNX has an operator of the same name, that one counts, as it
    does in ONNX Runtime."""
    named = {(domain_of(string(f.domain)), string(f.name), string(f.overload)): f for f in model.functions}
    return {key: function_of(proto) for key, proto in named.items() if not onnx.defs.has(key[1], key[0])}


def inline(graph: Graph, functions: Functions) -> Graph:
    """Replace calls of `functions` by their bodies, also within subgraphs.

    Raises:
        LimitError: functions call each other without end, or too often.
        ModelLoadError: a function does not make an output that a call of it reads.
    """
    if not functions:
        return graph
    NODES.check(_count_of(graph.nodes, functions), "this model, with its functions written out,")
    return _Inliner(functions).graph(graph, 0)


def _count_of(nodes: Iterable[Node], functions: Functions) -> int:
    """At least how many nodes these become: quickly, where writing them out takes long."""
    known: dict[tuple[str, str, str], int] = {}

    def count(nodes: Iterable[Node], depth: int) -> int:
        return sum(of(node, depth) for node in nodes)

    def of(node: Node, depth: int) -> int:
        key = node.domain, node.op_type, node.attributes.get("__overload__", "")
        if key not in functions:
            return 1 + sum(count(body.nodes, depth + 1) for body in node.bodies if depth < _DEEP)
        if key not in known:
            known[key] = 0  # for a function that calls itself, which is refused when it is written out
            known[key] = count(functions[key].nodes, depth + 1) if depth < _DEEP else 0
        return known[key]

    return count(nodes, 0)


_DEEP = 200
"""Levels at which counting stops; the inliner refuses fewer."""


class _Inliner:
    """Inlines the functions of one model, within the limits."""

    def __init__(self, functions: Functions):
        self._functions = functions
        self._nodes = self._calls = self._characters = 0
        self._most, self._longest, self._deepest = NODES.allowed, NAMES.allowed, DEPTH.allowed

    def graph(self, graph: Graph, depth: int) -> Graph:
        return replace(graph, nodes=self._written_out(graph.nodes, depth))

    def _written_out(self, nodes: Iterable[Node], depth: int) -> tuple[Node, ...]:
        if depth > self._deepest:
            raise DEPTH.exceeded(
                depth, "a function that calls functions (do they call each other?)", self._deepest
            )
        written: list[Node] = []
        for node in nodes:
            body = self._functions.get((node.domain, node.op_type, node.attributes.get("__overload__", "")))
            if body is None:
                self._count(node)
                if node.bodies:
                    bodies = {
                        k: self.graph(v, depth + 1)
                        for k, v in node.attributes.items()
                        if isinstance(v, Graph)
                    }
                    node = replace(node, attributes={**node.attributes, **bodies})
                written.append(node)
            else:
                self._calls += 1
                prefix = f"{node.name}/" if len(node.name) < _LONGEST_PREFIX else ""
                written.extend(self._written_out(bind(body, node, f"{prefix}{self._calls}/"), depth + 1))
        return tuple(written)

    def _count(self, node: Node) -> None:
        self._nodes += 1
        self._characters += len(node.name) + sum(map(len, node.inputs)) + sum(map(len, node.outputs))
        if self._nodes > self._most:
            raise NODES.exceeded(self._nodes, "this model", self._most)
        if self._characters > self._longest:
            raise NAMES.exceeded(self._characters, "this model", self._longest)


_LONGEST_PREFIX = 400
"""A longer name of a call is no prefix of the names in its body: nested calls would make them ever longer."""


def bind(body: Function, call: Node, prefix: str) -> tuple[Node, ...]:
    """The nodes of `body` for one call.

    Formal inputs, outputs and attributes give way to those of the call; other names begin with `prefix`.

    Raises:
        ModelLoadError: the call has more inputs or outputs than the function, or no node makes an output.
    """
    if len(call.inputs) > len(body.inputs) or len(call.outputs) > len(body.outputs):
        raise ModelLoadError(
            f"node {call.name!r} calls the function {body.name!r} with {len(call.inputs)} inputs and "
            f"{len(call.outputs)} outputs, but the function has {len(body.inputs)} and {len(body.outputs)}"
        )
    renamed = dict(zip(body.inputs, call.inputs, strict=False))
    renamed |= dict.fromkeys(body.inputs[len(call.inputs) :], "")
    made = {name for node in body.nodes for name in node.outputs}
    aliases: list[tuple[str, str]] = []
    for formal, actual in zip(body.outputs, call.outputs, strict=False):
        # An output that is also an input has the caller's name for it already, so an Identity copies it.
        if formal in renamed:
            aliases.append((renamed[formal], actual))
        elif actual and formal not in made:
            raise ModelLoadError(f"no node in the function {body.name!r} makes its output {formal!r}")
        elif actual:
            renamed[formal] = actual
    given = {**body.defaults, **call.attributes}

    def rename(name: str) -> str:
        return renamed.get(name, prefix + name) if name else ""

    nodes = [_rewrite(node, rename, given, prefix) for node in body.nodes]
    nodes += [
        Node("Identity", "", 1, f"{prefix}alias", (source,), (target,))
        for source, target in aliases
        if target
    ]
    return tuple(nodes)


def schema_body(node: Node, inputs: list[Any]) -> Function | None:
    """ONNX's function body for `node`, or None; each of `inputs` has `dtype` and `shape`, or is None."""
    schema = schema_of(node)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return None
    if schema.has_context_dependent_function:
        version = _best(schema.context_dependent_function_opset_versions, node.opset)
        types = [onnx.TypeProto() if value is None else type_proto(value) for value in inputs]
        raw = schema.get_context_dependent_function_with_opset_version(
            version, node_proto(node).SerializeToString(), [t.SerializeToString() for t in types]
        )
    else:
        version = _best(schema.function_opset_versions, node.opset)
        raw = schema.get_function_with_opset_version(version)
    if not raw:
        return None
    body = function_of(onnx.FunctionProto.FromString(raw))
    defaults = {
        name: value_of(a.default_value, lambda _: None)
        for name, a in schema.attributes.items()
        if a.default_value.type
    }
    return replace(body, defaults={**defaults, **body.defaults})


def schema_of(node: Node) -> Any:
    """ONNX's schema for a node at its opset, or None."""
    return _schema(node.op_type, node.opset, node.domain)


@functools.lru_cache(4096)
def _schema(op_type: str, opset: int, domain: str) -> Any:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _best(versions: list[int], opset: int) -> int:
    return max((v for v in versions if v <= opset), default=min(versions))


def _rewrite(node: Node, rename: Callable[[str], str], given: Mapping[str, Any], prefix: str) -> Node:
    attributes = {}
    for name, value in node.attributes.items():
        if isinstance(value, Reference):
            if value.name in given:
                attributes[name] = given[value.name]
        elif isinstance(value, Graph):
            attributes[name] = rewrite_graph(value, rename, given, prefix)
        else:
            attributes[name] = value
    inputs, outputs = tuple(map(rename, node.inputs)), tuple(map(rename, node.outputs))
    return replace(node, name=prefix + node.name, inputs=inputs, outputs=outputs, attributes=attributes)


def rewrite_graph(graph: Graph, rename: Callable[[str], str], given: Mapping[str, Any], prefix: str) -> Graph:
    """A copy of a subgraph inside a call.

    `rename` gives the new names of values, `given` replaces references to attributes, and `prefix` goes
    before the names of nodes.
    """
    return replace(
        graph,
        inputs=tuple(replace(value, name=rename(value.name)) for value in graph.inputs),
        outputs=tuple(replace(value, name=rename(value.name)) for value in graph.outputs),
        initializers={rename(name): array for name, array in graph.initializers.items()},
        nodes=tuple(_rewrite(node, rename, given, prefix) for node in graph.nodes),
    )
