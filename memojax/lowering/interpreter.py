"""Walk over a graph while it is traced: operators lower their nodes, within the limits of `xla/limits.py`."""

from __future__ import annotations

import functools
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax import lax

from .._types import GraphValue
from ..errors import LoweringError, MemojaxError, StaticInputError
from ..model.expand import bind, schema_body
from ..model.graph import Graph, Node, Value
from ..ops._common import is_static
from ..ops.resolve import Call, Operators
from ..ops.static import inputs_behind, origin_of
from ..ops.trips import Trips
from ..ops.trips import check as check_trips
from ..xla.cpu_client import cpu_device
from ..xla.fork import check_not_forked
from ..xla.limits import ELEMENTS, Budget, for_rows
from ..xla.settings import own_settings
from . import masked
from .index_ranges import Ranges, outside
from .masked_value import Masking, check_no_picks
from .shared_steps import SharedSteps
from .size_numbers import SizeUses, note_use

ON_HOST = (
    "this operator runs on the host (its output shape depends on data, or it works on strings). Here it "
    "depends on an input, so the model cannot be one XLA executable: use memojax.run or memojax.OneShot, "
    "which break the graph there"
)
_TRACED_COST = 8
"""Steps of the budget for a traced node; a node whose value is computed at once costs one."""

_BRANCH_COST = 512
"""Steps of the budget for a traced node with subgraphs, in addition to the steps of its subgraphs."""

_MANY_PARTS = 1 << 8
"""Parts of a Concat from which it is kept apart: XLA flattens nested Concats, and repeats repeated parts."""

_BYTES_SHIFT, _PRODUCTS_SHIFT = 14, 12
"""One more step of the budget per 2**14 computed bytes, and per 2**12 multiplications of a matrix product."""

_PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"})

_SMALL = 1 << 22
"""If the sizes of an operator's inputs multiply to no more, its output is small and needs no check."""

_EMBEDDED = 1 << 12
"""Constants of up to this many bytes do not count towards the limit of embedded constants."""

Env = MutableMapping[str, GraphValue]

IndexChecks = dict[str, "tuple[GraphValue, GraphValue]"]
"""First output of a node -> (its indices, mask of the indices that are out of range)."""


@dataclass(frozen=True)
class Body:
    """A subgraph as a callable, from positional inputs to a tuple of outputs; it sees the names around it."""

    graph: Graph
    _run: Run
    _scope: Env

    @property
    def n_inputs(self) -> int:
        return len(self.graph.inputs)

    @property
    def n_outputs(self) -> int:
        return len(self.graph.outputs)

    @property
    def loops(self) -> bool:
        """Whether the subgraph has a `Loop`."""
        return self._run.operators.loop(self.graph)

    @property
    def captured(self) -> list[GraphValue]:
        """Values of the graph around it that the subgraph reads."""
        return [self._scope[name] for name in self.graph.free_names()]

    def new_key(self) -> jax.Array | None:
        """A key from which the caller derives one for each call; None if the subgraph is not random."""
        return self._run.next_key() if self._run.operators.draw(self.graph) else None

    def __call__(self, *inputs: GraphValue, key: jax.Array | None = None) -> tuple[GraphValue, ...]:
        env: Env = ChainMap({}, self._scope)
        env.update(self.graph.initializers)
        env.update((value.name, given) for value, given in zip(self.graph.inputs, inputs, strict=True))
        # A loop or a branch is a trace of its own, which tracers of index checks must not leave.
        run = replace(self._run, checks=None)
        if key is not None:
            run = replace(run, key=key, keys_used=[0])
        run.nodes(self.graph.nodes, env)
        outputs = tuple(env[value.name] for value in self.graph.outputs)
        for value in outputs:
            check_no_picks(value, f"an output of the subgraph {self.graph.name!r}")
        return outputs


