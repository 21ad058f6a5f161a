"""Convert nodes and graphs back to ONNX messages, for function bodies and jaxonnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Graph, Node, Value
from .tensor import ELEMENT_TYPES


def node_proto(node: Node) -> onnx.NodeProto:
    """A NodeProto equal to `node`, its subgraphs included."""
    proto = onnx.NodeProto(
        op_type=node.op_type, domain=node.domain, name=node.name, input=node.inputs, output=node.outputs
    )
    for name, value in node.attributes.items():
        if not name.startswith("__"):
            proto.attribute.append(helper.make_attribute(name, _plain(value)))
    return proto


def graph_proto(graph: Graph) -> onnx.GraphProto:
    """A GraphProto equal to `graph`."""
    initializers = [numpy_helper.from_array(array, name) for name, array in graph.initializers.items()]
    nodes = [node_proto(node) for node in graph.nodes]
    return helper.make_graph(
        nodes, graph.name, [_info(v) for v in graph.inputs], [_info(v) for v in graph.outputs], initializers
    )


def _info(value: Value) -> onnx.ValueInfoProto:
    if value.dtype is None:
        return onnx.ValueInfoProto(name=value.name)
    return helper.make_tensor_value_info(value.name, ELEMENT_TYPES[value.dtype], value.shape)


def type_proto(value: Any) -> onnx.TypeProto:
    """The tensor type of a value that has `dtype` and `shape`."""
    return helper.make_tensor_type_proto(ELEMENT_TYPES[np.dtype(value.dtype)], value.shape)


def _plain(value: Any) -> Any:
    if isinstance(value, Graph):
        return graph_proto(value)
    return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
