"""A graph as a pure function `fn(params, inputs, key) -> outputs`, in the file layout."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._types import Arrays, GraphValue, Params
from ..errors import LoweringError, StaticInputError, Unsupported, UnsupportedOpError
from ..model.graph import Graph, Value, prune
from ..ops.resolve import Operators
from ..ops.static import has_function_body, needed_statically
from ..ops.trips import most
from ..xla.draws import MANY
from ..xla.limits import Budget, counting_rows
from .index_ranges import makers_of
from .interpreter import IndexChecks, Run, is_whole
from .labels import keep_positions, string_labels
from .masked_value import check_no_picks
from .shared_steps import SharedSteps
from .size_numbers import SizeUses

_SURELY_SHORT = 50
"""Nodes up to which a graph without loops is never worth the second trace that tells its length."""

_TABLE_ELEMENTS = 4096
"""A larger integer initializer is a weight (an embedding or look-up table); a smaller one is structure."""


class GraphFunction:
    """A graph as a pure JAX function.

    Attributes:
        params: the weights, name -> array as in the file.
        constants: the other initializers, which are part of the function: scalars, small integers, and values
            that decide a shape.
        static_inputs: graph inputs whose values decide a shape; they must be concrete when the function is
            traced.
        branch_inputs: graph inputs of one whole number or boolean that decide which branch of an `If` runs.
            If one is concrete when the function is traced, only that branch is traced.
        labels: outputs that are string class labels, name -> the labels. The function returns positions in
            the labels.
        random: whether the graph has random operators, so a call needs a key.
    """

    def __init__(self, graph: Graph, operators: Operators | None = None, *, masked: bool = True):
        """Check `graph`, and sort its initializers into weights and structure.

        Args:
            graph: a loaded graph; it does not change.
            operators: the operators of `graph`, if they were looked up before.
            masked: whether entries that a mask of data picks (NonZero, Compress) are kept in place, if the
                nodes after them allow it. Otherwise the mask must be known when the function is traced.

        Raises:
            UnsupportedOpError: operators cannot be lowered; it lists all of them.
        """
        self.operators: Operators = operators or Operators()
        _check_supported(graph, self.operators)
        self.graph: Graph = keep_positions(_lift_constants(graph))
        labels = string_labels(self.graph)
        self.labels: dict[str, np.ndarray] = {
            value.name: labels[value.name] for value in graph.outputs if value.name in labels
        }
        needed = needed_statically(self.graph, self.operators, masked=masked)
        self._needed = frozenset(needed_statically(self.graph, self.operators, branches=True, masked=masked))
        self.static_inputs: tuple[str, ...] = tuple(
            value.name for value in graph.inputs if value.name in needed
        )
        self.branch_inputs: tuple[str, ...] = tuple(
            value.name
            for value in graph.inputs
            if value.name in self._needed - needed and _is_whole_number(value)
        )
        weights = {
            name
            for name, array in self.graph.initializers.items()
            if name not in needed and name not in graph.bound and _is_weight(array)
        }
        self.params: dict[str, np.ndarray] = {
            n: a for n, a in self.graph.initializers.items() if n in weights
        }
        self.constants: dict[str, np.ndarray] = {
            n: a for n, a in self.graph.initializers.items() if n not in weights
        }
        self.random: bool = self.operators.draw(self.graph)
        self._nodes = sum(1 for _ in self.graph.all_nodes())
        self._makers, self._masked = makers_of(self.graph), masked

    def __call__(
        self,
        params: Params,
        inputs: Mapping[str, Any],
        key: jax.Array | None = None,
        *,
        checks: IndexChecks | None = None,
        sizes: SizeUses | None = None,
        shared: SharedSteps | None = None,
    ) -> Arrays:
        """Outputs by name.

        A compiled function cannot raise. So if loops whose end depends on data exceed the limit on trips, the
        outputs are NaN, or the least whole number of their dtype.

        Args:
            params: arrays or tracers, by the names of `self.params`.
            inputs: every graph input by name, in the file layout; `static_inputs` as NumPy arrays.
            key: a JAX PRNG key; required if `self.random`.
            checks: a dict to fill with indices that depend on data, for Gather and similar operators. Indices
                known to be in range, and those in bodies of Loop, Scan and If, are left out.
            sizes: a dict to fill with known values that nodes compare, round, or mix with data.
            shared: an empty object for the values of a trace that is only read.

        Raises:
            LoweringError: a node cannot be lowered for these shapes; it names the node.
        """
        outputs, overrun = self.counted(params, inputs, key, checks=checks, sizes=sizes, shared=shared)
        return (
            outputs if overrun is None else {name: _spoilt(value, overrun) for name, value in outputs.items()}
        )

    def counted(
        self,
        params: Params,
        inputs: Mapping[str, Any],
        key: jax.Array | None = None,
        *,
        checks: IndexChecks | None = None,
        sizes: SizeUses | None = None,
        shared: SharedSteps | None = None,
    ) -> tuple[Arrays, Any]:
        """Outputs by name, and whether a loop ran for too many trips, which makes the outputs invalid.

        The second value is a boolean array, or None if no loop depends on data. For the arguments and errors
        see `__call__`.
        """
        env: dict[str, GraphValue] = {} if shared is None else shared
        env.update(self.constants)
        env.update((name, jnp.asarray(value)) for name, value in params.items())
        for value in self.graph.inputs:
            given = inputs[value.name]
            if value.name in self.static_inputs:
                env[value.name] = self._static_input(value, given)
            elif value.name in self.branch_inputs and not isinstance(given, Tracer):
                env[value.name] = np.asarray(given, value.dtype)
            else:
                env[value.name] = _traced(given)
        # Shapes and branches are decided above: static inputs stay NumPy arrays, and all others are traced.
        if self.random and key is None:
            raise LoweringError("this model has random operators: pass a JAX PRNG key")
        with counting_rows(self.rows(inputs)):
            budget = Budget(self._nodes)
            run = Run(
                self.graph,
                self._needed,
                self.operators,
                budget,
                key,
                makers=self._makers,
                checks=checks,
                sizes=sizes,
                masked=self._masked,
                shared=shared,
            )
            run.nodes(self.graph.nodes, env)
        if shared is not None:
            shared.make()
        used = run.trips.used
        outputs = {value.name: env[value.name] for value in self.graph.outputs}
        for name, value in outputs.items():
            check_no_picks(value, f"output {name!r}")
        return outputs, None if used is None else used > most()

    @property
    def is_long(self) -> bool:
        """Whether a trace of the graph may have so many steps that XLA should get it in pieces."""
        return (
            self._nodes > _SURELY_SHORT
            or self.operators.loop(self.graph)
            or (self.random and sum(self.operators.of(node).draws for node in self.graph.nodes) > MANY)
        )

    def with_params(self, params: Mapping[str, Any]) -> GraphFunction:
        """This function with other weights, which are not checked."""
        other = copy.copy(self)
        other.params = dict(params)
        other.graph = replace(self.graph, initializers={**self.graph.initializers, **params})
        return other

    def depends_on(self, names: Iterable[str]) -> set[str]:
        """Names of the values that depend on one of `names`, or on randomness."""
        reached = set(names)
        for node in self.graph.nodes:
            if not reached.isdisjoint(node.reads()) or self.operators.of(node).draws:
                reached.update(filter(None, node.outputs))
        return reached

    def constant_outputs(
        self, names: Sequence[str], bound: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Values of outputs that depend on no input."""
        graph = prune(self.graph, names)
        env: dict[str, GraphValue] = {**bound, **graph.initializers}
        needed = frozenset(value for node in graph.nodes for value in node.outputs)
        run = Run(graph, needed, self.operators, Budget(self._nodes), None)
        run.nodes(graph.nodes, env)
        return {name: np.asarray(env[name]) for name in names}

    def rows(self, inputs: Mapping[str, Any]) -> int:
        """The largest number of rows of an input: the product of its dimensions that are not fixed."""
        most = 1
        for value in self.graph.inputs:
            shape = np.shape(inputs[value.name]) if value.kind == "tensor" else ()
            free = (
                size
                for size, dim in zip(shape, value.shape or (), strict=False)
                if not isinstance(dim, int) and isinstance(size, int)
            )
            most = max(most, math.prod(free))
        return most

    def _static_input(self, value: Value, given: Any) -> Any:
        if isinstance(given, Tracer):
            raise StaticInputError(
                f"input {value.name!r} decides a shape, so its value must be known while tracing: pass a "
                "NumPy array that the traced function closes over"
            )
        return np.asarray(given, value.dtype)


