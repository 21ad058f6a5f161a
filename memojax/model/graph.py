"""The frozen graph on which all later rooms work; protobuf messages leave this package only by `proto.py`.

`graph_of` also mends faults of real files that ONNX Runtime forgives: initializers listed as inputs, nodes
out of order, an output listed twice, an output that no node produces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from .._types import Dim
from ..errors import ModelLoadError
from ..xla.limits import DEPTH, NODES
from .attribute import value_of
from .names import string, strings
from .tensor import MAX_RANK, dtype_of, to_dense, to_numpy


@dataclass(frozen=True)
class Value:
    """A graph input or output as declared: `kind` is "tensor", "sequence", "optional" or "unknown"."""

    name: str
    dtype: np.dtype | None = None
    shape: tuple[Dim, ...] | None = None
    kind: str = "tensor"


@dataclass(frozen=True)
class Node:
    """One operator call; `opset` is the version of its domain, and "" is an absent input or output."""

    op_type: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bodies: tuple[Graph, ...] = field(init=False, repr=False, compare=False)
    """The subgraphs among the attributes."""

    def __post_init__(self) -> None:
        bodies = tuple(value for value in self.attributes.values() if isinstance(value, Graph))
        object.__setattr__(self, "bodies", bodies)

    def reads(self) -> frozenset[str]:
        """Names that this node needs: its inputs, and the names that its subgraphs read from around them."""
        names = frozenset(self.inputs)
        if self.bodies:
            names = names.union(*(body.free_names() for body in self.bodies))
        return names - _ABSENT if "" in names else names


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order between named inputs and outputs.

    Attributes:
        notes: the faults that were mended, for messages.
        defaults: inputs that a caller may leave out, as declared; `initializers` has their values.
        bound: inputs that became constants after loading, name -> value; `initializers` has them too.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: Mapping[str, np.ndarray]
    nodes: tuple[Node, ...]
    notes: tuple[str, ...] = ()
    defaults: Mapping[str, Value] = field(default_factory=dict)
    bound: Mapping[str, Any] = field(default_factory=dict)

    def free_names(self) -> frozenset[str]:
        """Names that this graph or a subgraph reads, and neither defines."""
        return self._free_names

    @cached_property
    def _free_names(self) -> frozenset[str]:
        known = {value.name for value in self.inputs} | set(self.initializers)
        free: set[str] = set()
        for node in self.nodes:
            free |= node.reads() - known
            known |= set(node.outputs)
        return frozenset(free | ({value.name for value in self.outputs} - known))

    def all_nodes(self) -> Iterator[Node]:
        """Every node; the nodes of subgraphs follow the node that holds them."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.all_nodes()


_ABSENT = frozenset({""})


def domain_of(name: str) -> str:
    """The domain in one spelling: ONNX's own is "" or "ai.onnx" in files, and always "" here."""
    return "" if name == "ai.onnx" else name


def graph_of(proto: onnx.GraphProto, opsets: Mapping[str, int], outer: bool = True, depth: int = 0) -> Graph:
    """Convert a GraphProto; `outer` is False for a subgraph, which may read names from around it.

    Raises:
        ModelLoadError: there is a cycle, an undefined name, a name defined twice, or an unreadable tensor.
        LimitError: subgraphs nest too deeply, or there are too many nodes.
    """
    DEPTH.check(depth, f"the graph {string(proto.name)!r}")
    initializers = {string(tensor.name): to_numpy(tensor) for tensor in proto.initializer}
    initializers.update((string(sparse.values.name), to_dense(sparse)) for sparse in proto.sparse_initializer)
    inputs = tuple(_input(info) for info in proto.input if string(info.name) not in initializers)
    nodes = nodes_of(proto.node, opsets, depth)
    notes: list[str] = []
    known = {value.name for value in inputs} | set(initializers)
    _check_unique(nodes, known)
    produced = known.union(*(node.outputs for node in nodes)) - _ABSENT
    outputs: dict[str, Value] = {}
    for info in proto.output:
        name = string(info.name)
        if name in outputs:
            notes.append(f"output {name!r} is listed twice; it is kept once")
        elif outer and name not in produced:
            notes.append(f"output {name!r} is produced by no node; it is dropped")
        else:
            outputs[name] = _value(info)
    defaults = {info.name: _value(info) for info in proto.input if info.name in initializers}
    if defaults:
        notes.append(
            f"{len(defaults)} initializer(s) are also listed as inputs; they keep the file's values unless "
            f"they are given or bound: {', '.join(sorted(defaults)[:4])}"
        )
    nodes = sort_nodes(nodes, produced, outer)
    return Graph(
        string(proto.name), inputs, tuple(outputs.values()), initializers, nodes, tuple(notes), defaults
    )


