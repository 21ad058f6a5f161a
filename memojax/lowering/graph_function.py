"""Graph -> pure function `fn(params, inputs, key) -> outputs`, in the file's own layout; traceable by any JAX transformation."""

from __future__ import annotations

import copy
import functools
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._types import Arrays, GraphValue, Params
from ..errors import LoweringError, MemojaxError, StaticInputError, Unsupported, UnsupportedOpError
from ..model.expand import bind, schema_body
from ..model.graph import Graph, Node, Value, prune
from ..ops import lookup
from ..ops._common import is_static
from ..ops.registry import OpDef
from ..ops.static import has_function_body, inputs_behind, needed_statically, origin_of
from ..xla.cpu_client import cpu_device
from ..xla.fork import check_not_forked
from ..xla.settings import own_settings

_ON_HOST = (
    "this operator runs on the host (its output shape depends on data, or it works on strings), and here it depends on an input, so the "
    "model cannot be one XLA executable: memojax.run and memojax.OneShot break the graph there"
)
_TABLE_ELEMENTS = 4096
"""An integer initializer larger than this is a weight (an embedding or look-up table), a smaller one is structure."""


class GraphFunction:
    """A graph as a pure JAX function.

    Attributes:
        params: the weights, name -> array, as the file has them; what decides a shape, scalars and small integers are not among
            them but in `constants`.
        constants: the other initializers, which are part of the function.
        static_inputs: graph inputs whose values decide a shape; they must be concrete when the function is traced.
        branch_inputs: graph inputs of one whole number or boolean that decide which branch of an `If` runs; where they are
            concrete when the function is traced, only that branch is.
        random: whether the graph has random operators, so that a key is needed.
    """

    def __init__(self, graph: Graph):
        """Check `graph` and sort its initializers into weights and structure.

        Raises:
            UnsupportedOpError: all operators that cannot be lowered, at once.
        """
        _check_supported(graph)
        self.graph = _lift_constants(graph)
        needed = needed_statically(self.graph)
        self._needed = frozenset(needed_statically(self.graph, branches=True))
        self.static_inputs = tuple(value.name for value in graph.inputs if value.name in needed)
        self.branch_inputs = tuple(
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
        self.constants = {n: a for n, a in self.graph.initializers.items() if n not in weights}
        self.random = any(map(_draws, self.graph.all_nodes()))

    def __call__(self, params: Params, inputs: Mapping[str, Any], key: jax.Array | None = None) -> Arrays:
        """Outputs by name.

        Args:
            params: as `self.params`, arrays or tracers.
            inputs: every graph input by name, in the file's own layout; `static_inputs` as NumPy arrays.
            key: a JAX PRNG key; needed where `self.random`.

        Raises:
            LoweringError: a node that cannot be lowered for these shapes, by name.
        """
        env: dict[str, GraphValue] = dict(self.constants)
        env.update((name, jnp.asarray(value)) for name, value in params.items())
        for value in self.graph.inputs:
            given = inputs[value.name]
            if value.name in self.static_inputs:
                env[value.name] = self._static_input(value, given)
            elif value.name in self.branch_inputs and not isinstance(given, Tracer):
                env[value.name] = np.asarray(given, value.dtype)
            else:
                env[value.name] = _traced(given)
        if self.random and key is None:
            raise LoweringError("this model has random operators: pass a JAX PRNG key")
        run = _Run(self.graph, self._needed, key)
        run.nodes(self.graph.nodes, env)
        return {value.name: env[value.name] for value in self.graph.outputs}

    def with_params(self, params: Mapping[str, Any]) -> GraphFunction:
        """The same function with other weights, which are not checked."""
        other = copy.copy(self)
        other.params = dict(params)
        other.graph = replace(self.graph, initializers={**self.graph.initializers, **params})
        return other

    def depends_on(self, names: Iterable[str]) -> set[str]:
        """Values (by name) that depend on one of `names`, or on randomness."""
        reached = set(names)
        for node in self.graph.nodes:
            if node.reads() & reached or _draws(node):
                reached.update(filter(None, node.outputs))
        return reached

    def constant_outputs(
        self, names: Sequence[str], bound: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Values of outputs that depend on no input."""
        graph = prune(self.graph, names)
        env: dict[str, GraphValue] = {**bound, **graph.initializers}
        run = _Run(graph, frozenset(value for node in graph.nodes for value in node.outputs), None)
        run.nodes(graph.nodes, env)
        return {name: np.asarray(env[name]) for name in names}

    def _static_input(self, value: Value, given: Any) -> Any:
        if isinstance(given, Tracer):
            raise StaticInputError(
                f"input {value.name!r} decides a shape, so its value must be known while tracing: close over it instead"
            )
        return np.asarray(given, value.dtype)


@dataclass(frozen=True)
class Body:
    """A subgraph as a callable: positional inputs to a tuple of outputs; names around it are visible inside."""

    graph: Graph
    _run: _Run
    _scope: MutableMapping[str, GraphValue]

    @property
    def n_inputs(self) -> int:
        return len(self.graph.inputs)

    @property
    def n_outputs(self) -> int:
        return len(self.graph.outputs)

    @property
    def captured(self) -> list[GraphValue]:
        """Values that it takes from around it."""
        return [self._scope[name] for name in self.graph.free_names()]

    def new_key(self) -> jax.Array | None:
        """A key to derive one for each call from; None where nothing inside is random."""
        return self._run.next_key() if any(map(_draws, self.graph.nodes)) else None

    def __call__(self, *inputs: GraphValue, key: jax.Array | None = None) -> tuple[GraphValue, ...]:
        env: MutableMapping[str, GraphValue] = ChainMap({}, self._scope)
        env.update(self.graph.initializers)
        env.update((value.name, given) for value, given in zip(self.graph.inputs, inputs, strict=True))
        run = self._run if key is None else replace(self._run, key=key, keys_used=[0])
        run.nodes(self.graph.nodes, env)
        return tuple(env[value.name] for value in self.graph.outputs)


@dataclass
class _Run:
    """One walk over a graph while tracing."""

    graph: Graph
    needed: frozenset[str]
    key: jax.Array | None
    keys_used: list[int] = field(default_factory=lambda: [0])

    def nodes(self, nodes: Sequence[Node], env: MutableMapping[str, GraphValue]) -> None:
        for node in nodes:
            inputs = [env[name] if name else None for name in node.inputs]
            outputs = self._node(node, inputs, env)
            env.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)

    def _node(
        self, node: Node, inputs: list[GraphValue], env: MutableMapping[str, GraphValue]
    ) -> tuple[GraphValue, ...]:
        definition = _definition(node)
        try:
            if definition is None:
                return self._expanded(node, inputs, env)
            if definition.host and not is_static([inputs[i] for i in definition.host_positions(node)]):
                raise StaticInputError(_ON_HOST)
            for position in definition.static_positions(node):
                if not is_static(inputs[position]):
                    raise StaticInputError(self._not_static(node, definition, position))
            with np.errstate(all="ignore"):
                outputs = tuple(map(_tidy, self._call(definition, node, inputs, env)))
                folds = (
                    is_static(inputs)
                    and not is_static(outputs)
                    and self.needed.intersection(node.outputs)
                    and not _draws(node)
                )
                if folds and is_static([env[name] for name in node.reads()]):
                    outputs = self._at_once(definition, node, inputs, env)
            return outputs
        except MemojaxError as cause:
            advice = self._advice(node, inputs)
            if isinstance(cause, LoweringError) and (advice or not getattr(cause, "located", False)):
                place = (
                    ""
                    if getattr(cause, "located", False)
                    else f"node {node.name!r} ({node.op_type}, opset {node.opset}): "
                )
                located = type(cause)(f"{place}{cause}{advice}")
                located.located = True  # pyright: ignore[reportAttributeAccessIssue]
                raise located from cause
            raise
        except (
            TypeError,
            ValueError,
            IndexError,
            KeyError,
            ZeroDivisionError,
            NotImplementedError,
            OverflowError,
            AssertionError,
        ) as cause:
            given = ", ".join(
                f"{name or '-'}: {_describe(value)}" for name, value in zip(node.inputs, inputs, strict=True)
            )
            located = LoweringError(
                f"node {node.name!r} ({node.op_type}, opset {node.opset}; inputs {given}): {cause}"
                f"{self._advice(node, inputs)}"
            )
            located.located = True  # pyright: ignore[reportAttributeAccessIssue]
            raise located from cause

    def _call(
        self,
        definition: OpDef,
        node: Node,
        inputs: Sequence[GraphValue],
        env: MutableMapping[str, GraphValue],
    ) -> tuple[GraphValue, ...]:
        attributes = {
            name: Body(value, self, env) if isinstance(value, Graph) else value
            for name, value in node.attributes.items()
        }
        context = _Context(self, node, definition, env) if definition.injected else {}
        return definition.call(inputs, attributes, context)

    def _at_once(
        self,
        definition: OpDef,
        node: Node,
        inputs: Sequence[GraphValue],
        env: MutableMapping[str, GraphValue],
    ) -> tuple[GraphValue, ...]:
        """Evaluate a node whose value decides a shape but whose operator is not written for NumPy."""
        check_not_forked()
        with jax.ensure_compile_time_eval(), own_settings(), jax.default_device(cpu_device()):
            return tuple(jax.tree.map(np.asarray, self._call(definition, node, inputs, env)))

    def _expanded(
        self, node: Node, inputs: list[GraphValue], env: MutableMapping[str, GraphValue]
    ) -> tuple[GraphValue, ...]:
        body = schema_body(node, inputs)
        if body is None:
            raise LoweringError("no definition, and the spec gives no function body for these types")
        inner: MutableMapping[str, GraphValue] = ChainMap({}, env)
        self.nodes(bind(body, node), inner)
        return tuple(inner[name] if name else None for name in node.outputs)

    def _not_static(self, node: Node, definition: OpDef, position: int) -> str:
        return (
            f"{definition.input_name(position)!r} decides a shape, so it must be known while tracing, but it comes from "
            f"{origin_of(self.graph, node.inputs[position])}, which depends on data"
        )

    def _advice(self, node: Node, inputs: Sequence[GraphValue]) -> str:
        """For an `If` of which both branches were traced: which inputs would decide it, if they were bound."""
        if node.op_type != "If" or node.domain or is_static(inputs[0]):
            return ""
        whole = {value.name for value in self.graph.inputs if _is_whole(value)}
        behind = [name for name in inputs_behind(self.graph, node.inputs[0]) if name in whole]
        if not behind:
            return ""
        example = ", ".join(f"{name!r}: ..." for name in behind)
        return (
            f" (both branches of the If {node.name!r} must fit, since its condition depends on input "
            f"{', '.join(map(repr, behind))}: with constants={{{example}}} only one branch is taken)"
        )

    def recompute(
        self, env: MutableMapping[str, GraphValue], given: Mapping[str, GraphValue], wanted: str
    ) -> GraphValue:
        """The value of `wanted` if the names in `given` had other values; what they do not reach is taken from `env`."""
        reached = set(given)
        inner: MutableMapping[str, GraphValue] = ChainMap(dict(given), env)
        for node in self.graph.nodes:
            if wanted in inner.maps[0]:  # pyright: ignore[reportAttributeAccessIssue]
                break
            if node.reads() & reached:
                reached.update(filter(None, node.outputs))
                self.nodes([node], inner)
        return inner[wanted]

    def next_key(self) -> jax.Array:
        if self.key is None:
            raise LoweringError("a random operator needs a JAX PRNG key")
        self.keys_used[0] += 1
        return jax.random.fold_in(self.key, self.keys_used[0])


class _Context(Mapping[str, Any]):
    """What an operator may ask for beside its inputs and attributes; a key is made only when asked for."""

    def __init__(self, run: _Run, node: Node, definition: OpDef, env: MutableMapping[str, GraphValue]):
        self._makers: dict[str, Callable[[], Any]] = {
            "n_outputs": lambda: len(node.outputs),
            "output_names": lambda: node.outputs,
            "opset": lambda: node.opset,
            "key": lambda: run.next_key() if definition.draws(node) else None,
            "recompute": lambda: functools.partial(run.recompute, env),
        }

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _definition(node: Node) -> OpDef | None:
    return lookup(node.domain, node.op_type, node.opset)


def _draws(node: Node) -> bool:
    """Whether a node, or one in its subgraphs, draws random numbers."""
    definition = _definition(node)
    return (definition is not None and definition.draws(node)) or any(
        _draws(inner) for body in node.bodies for inner in body.nodes
    )


def _check_supported(graph: Graph) -> None:
    missing: dict[tuple[str, str, int], Unsupported] = {}
    for node in graph.all_nodes():
        definition = _definition(node)
        if (definition is not None and definition.fn is not None) or (
            definition is None and has_function_body(node)
        ):
            continue
        reason = definition.reason if definition else "no such operator is known here"
        key = (node.domain, node.op_type, node.opset)
        nodes = missing[key].nodes if key in missing else ()
        missing[key] = Unsupported(node.domain, node.op_type, node.opset, (*nodes, node.name), reason)
    if missing:
        raise UnsupportedOpError(list(missing.values()))


def _lift_constants(graph: Graph) -> Graph:
    """Tensors of Constant nodes as initializers, so that a weight is a weight whichever way a file spells it."""
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


def _is_whole(value: Value) -> bool:
    return value.kind == "tensor" and value.dtype is not None and value.dtype.kind in "iub"


def _is_whole_number(value: Value) -> bool:
    """Whether an input is declared as one whole number or boolean."""
    return _is_whole(value) and value.shape is not None and all(dim == 1 for dim in value.shape)


def _traced(value: Any) -> GraphValue:
    if isinstance(value, (tuple, list)):
        return tuple(map(_traced, value))
    if value is None or (isinstance(value, np.ndarray) and value.dtype == object):
        return value
    return jnp.asarray(value)


def _tidy(value: GraphValue) -> GraphValue:
    return np.asarray(value) if isinstance(value, (np.generic, bool, int, float)) else value


def _describe(value: GraphValue) -> str:
    if isinstance(value, (tuple, list)):
        return f"sequence of {len(value)}"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else str(value)