def _check_supported(graph: Graph, operators: Operators) -> None:
    missing: dict[tuple[str, str, int], Unsupported] = {}
    for node in graph.all_nodes():
        definition = operators.of(node).definition
        if (definition is not None and definition.fn is not None) or (
            definition is None and has_function_body(node)
        ):
            continue
        reason = definition.reason if definition else "memojax has no such operator"
        key = (node.domain, node.op_type, node.opset)
        nodes = missing[key].nodes if key in missing else ()
        missing[key] = Unsupported(node.domain, node.op_type, node.opset, (*nodes, node.name), reason)
    if missing:
        raise UnsupportedOpError(list(missing.values()))


def _lift_constants(graph: Graph) -> Graph:
    """`graph` with the tensors of Constant nodes as initializers: exporters store weights in either place."""
    lifted = {
        node.outputs[0]: node.attributes["value"]
        for node in graph.nodes
        if node.op_type == "Constant" and "value" in node.attributes
    }
    nodes = tuple(
        node for node in graph.nodes if not (node.op_type == "Constant" and node.outputs[0] in lifted)
    )
    return replace(graph, nodes=nodes, initializers={**graph.initializers, **lifted})


def _is_weight(array: np.ndarray) -> bool:
    if array.dtype == object:
        return False
    if np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        return array.size > _TABLE_ELEMENTS
    return array.ndim > 0


def _spoilt(value: GraphValue, overrun: Any) -> GraphValue:
    """`value`, or an invalid one (NaN, the least whole number) if a loop ran for too many trips."""
    if isinstance(value, (tuple, list)):
        return tuple(_spoilt(item, overrun) for item in value)
    if value is None or value.dtype.kind in "bO":
        return value
    inexact = jnp.issubdtype(value.dtype, jnp.inexact)
    return jnp.where(
        overrun, jnp.asarray(jnp.nan if inexact else jnp.iinfo(value.dtype).min, value.dtype), value
    )


def _is_whole_number(value: Value) -> bool:
    """Whether an input is declared as one whole number or boolean."""
    return is_whole(value) and value.shape is not None and all(dim == 1 for dim in value.shape)


def _traced(value: Any) -> GraphValue:
    if isinstance(value, (tuple, list)):
        return tuple(map(_traced, value))
    if value is None or (isinstance(value, np.ndarray) and value.dtype == object):
        return value
    return jnp.asarray(value)
