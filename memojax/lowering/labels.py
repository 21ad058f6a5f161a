"""String class labels: an executable returns their positions, and the host looks up the strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ..errors import LoweringError
from ..model.graph import Graph, Node
from ..model.tensor import dtype_of

_CLASSIFIERS = ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")
_PASSING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose")


def string_labels(graph: Graph) -> dict[str, np.ndarray]:
    """Names of values that are string labels -> the labels, to which an executable's positions refer."""
    found: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        labels = _made_by(graph, node)
        if labels is not None:
            found[node.outputs[0]] = labels
        elif node.inputs and node.inputs[0] in found and (_passes(node) or _to_string(node)):
            found[node.outputs[0]] = found[node.inputs[0]]
    return found


def keep_positions(graph: Graph) -> Graph:
    """`graph` without casts of string labels to strings, since an executable holds positions.

    Raises:
        LoweringError: a node casts labels to numbers; casts of positions would give other numbers.
    """
    labels = string_labels(graph)
    if not labels:
        return graph
    nodes = []
    for node in graph.nodes:
        casts = node.op_type == "Cast" and not node.domain and node.inputs[0] in labels
        if casts and not _to_string(node):
            raise LoweringError(
                f"node {node.name!r} (Cast) casts the string labels "
                f"{', '.join(map(repr, labels[node.inputs[0]][:4]))} to numbers, but an executable has no "
                "strings: load the output before this node with outputs=, and cast the labels yourself"
            )
        nodes.append(replace(node, op_type="Identity", attributes={}) if casts else node)
    return replace(graph, nodes=tuple(nodes))


def with_strings(labels: Mapping[str, np.ndarray], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """`outputs` with strings in place of positions in `labels`."""
    return {
        name: labels[name][value] if name in labels and value.dtype.kind in "iu" else value
        for name, value in outputs.items()
    }


def _made_by(graph: Graph, node: Node) -> np.ndarray | None:
    if node.domain != "ai.onnx.ml":
        return None
    if node.op_type in _CLASSIFIERS:
        strings = node.attributes.get("classlabels_strings", ())
        return np.array(strings, object) if len(strings) else None
    if node.op_type == "ArrayFeatureExtractor" and node.inputs[1] not in graph.initializers:
        known = graph.initializers.get(node.inputs[0])
        return known.ravel() if known is not None and known.dtype.kind == "O" else None
    return None


def _passes(node: Node) -> bool:
    return node.op_type in _PASSING and not node.domain


def _to_string(node: Node) -> bool:
    return node.op_type == "Cast" and dtype_of(node.attributes.get("to", onnx.TensorProto.FLOAT)).kind == "O"
