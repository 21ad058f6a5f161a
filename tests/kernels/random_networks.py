"""Random networks: layers, activations, residuals, parts of values, and recurrent steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
"""The shape of a row of a value: the batch is not part of it."""

_ACTIVATIONS = (
    *("Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Softplus", "Softsign", "HardSigmoid", "Selu", "Erf"),
    *("Gelu", "HardSwish", "Mish", "Celu", "Atan", "Sin", "Cos", "Abs", "ThresholdedRelu"),
)
_WIDTHS = (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 130)
_INPUTS: tuple[Shape, ...] = ((1,), (3,), (16,), (33,), (100,), (5, 8), (3, 17), (3, 9, 12), (4, 16, 7))


class Network:
    """A network that grows by random steps.

    Attributes:
        values: the values so far, name -> shape.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._nodes: list[Any] = []
        self._weights: dict[str, np.ndarray] = {}
        self._dense: dict[int, tuple[str, int]] = {}
        self.input: Shape = self._one(_INPUTS)
        self.values: dict[str, Shape] = {"x": self.input}
        for _ in range(int(rng.integers(3, 12))):
            step: Callable[..., None] = self._one(_STEPS)
            step(self)

    def model(self) -> bytes:
        """The network as a file with the last value and up to two others as outputs."""
        made = [name for name in self.values if name != "x"] or [self._node("Tanh", ["x"], self.input)]
        outputs = {made[-1], *(self._one(made) for _ in range(int(self._rng.integers(0, 3))))}
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                nodes.insert(0, node)
                needed.update(node.input)
        graph = helper.make_graph(
            nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.input])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(outputs)],
            [numpy_helper.from_array(array, name) for name, array in self._weights.items() if name in needed],
        )
        opsets = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()

    def dense(self) -> None:
        """A product, perhaps by weights that another layer has, a bias, and up to two activations."""
        name, shape = self._value(most_axes=2)
        width = self._one(_WIDTHS)
        weight, width = self._dense.get(shape[-1], ("", width)) if self._rng.random() < 0.3 else ("", width)
        if not weight:
            weight = self._weight(shape[-1], width)
            self._dense[shape[-1]] = weight, width
        shape = (*shape[:-1], width)
        name = self._node("MatMul", [name, weight], shape)
        if self._rng.random() < 0.8:
            name = self._node("Add", self._either(name, self._weight(width)), shape)
        for _ in range(int(self._rng.integers(0, 3))):
            name = self._node(self._one(_ACTIVATIONS), [name], shape)

    def residual(self) -> None:
        """A sum, product or the like of two values of one shape."""
        name, shape = self._value()
        other = self._one([other for other, its in self.values.items() if its == shape])
        self._node(self._one(("Add", "Mul", "Sub", "Max", "Min")), self._either(name, other), shape)

    def parts(self) -> None:
        """Some columns of a value, or the columns of several."""
        name, shape = self._value(most_axes=2)
        width, axis = shape[-1], len(shape)
        if self._rng.random() < 0.5:
            start, end = sorted(self._rng.choice(width + 1, 2, replace=False))
            step = self._one((1, 1, 2, 3))
            bounds = [self._number(number) for number in (start, end, axis, step)]
            self._node("Slice", [name, *bounds], (*shape[:-1], len(range(start, end, step))))
        else:
            like = [other for other, its in self.values.items() if its[:-1] == shape[:-1]]
            taken = [name, *(self._one(like) for _ in range(int(self._rng.integers(1, 3))))]
            width = sum(self.values[one][-1] for one in taken)
            if width <= 300:
                self._node("Concat", taken, (*shape[:-1], width), axis=axis)

    def norm(self) -> None:
        """A normalized value, by columns or by another axis."""
        name, shape = self._value()
        axis = int(self._rng.integers(1, len(shape) + 1))
        if self._rng.random() < 0.5 and axis == len(shape):
            scale, bias = self._weight(shape[-1]), self._weight(shape[-1])
            self._node("LayerNormalization", [name, scale, bias], shape, axis=-1)
        else:
            self._node(self._one(("Softmax", "LogSoftmax")), [name], shape, axis=axis)

    def reduced(self) -> None:
        """A value minus its mean, or divided by its norm, along an axis."""
        name, shape = self._value()
        axis = int(self._rng.integers(0, len(shape)))
        less = (*shape[:axis], 1, *shape[axis + 1 :])
        kind = self._one(("ReduceMean", "ReduceMax", "ReduceMin"))
        mean = self._node(kind, [name, self._number(axis + 1)], less, keepdims=1)
        self._node("Sub", [name, mean], shape)

    def reshaped(self) -> None:
        """A value with other axes."""
        name, shape = self._value()
        if len(shape) == 2 and self._rng.random() < 0.5:
            self._node("Transpose", [name], (shape[1], shape[0]), perm=[0, 2, 1])
        elif len(shape) > 1:
            self._node("Flatten", [name], (int(np.prod(shape)),))
        else:
            width = int(np.prod(shape))
            rows = self._one([rows for rows in range(1, width + 1) if width % rows == 0])
            after = (rows, width // rows)
            self._weights[to := f"c{len(self._weights)}"] = np.array([0, *after])
            self._node("Reshape", [name, to], after)

    def convolution(self) -> None:
        """A convolution of an image or of a sequence, with or without an activation."""
        name, shape = self._value(least_axes=2)
        if not shape:
            return
        channels, *sizes = shape
        groups = self._one([groups for groups in (1, 2, 4, channels) if channels % groups == 0])
        out = groups * self._one((1, 2, 3, 8, 17))
        kernel = [int(min(self._one((1, 2, 3, 5)), size)) for size in sizes]
        strides = [self._one((1, 1, 2, 3)) for _ in sizes]
        pads = [int(self._rng.integers(0, size)) for size in (*kernel, *kernel)]
        after = [
            (size + pads[i] + pads[i + len(sizes)] - kernel[i]) // strides[i] + 1
            for i, size in enumerate(sizes)
        ]
        if out * int(np.prod(after)) > 5000:
            return
        inputs = [name, self._weight(out, channels // groups, *kernel), self._weight(out)]
        made = self._node("Conv", inputs, (out, *after), strides=strides, pads=pads, group=groups)
        if self._rng.random() < 0.6:
            self._node(self._one(_ACTIVATIONS), [made], (out, *after))

    def recurrent(self) -> None:
        """One step of a recurrent layer; its state is a value of the network, or zeros."""
        name, shape = self._value(most_axes=1)
        if not shape:
            return
        hidden = self._one((1, 3, 8, 16, 17))
        kind, gates = self._one((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
        inputs = [self._node("Unsqueeze", [name, self._number(0)], None)]
        inputs += [self._weight(1, gates * hidden, size) for size in (shape[0], hidden)]
        inputs += [self._weight(1, 2 * gates * hidden), ""]
        states = [other for other, its in self.values.items() if its == (hidden,)]
        for _ in range((2 if kind == "LSTM" else 1) if states else 0):
            bounded = self._node("Tanh", [self._one(states)], None)
            inputs.append(self._node("Unsqueeze", [bounded, self._number(0)], None))
        steps, last = f"v{len(self._nodes)}", f"h{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [steps, last], hidden_size=hidden))
        self._node("Squeeze", [last, self._number(0)], (hidden,))

    def _value(self, least_axes: int = 1, most_axes: int = 3) -> tuple[str, Shape]:
        """A value, most often the newest, with its shape; an empty shape if there is none."""
        fit = [name for name, shape in self.values.items() if least_axes <= len(shape) <= most_axes]
        if not fit:
            flat = self._node("Flatten", ["x"], (int(np.prod(self.input)),)) if most_axes < 3 else ""
            return flat, self.values.get(flat, ())
        name = fit[-1] if self._rng.random() < 0.7 else self._one(fit)
        return name, self.values[name]

    def _node(self, kind: str, inputs: Sequence[str], shape: Shape | None, **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        if shape is not None:
            self.values[name] = shape
        return name

    def _weight(self, *shape: int) -> str:
        name = f"w{len(self._weights)}"
        scale = np.sqrt(max(shape[0] if len(shape) == 2 else np.prod(shape[1:]), 1))
        self._weights[name] = (self._rng.standard_normal(shape) / scale).astype(np.float32)
        return name

    def _number(self, number: int) -> str:
        name = f"n{len(self._weights)}"
        self._weights[name] = np.array([number])
        return name

    def _one(self, of: Sequence[Any]) -> Any:
        return of[int(self._rng.integers(len(of)))]

    def _either(self, first: str, second: str) -> list[str]:
        return [first, second] if self._rng.random() < 0.5 else [second, first]


_STEPS: tuple[Callable[[Network], None], ...] = (
    *[Network.dense] * 4,
    *[Network.residual] * 2,
    *[Network.parts] * 2,
    *(Network.norm, Network.reduced, Network.reshaped, Network.convolution, Network.recurrent),
)
