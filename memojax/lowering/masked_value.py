"""Values with one axis of unknown length: the entries that a mask of data picks, kept at their places.

A place is a position in the mask, and an entry is the element of the value at a place where the mask holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from .._types import GraphValue, Shape
from ..errors import StaticInputError
from ..model.graph import Node
from ..ops import lookup
from ..ops._common import ints, is_static
from ..ops.static import mask_of_count


@dataclass(frozen=True, eq=False)
class Masked:
    """A value with one axis of entries: one for each place where `mask` holds, in row-major order.

    Attributes:
        mask: `bool[*places]`.
        values: `[*places, *rest]`; elements at places where the mask does not hold are arbitrary.
        axis: position of the axis of entries in the value's own shape; the other axes are `rest`.
        key: identifies the mask: masks with equal keys are equal.
        columns: for coordinates (the result of NonZero), the mask axis of each column; None for other values.
    """

    mask: jax.Array
    values: GraphValue
    axis: int
    key: Hashable
    columns: tuple[int, ...] | None = None

    @property
    def rest(self) -> Shape:
        """Lengths of the axes other than that of the entries."""
        return tuple(np.shape(self.values)[self.mask.ndim :])

    @property
    def rank(self) -> int:
        return len(self.rest) + 1

    @property
    def sizes(self) -> list[int | Count]:
        """The value's own shape, with a `Count` for the axis of entries."""
        rest: list[int | Count] = list(self.rest)
        return [*rest[: self.axis], Count(self.mask, self.key), *rest[self.axis :]]

    @property
    def are_coordinates(self) -> bool:
        """Whether each entry holds the coordinates of its own place, `[n, rank of the mask]`."""
        return self.columns == tuple(range(self.mask.ndim)) and self.axis == 0 and self.rank == 2

    def with_values(self, values: GraphValue, axis: int | None = None, columns: Any = None) -> Masked:
        return replace(self, values=values, axis=self.axis if axis is None else axis, columns=columns)


def check_no_picks(value: GraphValue, what: str) -> None:
    """Check that a value is not masked, since a masked value has no meaning outside the graph.

    Raises:
        StaticInputError: the value is masked.
    """
    if isinstance(value, Masked):
        raise StaticInputError(
            f"{what} has as many entries as a mask of data picks, so its shape depends on data: use "
            "memojax.run or memojax.OneShot, which break the graph there"
        )


@dataclass(frozen=True, eq=False)
class Count:
    """The number of places where a mask holds, as the length of an axis."""

    mask: jax.Array
    key: Hashable


