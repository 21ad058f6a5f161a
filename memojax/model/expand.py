"""Function bodies -> plain nodes: functions that a model brings along are inlined at load, those of the spec when they are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnx.defs

from ..errors import ModelLoadError
from .attribute import Reference, value_of
from .graph import Graph, Node, domain_of, nodes_of
from .proto import node_proto, type_proto

_MAX_DEPTH = 64


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
    """Convert a FunctionProto, with the opsets that it imports itself; the newest of ai.onnx where it does not say."""
    opsets = {"": onnx.defs.onnx_opset_version()} | {
        domain_of(entry.domain): entry.version for entry in proto.opset_import
    }
    defaults = {a.name: value_of(a, lambda _: None) for a in proto.attribute_proto}
    return Function(
        proto.name, tuple(proto.input), tuple(proto.output), nodes_of(proto.node, opsets), defaults
    )


def functions_of(model: onnx.ModelProto) -> Functions:
    """The functions that a model defines."""
    return {(domain_of(f.domain), f.name, f.overload): function_of(f) for f in model.functions}


def inline(graph: Graph, functions: Functions, depth: int = 0) -> Graph:
    """Replace calls of `functions` by their bodies, also within subgraphs.

    Raises:
        ModelLoadError: functions that call each other without end.
    """
    if not functions:
        return graph
    if depth > _MAX_DEPTH:
        raise ModelLoadError(
            f"functions nest deeper than {_MAX_DEPTH} in {graph.name!r}: they probably call each other"
        )
    nodes: list[Node] = []
    for node in graph.nodes:
        body = functions.get((node.domain, node.op_type, node.attributes.get("__overload__", "")))
        if body is None:
            subgraphs = {
                k: inline(v, functions, depth) for k, v in node.attributes.items() if isinstance(v, Graph)
            }
            nodes.append(replace(node, attributes={**node.attributes, **subgraphs}) if subgraphs else node)
        else:
            called = replace(graph, nodes=bind(body, node))
            nodes.extend(inline(called, functions, depth + 1).nodes)
    return replace(graph, nodes=tuple(nodes))


def bind(body: Function, call: Node) -> tuple[Node, ...]:
    """The nodes of `body` for one call: names made unique by the call's name, formal names and attributes replaced."""
    renamed = dict(zip(body.inputs, call.inputs, strict=False))
    renamed |= dict.fromkeys(body.inputs[len(call.inputs) :], "")
    aliases: list[tuple[str, str]] = []
    for formal, actual in zip(body.outputs, call.outputs, strict=False):
        if formal in renamed:
            aliases.append((renamed[formal], actual))
        elif actual:
            renamed[formal] = actual
    given = {**body.defaults, **call.attributes}
    prefix = f"{call.name}/{next(filter(None, call.outputs), '')}/"

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
    """The spec's own function body for `node`, or None; `inputs` have `dtype` and `shape` (or are None)."""
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
    """The spec's schema in force at the node's opset, or None."""
    try:
        return onnx.defs.get_schema(node.op_type, node.opset, node.domain)
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
            attributes[name] = _rewrite_graph(value, rename, given, prefix)
        else:
            attributes[name] = value
    inputs, outputs = tuple(map(rename, node.inputs)), tuple(map(rename, node.outputs))
    return replace(node, name=prefix + node.name, inputs=inputs, outputs=outputs, attributes=attributes)


def _rewrite_graph(
    graph: Graph, rename: Callable[[str], str], given: Mapping[str, Any], prefix: str
) -> Graph:
    return replace(
        graph,
        inputs=tuple(replace(value, name=rename(value.name)) for value in graph.inputs),
        outputs=tuple(replace(value, name=rename(value.name)) for value in graph.outputs),
        initializers={rename(name): array for name, array in graph.initializers.items()},
        nodes=tuple(_rewrite(node, rename, given, prefix) for node in graph.nodes),
    )