@dataclass
class Run:
    """One walk over a graph.

    Attributes:
        graph: the outermost graph.
        needed: names of values that decide a shape.
        operators: the operator of each node.
        budget: limits of this walk.
        trips: the trips so far of loops whose end depends on data.
        key: a JAX PRNG key, if there are random operators.
        keys_used: the number of keys derived from `key`, in a list that copies of this object share.
        makers: name -> node that computes it, for ranges of indices.
        checks: a dict to fill with indices that depend on data, or None.
        sizes: a dict to fill with known values that may decide by the number of rows, or None.
        masked: whether entries that a mask of data picks are kept in place.
        shared: the values of a trace that is only read, in which nodes alike share one lowering; or None.
    """

    graph: Graph
    needed: frozenset[str]
    operators: Operators
    budget: Budget
    key: jax.Array | None
    trips: Trips = field(default_factory=Trips)
    keys_used: list[int] = field(default_factory=lambda: [0])
    makers: Mapping[str, Node] = field(default_factory=dict)
    checks: IndexChecks | None = None
    sizes: SizeUses | None = None
    masked: bool = False
    shared: SharedSteps | None = None

    def nodes(self, nodes: Sequence[Node], env: Env) -> None:
        """Lower `nodes` in order, and put their outputs into `env`."""
        call_of = self.operators.of
        with np.errstate(all="ignore"):
            for node in nodes:
                self._into(env, node, call_of(node))

    def _into(self, env: Env, node: Node, call: Call) -> None:
        if self.shared is not None and env is self.shared:
            if self._waits(self.shared, node, call):
                return
            self.shared.make()
        inputs = [env[name] if name else None for name in node.inputs]
        outputs = self._node(node, call, inputs, env)
        if len(outputs) < len(node.outputs) and any(node.outputs[len(outputs) :]):
            raise LoweringError(
                f"node {node.name!r} ({node.op_type}, opset {node.opset}) has {len(outputs)} outputs, and "
                f"{len(node.outputs)} are named: {', '.join(map(repr, node.outputs))}"
            )
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                env[name] = value

    def _waits(self, shared: SharedSteps, node: Node, call: Call) -> bool:
        """Whether a node waits among those that share one lowering."""
        known = shared.takes(
            node, call, lambda given: tuple(map(_tidy, self._call(node, call, given, shared)))
        )
        if known is None:
            return False
        if self.sizes is not None:
            note_use(self.sizes, node, known)
        self.budget.step(_TRACED_COST)
        self.budget.trace()
        return True

    def _node(self, node: Node, call: Call, inputs: list[GraphValue], env: Env) -> tuple[GraphValue, ...]:
        try:
            if self.masked and masked.applies(
                masking := Masking(self.makers, env, self.operators), node, inputs
            ):
                self.budget.step(_TRACED_COST)
                return masked.lowered(masking, node, inputs, lambda given: self._call(node, call, given, env))
            if call.definition is None:
                return self._expanded(node, inputs, env)
            static = is_static(inputs)
            if self.sizes is not None:
                note_use(self.sizes, node, inputs)
            self.budget.step(1 if static else _BRANCH_COST if node.bodies else _TRACED_COST)
            if static:
                self._check_small(node, call, inputs, env)
            else:
                self._check_static(node, call, inputs)
            around = self.trips.used
            outputs = tuple(map(_tidy, self._call(node, call, inputs, env)))
            if is_static(outputs):
                self.budget.step(sum(map(size_of, outputs)) >> _BYTES_SHIFT)
                self.budget.fold(
                    sum(size_of(value) for value in outputs if not any(value is given for given in inputs))
                )
                return outputs
            _check_shapes(outputs)
            self.budget.trace()
            # The operator gave a JAX array for known inputs. If a shape needs its value, it is computed now.
            # Random values stay traced, since each call draws anew.
            folds = static and not call.draws and not self.needed.isdisjoint(node.outputs)
            if folds and is_static([env[name] for name in node.reads()]):
                self.trips.used = around
                return self._at_once(node, call, inputs, env)
            # A known input of a traced node becomes a constant of the executable.
            for value in inputs:
                if isinstance(value, np.ndarray) and value.nbytes > _EMBEDDED:
                    self.budget.embed(value)
            return self._apart(inputs, outputs) if node.op_type == "Concat" else outputs
        except MemojaxError as cause:
            raise self._located(node, inputs, cause) from cause
        except Exception as cause:
            given = ", ".join(
                f"{name or '-'}: {_describe(value)}" for name, value in zip(node.inputs, inputs, strict=True)
            )
            what = (
                str(cause)
                if isinstance(cause, (ValueError, NotImplementedError))
                else f"{type(cause).__name__}: {cause}"
            )
            located = LoweringError(
                f"node {node.name!r} ({node.op_type}, opset {node.opset}; inputs {given}): {what}"
                f"{self._advice(node, inputs)}"
            )
            located.located = True
            raise located from cause

    def _located(self, node: Node, inputs: Sequence[GraphValue], cause: MemojaxError) -> MemojaxError:
        """`cause`, with the name of the node, unless it names one already."""
        advice = self._advice(node, inputs)
        if not isinstance(cause, LoweringError) or (cause.located and not advice):
            return cause
        place = "" if cause.located else f"node {node.name!r} ({node.op_type}, opset {node.opset}): "
        located = type(cause)(f"{place}{cause}{advice}")
        located.located = True
        return located

    def _call(self, node: Node, call: Call, inputs: Sequence[GraphValue], env: Env) -> tuple[GraphValue, ...]:
        if call.definition is None:
            return self._expanded(node, list(inputs), env)
        attributes = call.attributes
        if node.bodies:
            attributes = {
                name: Body(value, self, env) if isinstance(value, Graph) else value
                for name, value in attributes.items()
            }
        context = _Context(self, node, call, env) if call.definition.injected else {}
        return call.definition.call(inputs, attributes, context)

    def _check_static(self, node: Node, call: Call, inputs: Sequence[GraphValue]) -> None:
        """Check that inputs which must be known while tracing are known.

        Raises:
            StaticInputError: such an input depends on data.
        """
        if call.host and not is_static([inputs[i] for i in call.host]):
            raise StaticInputError(ON_HOST)
        for position in call.static:
            if not is_static(inputs[position]):
                raise StaticInputError(self._not_static(node, call, position))

    def _check_small(self, node: Node, call: Call, inputs: Sequence[GraphValue], env: Env) -> None:
        """Check, before a node over known values is computed, that the budget has room for its outputs.

        Raises:
            LimitError: the outputs are too large.
        """
        # No output has more elements than the product of the inputs' sizes, unless an input or attribute
        # holds its shape. Such operators check the shape themselves, see `checked_shape`.
        bound = math.prod(value.size for value in inputs if isinstance(value, np.ndarray) and value.size > 1)
        if bound <= _SMALL or call.host or node.bodies:
            return
        places = [
            place
            for place, value in enumerate(inputs)
            if place not in call.static and isinstance(value, np.ndarray) and value.dtype != object
        ]

        def shapes(*abstract: Any) -> Any:
            given = list(inputs)
            for place, value in zip(places, abstract, strict=True):
                given[place] = value
            return self._call(node, call, given, env)

        with own_settings():
            made = jax.eval_shape(
                shapes, *(jax.ShapeDtypeStruct(inputs[i].shape, inputs[i].dtype) for i in places)
            )
        for value in jax.tree.leaves(made):
            ELEMENTS.check(math.prod(np.shape(value)), "folding constants", for_rows(ELEMENTS))
        self.budget.check_room(sum(size_of(value) for value in jax.tree.leaves(made)))
        if node.op_type in _PRODUCTS:
            self.budget.step((math.prod(np.shape(made[0])) * max(inputs[0].shape)) >> _PRODUCTS_SHIFT)

    def _apart(self, inputs: Sequence[GraphValue], outputs: tuple[GraphValue, ...]) -> tuple[GraphValue, ...]:
        """The output of a Concat, behind a barrier if it has very many parts.

        XLA flattens a Concat of Concats. Without a barrier, few nodes that join a value with itself would
        make a Concat of millions of parts.
        """
        parts = self.budget.parts
        count = sum(parts[id(value)][1] if id(value) in parts else 1 for value in inputs)
        if count > _MANY_PARTS:
            outputs, count = (lax.optimization_barrier(outputs[0]),), 1
        parts[id(outputs[0])] = outputs[0], count
        return outputs

    def _at_once(
        self, node: Node, call: Call, inputs: Sequence[GraphValue], env: Env
    ) -> tuple[GraphValue, ...]:
        """Evaluate a node whose value decides a shape, by JAX, since its operator does not use NumPy."""
        check_not_forked()
        with (
            self.trips.apart(),
            jax.ensure_compile_time_eval(),
            own_settings(),
            jax.default_device(cpu_device()),
        ):
            outputs = tuple(jax.tree.map(np.asarray, self._call(node, call, inputs, env)))
            if self.trips.used is not None:
                check_trips(int(self.trips.used))
        self.budget.fold(sum(map(size_of, outputs)))
        return outputs

    def _expanded(self, node: Node, inputs: list[GraphValue], env: Env) -> tuple[GraphValue, ...]:
        """The outputs of a node that ONNX defines by a function body: the body's nodes take its place."""
        body = schema_body(node, inputs)
        if body is None:
            raise LoweringError("memojax has no such operator, and ONNX has no function body for these types")
        inner: Env = ChainMap({}, env)
        with np.errstate(all="ignore"):
            for written in bind(body, node, f"{node.name}/"):
                self._into(inner, written, self.operators.look_up(written))
        return tuple(inner[name] if name else None for name in node.outputs)

    def _not_static(self, node: Node, call: Call, position: int) -> str:
        assert call.definition is not None
        return (
            f"{call.definition.input_name(position)!r} decides a shape, so it must be known while tracing, "
            f"but it comes from {origin_of(self.graph, node.inputs[position])}, which depends on data"
        )

    def _advice(self, node: Node, inputs: Sequence[GraphValue]) -> str:
        """For an `If` whose two branches were traced: the inputs that would decide it, if they were bound."""
        if node.op_type != "If" or node.domain or is_static(inputs[0]):
            return ""
        whole = {value.name for value in self.graph.inputs if is_whole(value)}
        behind = [name for name in inputs_behind(self.graph, node.inputs[0]) if name in whole]
        if not behind:
            return ""
        example = ", ".join(f"{name!r}: ..." for name in behind)
        return (
            f" (both branches of the If {node.name!r} must fit, since its condition depends on input "
            f"{', '.join(map(repr, behind))}: with constants={{{example}}} only one branch is lowered)"
        )

    def in_range(
        self,
        node: Node,
        env: Env,
        position: int,
        low: Any,
        high: Any,
        *,
        checked: bool = True,
    ) -> bool:
        """Whether the values of an input of `node` are known to lie between `low` and `high`.

        If they are not, and `checked` is true, they are added to `checks`.
        """
        name = node.inputs[position]
        found = Ranges(self.makers, env).of(name)
        known = found is not None and found[0] >= np.max(low) and found[1] <= np.min(high)
        if checked and not known and self.checks is not None and not is_static(env[name]):
            self.checks[node.outputs[0]] = env[name], outside(env[name], low, high)
        return known

    def recompute(self, env: Env, given: Mapping[str, GraphValue], wanted: str) -> GraphValue:
        """The value of `wanted` if the names in `given` had other values.

        Only nodes that depend on these names run again; other values come from `env`.
        """
        reached = set(given)
        inner: Env = ChainMap(dict(given), env)
        # The new values go to the first map of the ChainMap, so `env` itself does not change.
        for node in self.graph.nodes:
            if wanted in inner.maps[0]:  # pyright: ignore[reportAttributeAccessIssue]
                break
            if node.reads() & reached:
                reached.update(filter(None, node.outputs))
                self.nodes([node], inner)
        return inner[wanted]

    def next_key(self) -> jax.Array:
        """A new key, different from all earlier ones.

        Raises:
            LoweringError: the run has no key.
        """
        if self.key is None:
            raise LoweringError("a random operator needs a JAX PRNG key")
        self.budget.draw()
        self.keys_used[0] += 1
        return jax.random.fold_in(self.key, self.keys_used[0])


