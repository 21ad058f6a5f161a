"""One lowering for all nodes that are alike, in traces that are only read.

The traces that show how a graph treats its rows are never compiled. Thousands of nodes of a long graph have
the same operator, attributes, shapes and dtypes. So their operator is traced once, and each node becomes a
single equation that refers to this trace. JAX takes far longer for the equations of an operator, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun

from .._types import GraphValue
from ..model.graph import Node
from ..ops.resolve import Call

NODE = "memojax_node"
"""Name of the primitive whose parameter `jaxpr` is the trace of a node."""

_ALIKE = 8
"""Nodes alike before the next one is traced by itself, which takes as long as some of them."""

_SHORT, _FEW_BYTES = 16, 64
"""Most numbers of an attribute, and most bytes of a known input, that are compared to find nodes alike."""

_INJECTED = frozenset({"n_outputs", "opset"})
"""Further arguments of operators that are the same for nodes alike."""

_node = Primitive(NODE)
_node.multiple_results = True
_node.def_impl(lambda *inputs, jaxpr: jaxpr_as_fun(jaxpr)(*inputs))
_node.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)


class SharedSteps:
    """The lowerings of one trace that nodes share."""

    def __init__(self) -> None:
        self._times: dict[Hashable, int] = {}
        self._made: dict[Hashable, _Step | None] = {}
        self._avals: dict[int, tuple[Any, int]] = {}
        self._kinds: dict[Any, int] = {}

    def outputs(
        self,
        node: Node,
        call: Call,
        inputs: Sequence[GraphValue],
        lower: Callable[[Sequence[GraphValue]], tuple[GraphValue, ...]],
    ) -> tuple[GraphValue, ...] | None:
        """The outputs of `node`, by the trace of a node like it; None if `lower` must lower this node itself.

        `lower` lowers the node for inputs in place of `inputs`.
        """
        key = self._key(node, call, inputs)
        if key is None:
            return None
        if key in self._made:
            step = self._made[key]
        else:
            times = self._times[key] = self._times.get(key, 0) + 1
            if times <= _ALIKE:
                return None
            step = self._made[key] = _traced_step(inputs, lower)
        return None if step is None else step(inputs)

    def _key(self, node: Node, call: Call, inputs: Sequence[GraphValue]) -> Hashable | None:
        """What decides the trace of a node; None if it is more than what a short key can hold."""
        definition = call.definition
        if definition is None or node.bodies or not definition.injected <= _INJECTED:
            return None
        kinds: list[Any] = []
        for value in inputs:
            kind = None if value is None else self._kind(value)
            if kind is None and value is not None:
                return None
            kinds.append(kind)
        attributes = ""
        if call.attributes:
            if not all(map(_is_short, call.attributes.values())):
                return None
            attributes = repr(sorted(call.attributes.items()))  # tells 0.0 and -0.0, 1 and 1.0 apart
        return id(definition), node.opset, len(node.outputs), attributes, tuple(kinds)

    def _kind(self, value: GraphValue) -> Any:
        """The shape and dtype of data, as a number; the content of a short known array; None for the rest."""
        if isinstance(value, Tracer):
            aval = value.aval
            known = self._avals.get(id(aval))
            if known is None:
                # Kept, so that no other object gets its identity.
                known = self._avals[id(aval)] = aval, self._kinds.setdefault(aval, len(self._kinds))
            return known[1]
        if type(value) is np.ndarray and value.nbytes <= _FEW_BYTES and value.dtype.kind in "iufbc":
            return value.dtype, value.shape, value.tobytes()
        return None


def _is_short(value: Any) -> bool:
    """Whether an attribute is a number, a short text, or a few of them."""
    if isinstance(value, (list, tuple)):
        return len(value) <= _SHORT and all(map(_is_short, value))
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _FEW_BYTES)


class _Step:
    """The trace of a node: from the inputs that are data to the outputs."""

    def __init__(self, traced: ClosedJaxpr, places: Sequence[int]):
        self._traced, self._places = traced, tuple(places)
        inner = traced.jaxpr
        # A node such as an Identity only passes inputs on, and takes no equation.
        passes = not inner.eqns and all(var in inner.invars for var in inner.outvars)
        self._passed = [self._places[inner.invars.index(var)] for var in inner.outvars] if passes else None

    def __call__(self, inputs: Sequence[GraphValue]) -> tuple[GraphValue, ...]:
        if self._passed is not None:
            return tuple(inputs[place] for place in self._passed)
        return tuple(_node.bind(*(inputs[place] for place in self._places), jaxpr=self._traced))


def _traced_step(
    inputs: Sequence[GraphValue], lower: Callable[[Sequence[GraphValue]], tuple[GraphValue, ...]]
) -> _Step | None:
    """The trace of a node; None if some output is no data, or if running it does more than to compute."""
    places = [place for place, value in enumerate(inputs) if isinstance(value, Tracer)]
    avals = [inputs[place].aval for place in places]
    specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
    plain: list[bool] = []

    def run(*data: jax.Array) -> tuple[GraphValue, ...]:
        given = list(inputs)
        for place, value in zip(places, data, strict=True):
            given[place] = value
        outputs = lower(given)
        plain.append(all(isinstance(value, Tracer) for value in outputs))
        return outputs if plain[-1] else ()

    traced = jax.make_jaxpr(run)(*specs)
    return _Step(traced, places) if plain[-1] and not traced.effects else None