@dataclass(frozen=True)
class Masking:
    """The scope of masked values: `makers` is name -> node, `env` is name -> value."""

    makers: Mapping[str, Node]
    env: Mapping[str, GraphValue]

    def sizes(self, name: str) -> list[int | Count] | None:
        """The elements of a tensor of lengths, as numbers or counts of masks; None if they are unknown."""
        value = self.env.get(name)
        if value is None or isinstance(value, Masked):
            return None
        if is_static(value):
            return [int(size) for size in np.ravel(value)]
        node = self.makers.get(name)
        rule = _SIZES.get(node.op_type) if node is not None and not node.domain else None
        return rule(self, node) if rule is not None and node is not None else None

    def key(self, name: str) -> Hashable:
        """A key of the computation of a value: equal computations have equal keys.

        Exporters compute the same mask several times, so names cannot tell whether two masks are equal.
        """
        node = self.makers.get(name)
        definition = lookup(node.domain, node.op_type, node.opset) if node is not None else None
        if node is None or definition is None or definition.draws(node) or any(node.bodies):
            return name
        # Exporters expand a mask to the shape that it has already.
        if node.op_type in _SHAPING and np.shape(self.env[name]) == np.shape(self.env[node.inputs[0]]):
            return self.key(node.inputs[0])
        plain = tuple(sorted((k, _plain(v)) for k, v in node.attributes.items()))
        place = node.outputs.index(name)
        return (
            node.domain,
            node.op_type,
            plain,
            place,
            tuple(self.key(given) if given else "" for given in node.inputs),
        )

    def mask_key(self, name: str, shape: Shape) -> tuple[Hashable, Shape]:
        """The key of a mask: (key of the mask before it was broadcast along new last axes, their lengths).

        `x[mask]` and `x[expanded mask]` pick the same entries, in the same order, if the mask is constant
        along the new axes. `_spread` in masked.py makes the same key when it spreads entries over these axes.
        """
        # Walk back over broadcasts to the mask before them, as long as they only add axes at the end.
        root = name
        while (node := self.makers.get(root)) is not None and not node.domain:
            if node.op_type not in ("Expand", "Unsqueeze", "Identity"):
                break
            root = node.inputs[0]
            own = np.shape(self.env[root])
            if own == shape[: len(own)] and self._spread_last(name, root):
                key, spread = self.mask_key(root, own)
                return key, (*spread, *shape[len(own) :])
        return self.key(name), ()

    def _spread_last(self, name: str, root: str) -> bool:
        """Whether all axes that were added between `root` and `name` are the last ones."""
        rank = np.ndim(self.env[root])
        while name != root:
            node = self.makers[name]
            if node.op_type == "Unsqueeze":
                axes = self.axes(node)
                if axes is None:
                    return False
                total = np.ndim(self.env[name])
                if any(axis % total < rank for axis in axes):
                    return False
            elif node.op_type == "Expand" and np.ndim(self.env[name]) != np.ndim(self.env[node.inputs[0]]):
                return False
            name = node.inputs[0]
        return True

    def axes(self, node: Node) -> Shape | None:
        if "axes" in node.attributes:
            return tuple(node.attributes["axes"])
        if len(node.inputs) < 2 or not node.inputs[1]:
            return None
        given = self.env[node.inputs[1]]
        return ints(given) if is_static(given) else None


_SHAPING = ("Identity", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


def _plain(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (
            value.dtype.str,
            value.shape,
            value.tobytes() if value.dtype.kind != "O" else tuple(value.ravel()),
        )
    return tuple(value) if isinstance(value, list) else value


def _count(m: Masking, node: Node) -> list[int | Count] | None:
    """The number of places of a mask that was cast to numbers and summed."""
    name = mask_of_count(m.makers, node)
    value = m.env.get(name) if name is not None else None
    if (
        name is None
        or value is None
        or isinstance(value, Masked)
        or getattr(value, "dtype", None) != np.bool_
    ):
        return None
    return [Count(value, m.mask_key(name, np.shape(value)))] if np.size(m.env[node.outputs[0]]) == 1 else None


def _shape_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    x = m.env.get(node.inputs[0])
    if not isinstance(x, Masked):
        return None
    return x.sizes[node.attributes.get("start", 0) : node.attributes.get("end")]


def _concat_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    parts = [m.sizes(name) for name in node.inputs]
    return None if None in parts else [size for part in parts for size in part or ()]


def _gather_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    sizes, indices = m.sizes(node.inputs[0]), m.env.get(node.inputs[1])
    return [sizes[index] for index in ints(indices)] if sizes is not None and is_static(indices) else None


def _slice_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    sizes = m.sizes(node.inputs[0])
    bounds = [m.env.get(name) for name in node.inputs[1:] if name]
    if sizes is None or not is_static(bounds) or len(bounds) < 2:
        return None
    step = ints(bounds[3])[0] if len(bounds) > 3 else 1
    return sizes[ints(bounds[0])[0] : ints(bounds[1])[0] : step]


def _same_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    return m.sizes(node.inputs[0])


_SIZES: dict[str, Callable[[Masking, Node], list[int | Count] | None]] = {
    "ReduceSum": _count,
    "Shape": _shape_sizes,
    "Concat": _concat_sizes,
    "Gather": _gather_sizes,
    "Slice": _slice_sizes,
    **dict.fromkeys(("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"), _same_sizes),
}
"""ONNX operator -> the elements of its result, a tensor of lengths."""

ELEMENTWISE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    ]
)
"""ONNX operators that work on every element by itself."""
