"""One lowering for all nodes that are alike, in traces that are only read.

The traces that show how a graph treats its rows are never compiled. Thousands of nodes of a long graph have
the same operator, attributes, shapes and dtypes. So their operator is traced once. Such nodes wait until
another node is lowered by itself: then a single equation stands for all of them, and holds their
`Program`. JAX takes far longer for equations one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Primitive

from .._types import GraphValue
from ..model.graph import Node
from ..ops.resolve import Call
from ..ops.static import PICKING

NODES = "memojax_nodes"
"""Name of the primitive whose parameter `program` has the nodes that it stands for."""

_ALIKE = 8
"""Nodes alike before the next one is traced by itself, which takes as long as some of them."""

_SHORT, _FEW_BYTES = 16, 64
"""Most numbers of an attribute, and most bytes of a known input, that are compared to find nodes alike."""

_INJECTED = frozenset({"n_outputs", "opset"})
"""Further arguments of operators that are the same for nodes alike."""

_nodes = Primitive(NODES)
_nodes.multiple_results = True
_nodes.def_abstract_eval(lambda *_, program: program.avals)

Lower = Callable[[Sequence[GraphValue]], "tuple[GraphValue, ...]"]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """The trace of nodes alike, from the inputs that are data to the outputs.

    Attributes:
        traced: the trace.
        places: positions of a node's inputs that are data.
        kinds: the shapes and dtypes of the outputs, as numbers.
        passed: if the outputs are inputs, as of an Identity: their positions among `places`.
    """

    traced: ClosedJaxpr
    places: tuple[int, ...]
    kinds: tuple[int, ...]
    passed: tuple[int, ...] | None


@dataclass(eq=False, slots=True)
class Program:
    """Nodes that one equation stands for, in order.

    Numbers tell values apart: 0, 1, ... are the outputs of the nodes, and -1, -2, ... come from outside.

    Attributes:
        steps: for each node its step, and the numbers of its inputs that are data.
        avals: shapes and dtypes of the nodes' outputs.
    """

    steps: list[tuple[Step, tuple[int, ...]]] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)

    def run(self, given: Sequence[Any], step: Callable[[Step, list[Any]], Sequence[Any]]) -> list[Any]:
        """The nodes' outputs by `step`, a function of a node's step and the values of its inputs."""
        made: list[Any] = []
        for one, numbers in self.steps:
            made.extend(step(one, [given[~at] if at < 0 else made[at] for at in numbers]))
        return made


class SharedSteps(dict[str, GraphValue]):
    """The values of one trace by name, without those of nodes that wait."""

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[Hashable, int] = {}
        self._steps: dict[Hashable, Step | None] = {}
        self._avals: dict[int, tuple[Any, int]] = {}
        self._kinds: dict[Any, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._program = Program()
        self._inputs: list[Tracer] = []
        self._input_at: dict[int, int] = {}
        self._waiting: dict[str, int] = {}
        """Name of a value that is not there yet -> its number."""
        self._made_kinds: list[int] = []

    def make(self) -> None:
        """Make the values of all waiting nodes.

        Whoever lowers a node by itself calls this first. Its operator may begin a trace of its own, such as
        the body of a loop, and a value that is made in there is of no use outside.
        """
        if not self._waiting:
            return
        program, inputs, waiting = self._program, self._inputs, self._waiting
        self._begin()
        outputs = _nodes.bind(*inputs, program=program) if program.steps else ()
        for name, number in waiting.items():
            self[name] = inputs[~number] if number < 0 else outputs[number]

    def takes(self, node: Node, call: Call, lower: Lower) -> list[GraphValue] | None:
        """Let `node` wait, with the trace of a node like it; None if it must be lowered by itself.

        `lower` lowers the node for given inputs. The result has the node's inputs that are known, and None
        in place of the others.
        """
        definition = call.definition
        if (
            definition is None
            or node.bodies
            or not definition.injected <= _INJECTED
            or node.op_type in PICKING
        ):
            return None
        kinds: list[Any] = []
        known: list[GraphValue] = []
        for name in node.inputs:
            number = self._waiting.get(name)
            if number is None:
                value = super().get(name)
                kind = self._kind(value)
                if kind is None and name:
                    return None
            else:
                value = None
                kind = self._made_kinds[number] if number >= 0 else self._kind(self._inputs[~number])
            kinds.append(kind)
            known.append(value if isinstance(value, np.ndarray) else None)
        places = tuple(place for place, kind in enumerate(kinds) if type(kind) is int)
        if not places or any(place in places for place in call.static) or not _is_plain(call.attributes):
            return None
        # repr tells 0.0 and -0.0, 1 and 1.0 apart.
        attributes = repr(sorted(call.attributes.items())) if call.attributes else ""
        key = id(definition), node.opset, len(node.outputs), attributes, tuple(kinds)
        if key not in self._steps:
            times = self._times[key] = self._times.get(key, 0) + 1
            if times <= _ALIKE:
                return None
            self._steps[key] = self._traced(node, places, lower)
        step = self._steps[key]
        if step is None:
            return None
        self._append(node, step)
        return known

    def _append(self, node: Node, step: Step) -> None:
        numbers = tuple(self._number(node.inputs[place]) for place in step.places)
        if step.passed is not None:
            made = [numbers[at] for at in step.passed]
        else:
            first = len(self._program.avals)
            self._program.steps.append((step, numbers))
            self._program.avals.extend(step.traced.out_avals)
            self._made_kinds.extend(step.kinds)
            made = range(first, first + len(step.kinds))
        for name, number in zip(node.outputs, made, strict=False):
            if name:
                self._waiting[name] = number

    def _number(self, name: str) -> int:
        """The number of a value in the program."""
        number = self._waiting.get(name)
        if number is None:
            value = self[name]
            number = self._input_at.get(id(value))
            if number is None:
                self._inputs.append(value)
                number = self._input_at[id(value)] = -len(self._inputs)
        return number

    def _kind(self, value: GraphValue) -> Any:
        """The shape and dtype of data, as a number; the content of a short known array; None for the rest."""
        if isinstance(value, Tracer):
            return self._kind_of(value.aval)
        if type(value) is np.ndarray and value.nbytes <= _FEW_BYTES and value.dtype.kind in "iufbc":
            return value.dtype, value.shape, value.tobytes()
        return None

    def _kind_of(self, aval: Any) -> int:
        known = self._avals.get(id(aval))
        if known is None:
            # The aval is kept, so that no other object gets its identity.
            known = self._avals[id(aval)] = aval, self._kinds.setdefault(aval, len(self._kinds))
        return known[1]

    def _traced(self, node: Node, places: tuple[int, ...], lower: Lower) -> Step | None:
        """The trace of a node; None if some output is no data, or if running it does more than to compute."""
        self.make()
        inputs: list[Any] = [self[name] if name else None for name in node.inputs]
        avals = [inputs[place].aval for place in places]
        specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
        plain: list[bool] = []

        def run(*data: jax.Array) -> tuple[GraphValue, ...]:
            given = list(inputs)
            for place, value in zip(places, data, strict=True):
                given[place] = value
            outputs = lower(given)
            plain.append(
                len(outputs) >= len(node.outputs) and all(isinstance(value, Tracer) for value in outputs)
            )
            return outputs if plain[-1] else ()

        try:
            traced = jax.make_jaxpr(run)(*specs)
        except Exception:
            return None  # the node fails again when it is lowered by itself, with an error that names it
        if not plain[-1] or traced.effects:
            return None
        inner = traced.jaxpr
        passes = not inner.eqns and all(var in inner.invars for var in inner.outvars)
        passed = tuple(inner.invars.index(var) for var in inner.outvars) if passes else None
        return Step(traced, places, tuple(map(self._kind_of, traced.out_avals)), passed)


def _is_plain(attributes: Mapping[str, Any]) -> bool:
    return not attributes or all(map(_is_short, attributes.values()))


def _is_short(value: Any) -> bool:
    """Whether an attribute is a number, a short text, or a few of them."""
    if isinstance(value, (list, tuple)):
        return len(value) <= _SHORT and all(map(_is_short, value))
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _FEW_BYTES)