class _Context(Mapping[str, Any]):
    """Further arguments for operators that ask for them; each is made only when it is read."""

    def __init__(self, run: Run, node: Node, call: Call, env: Env):
        self._makers: dict[str, Callable[[], Any]] = {
            "n_outputs": lambda: len(node.outputs),
            "output_names": lambda: node.outputs,
            "opset": lambda: node.opset,
            "key": lambda: run.next_key() if call.draws else None,
            "recompute": lambda: functools.partial(run.recompute, env),
            "trips": lambda: run.trips,
            "in_range": lambda: functools.partial(run.in_range, node, env),
        }

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _check_shapes(outputs: Sequence[GraphValue]) -> None:
    """Check that no output is larger than the limit on elements.

    Raises:
        LimitError: an output is larger.
    """
    for value in outputs:
        shape = value.shape if isinstance(value, jax.Array) else ()
        if all(type(dim) is int for dim in shape) and (size := math.prod(shape)) > _SMALL:
            ELEMENTS.check(size, f"an output of shape {list(shape)}", for_rows(ELEMENTS))


def is_whole(value: Value) -> bool:
    """Whether an input is declared as a tensor of whole numbers or booleans."""
    return value.kind == "tensor" and value.dtype is not None and value.dtype.kind in "iub"


def size_of(value: Any) -> int:
    """The approximate size of a known value in bytes; strings count by their characters."""
    if isinstance(value, (tuple, list)):
        return sum(map(size_of, value))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return 64 * value.size + 2 * sum(len(item) for item in value.ravel() if isinstance(item, str))
    return int(value.dtype.itemsize) * math.prod(value.shape) if hasattr(value, "shape") else 0


def _tidy(value: GraphValue) -> GraphValue:
    return np.asarray(value) if isinstance(value, (np.generic, bool, int, float)) else value


def _describe(value: GraphValue) -> str:
    if isinstance(value, (tuple, list)):
        return f"sequence of {len(value)}"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else str(value)
