"""Node -> NodeProto: the way back, for what wants ONNX's own messages (function bodies, jaxonnxruntime, the reference evaluator)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Graph, Node
from .tensor import ELEMENT_TYPES


def node_proto(node: Node) -> onnx.NodeProto:
    """A NodeProto equal to `node`; subgraphs are left out."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name, input=node.inputs, output=node.outputs)
    for name, value in node.attributes.items():
        if not isinstance(value, Graph) and not name.startswith("__"):
            proto.attribute.append(helper.make_attribute(name, _plain(value)))
    return proto


def type_proto(value: Any) -> onnx.TypeProto:
    """The tensor type of a value that has `dtype` and `shape`."""
    return helper.make_tensor_type_proto(ELEMENT_TYPES[np.dtype(value.dtype)], value.shape)


def _plain(value: Any) -> Any:
    return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