def nodes_of(protos: Sequence[onnx.NodeProto], opsets: Mapping[str, int], depth: int = 0) -> tuple[Node, ...]:
    """Convert nodes in the given order; `depth` counts the subgraphs around them."""

    def subgraph(proto: onnx.GraphProto) -> Graph:
        return graph_of(proto, opsets, outer=False, depth=depth + 1)

    def convert(index: int, proto: onnx.NodeProto) -> Node:
        op_type, domain = string(proto.op_type), domain_of(string(proto.domain))
        name = string(proto.name) or f"{op_type}_{index}"
        attributes: dict[str, Any] = {}
        if proto.attribute:
            try:
                attributes = {string(a.name): value_of(a, subgraph) for a in proto.attribute}
            except ValueError as cause:
                raise ModelLoadError(f"node {name!r} ({op_type}): {cause}") from cause
        if proto.overload:
            attributes["__overload__"] = string(proto.overload)
        inputs, outputs = strings(proto.input), strings(proto.output)
        return Node(op_type, domain, opsets.get(domain, 1), name, inputs, outputs, attributes)

    NODES.check(len(protos), "the graph")
    return tuple(convert(index, proto) for index, proto in enumerate(protos))


def sort_nodes(nodes: tuple[Node, ...], produced: set[str], outer: bool) -> tuple[Node, ...]:
    """Nodes in topological order; the file's own order, if it is topological.

    Raises:
        ModelLoadError: there is a cycle, or an undefined name.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    needs: list[set[int]] = []
    for node in nodes:
        reads = node.reads()
        if outer and (undefined := reads - produced):
            raise ModelLoadError(
                f"node {node.name!r} ({node.op_type}) reads {min(undefined)!r}, which nothing in the model "
                "defines"
            )
        needs.append({maker[name] for name in reads if name in maker})
    if all(all(need < index for need in indices) for index, indices in enumerate(needs)):
        return nodes
    users: list[list[int]] = [[] for _ in nodes]
    waiting = [len(indices) for indices in needs]
    for index, indices in enumerate(needs):
        for need in indices:
            users[need].append(index)
    ready = deque(index for index, count in enumerate(waiting) if count == 0)
    order: list[int] = []
    while ready:
        order.append(index := ready.popleft())
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(order) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise ModelLoadError(f"the graph has a cycle through node {stuck.name!r} ({stuck.op_type})")
    return tuple(nodes[index] for index in order)


def prune(graph: Graph, outputs: Iterable[str] | None = None) -> Graph:
    """The graph with only `outputs` (all by default), and the nodes and initializers that they need.

    Raises:
        ModelLoadError: the graph does not have one of `outputs`.
    """
    kept = graph.outputs
    if outputs is not None:
        known = {value.name: value for value in graph.outputs}
        wanted = tuple(dict.fromkeys(outputs))
        if unknown := [name for name in wanted if name not in known]:
            raise ModelLoadError(f"no output {unknown[0]!r}: the model has {', '.join(map(repr, known))}")
        kept = tuple(known[name] for name in wanted)
    needed = {value.name for value in kept}
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed |= node.reads()
    return replace(
        graph,
        outputs=kept,
        nodes=tuple(reversed(nodes)),
        initializers={name: array for name, array in graph.initializers.items() if name in needed},
        defaults={name: value for name, value in graph.defaults.items() if name in needed},
    )


def _check_unique(nodes: tuple[Node, ...], known: set[str]) -> None:
    seen = set(known)
    for node in nodes:
        for name in filter(None, node.outputs):
            if name in seen:
                raise ModelLoadError(
                    f"{name!r} is defined twice; the second time by node {node.name!r} ({node.op_type})"
                )
            seen.add(name)


def _input(info: onnx.ValueInfoProto) -> Value:
    value = _value(info)
    if value.shape is not None and len(value.shape) > MAX_RANK:
        raise ModelLoadError(
            f"input {value.name!r} has {len(value.shape)} axes, but arrays may have {MAX_RANK}"
        )
    return value


def _value(info: onnx.ValueInfoProto) -> Value:
    name = string(info.name)
    which = info.type.WhichOneof("value")
    if which != "tensor_type":
        return Value(
            name,
            kind={"sequence_type": "sequence", "optional_type": "optional"}.get(which or "", "unknown"),
        )
    tensor = info.type.tensor_type
    dtype = dtype_of(tensor.elem_type) if tensor.elem_type else None
    return Value(name, dtype, tuple(map(_dim, tensor.shape.dim)) if tensor.HasField("shape") else None)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    which = dim.WhichOneof("value")
    if which == "dim_value":
        return dim.dim_value if dim.dim_value >= 0 else None
    return (string(dim.dim_param) or None) if which == "dim_param" else None
