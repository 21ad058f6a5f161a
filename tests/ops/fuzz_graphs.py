"""Random graphs whose values stay small, and exact for operators with jumps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

OPSETS = (11, 13, 17, 21)
F32, F64, I32, I64, BOOL = map(np.dtype, ("float32", "float64", "int32", "int64", "bool"))
FLOATS, INTS = (F32, F64), (I32, I64)
LIMIT = {F32: 2.0**10, F64: 2.0**10, I32: 2.0**24, I64: 2.0**40, BOOL: 1.0}
"""The largest magnitude; operators that would exceed it are not drawn."""


@dataclass(frozen=True)
class Term:
    """A value of the graph: at most `bound`, and a multiple of `step` (0: not exact)."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    bound: float
    step: float

    @property
    def exact(self) -> bool:
        return self.step > 0 and self.bound / self.step < 2**22


@dataclass
class Builder:
    """A graph that grows by random nodes."""

    draw: Callable[[st.SearchStrategy], Any]
    opset: int
    rng: np.random.Generator
    terms: list[Term] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def name(self) -> str:
        """A new name."""
        return f"x{len(self.inputs) + len(self.weights)}"

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(tuple(options)))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def subset(self, count: int, least: int = 1) -> list[int]:
        """Some of range(count), ascending."""
        return sorted(self.draw(st.sets(st.integers(0, count - 1), min_size=least, max_size=count)))

    def axis(self, rank: int) -> int:
        """An axis of `rank` axes, positive or negative."""
        return self.number(-rank, rank - 1)

    def term(
        self, dtypes: Any = (*FLOATS, *INTS, BOOL), accept: Callable[[Term], bool] = lambda _: True
    ) -> Term:
        """An earlier value, or a new one if none fits."""
        fitting = [term for term in self.terms if term.dtype in dtypes and accept(term)]
        if fitting and self.number(0, 3):
            return self.pick(fitting)
        return self.fresh(self.pick(dtypes))

    def fresh(self, dtype: np.dtype, shape: tuple[int, ...] | None = None, nonzero: bool = False) -> Term:
        """A new input or weight of eighths (or integers) up to 4."""
        if shape is None:
            shape = tuple(self.draw(st.lists(st.integers(1, 4), max_size=4)))
        if dtype == BOOL:
            array, step = self.rng.random(shape) < 0.5, 1.0
        else:
            step = 0.125 if dtype in FLOATS else 1.0
            array = self.rng.integers(-int(4 / step), int(4 / step), shape, endpoint=True)
            if nonzero:
                array = np.where(array == 0, 1, array)
            array = array * step
        name = self.name()
        (self.inputs if self.number(0, 2) else self.weights)[name] = np.asarray(array).astype(dtype)
        self.terms.append(Term(name, dtype, shape, 4.0, step))
        return self.terms[-1]

    def like(self, term: Term, nonzero: bool = False) -> Term:
        """A value that broadcasts with `term`."""
        fitting = [
            other
            for other in self.terms
            if other.dtype == term.dtype and _broadcasts(other.shape, term.shape)
        ]
        if fitting and not nonzero and self.number(0, 2):
            return self.pick(fitting)
        shape = [1 if not self.number(0, 2) else dim for dim in term.shape]
        shape = (
            shape[self.number(0, len(shape)) :]
            if self.number(0, 1)
            else [*([self.number(1, 3)] if len(shape) < 4 else []), *shape]
        )
        return self.fresh(term.dtype, tuple(shape), nonzero)

    def constant(self, values: Any, dtype: Any = I64) -> str:
        """An initializer."""
        name = self.name()
        self.weights[name] = np.asarray(values, dtype)
        return name

    def add(
        self,
        op_type: str,
        *inputs: Term | str,
        shapes: Any,
        bound: float,
        step: float = 0.0,
        dtype: Any = None,
        **attributes: Any,
    ) -> list[Term]:
        """Add a node with outputs of these `shapes`, in the dtype of the first input or `dtype`."""
        first = inputs[0]
        dtype = dtype or (first.dtype if isinstance(first, Term) else F32)
        names = [f"v{len(self.nodes)}_{index}" for index in range(len(shapes))]
        given = [term.name if isinstance(term, Term) else term for term in inputs]
        self.nodes.append(
            helper.make_node(op_type, given, names, name=f"{op_type}_{len(self.nodes)}", **attributes)
        )
        dtypes = dtype if isinstance(dtype, list) else [dtype] * len(names)
        made = [
            Term(name, d, tuple(shape), bound, step)
            for name, d, shape in zip(names, dtypes, shapes, strict=True)
        ]
        self.terms.extend(made)
        return made

    def axes(self, op_type: str, *inputs: Term, axes: list[int], input_since: int, **options: Any) -> None:
        """Add a node whose axes are an attribute before opset `input_since`, and an input from there on."""
        if self.opset >= input_since:
            self.add(op_type, *inputs, self.constant(axes), **options)
        else:
            self.add(op_type, *inputs, **options, axes=axes)

    def model(self) -> onnx.ModelProto:
        """The outputs are the values that no node reads."""
        read = {name for node in self.nodes for name in node.input}
        made = {name for node in self.nodes for name in node.output}
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=term.name) for term in self.terms if term.name in made - read]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "fuzz", infos, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b), strict=False))
