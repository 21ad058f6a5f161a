"""One-node models for the op-versions that ONNX's own cases leave out, in a file for each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from memojax.model.tensor import ELEMENT_TYPES

OPSET_IR = {
    7: 3,
    8: 3,
    9: 4,
    10: 5,
    11: 6,
    12: 7,
    13: 7,
    14: 7,
    15: 8,
    16: 8,
    17: 8,
    18: 8,
    19: 9,
    20: 9,
    21: 10,
    22: 10,
    23: 11,
    24: 12,
}


@dataclass(frozen=True)
class Case:
    """One operator at one opset, with inputs; `expected` is set only if onnxruntime cannot be the oracle."""

    op_type: str
    opset: int
    inputs: tuple[np.ndarray | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    n_outputs: int = 1
    expected: tuple[np.ndarray, ...] | None = None

    def __str__(self) -> str:
        shapes = "_".join("x".join(map(str, np.shape(x))) or "s" for x in self.inputs if x is not None)
        return f"{self.op_type}-{self.opset}-{shapes}-{'-'.join(self.attributes)}"

    def names(self) -> list[str]:
        return ["" if value is None else f"x{index}" for index, value in enumerate(self.inputs)]

    def feeds(self) -> dict[str, np.ndarray]:
        return {
            name: value for name, value in zip(self.names(), self.inputs, strict=True) if value is not None
        }

    def model(self, constants: frozenset[int] = frozenset()) -> onnx.ModelProto:
        """The one-node model; inputs at positions in `constants` are initializers."""
        outputs = [f"y{index}" for index in range(self.n_outputs)]
        node = helper.make_node(
            self.op_type, self.names(), outputs, domain=self.domain, name="node", **self.attributes
        )
        infos, initializers = [], []
        for index, (name, value) in enumerate(zip(self.names(), self.inputs, strict=True)):
            if value is None:
                continue
            if index in constants:
                initializers.append(onnx.numpy_helper.from_array(value, name))
            else:
                infos.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[value.dtype], value.shape))
        graph = helper.make_graph(
            [node], "case", infos, [onnx.ValueInfoProto(name=n) for n in outputs], initializers
        )
        opsets = [helper.make_opsetid(self.domain, self.opset)]
        if self.domain:
            opsets.append(helper.make_opsetid("", 17))
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=OPSET_IR.get(self.opset if not self.domain else 17, 10)
        )
