"""Take computation on weights alone out of a traced function: it runs once per load, not once per call.

`Hoister.split` divides a jaxpr in two. `Node`s describe values made of weights, such as a transposed kernel;
they are evaluated once and shared by all batch sizes. The `Residual` holds the steps that remain for each
call, and takes the nodes' values as its first arguments.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..xla.cpu_client import cpu_device
from ..xla.equations import bound
from ..xla.limits import HOISTED
from ..xla.options import compiled
from ..xla.settings import own_settings
from .numpy_eval import NotExactError, fold

Atom: TypeAlias = "int | _Literal"
Rewrite: TypeAlias = "Callable[[Step, list[Any]], list[Any]]"

_PADDED = 2.5
"""How many times as large as its inputs a hoisted pad may be."""

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that holds it; a plan needs no custom derivatives."""


@dataclass(frozen=True, eq=False)
class _Literal:
    value: Any


def literal(value: Any) -> Atom:
    """A value that is part of the function."""
    return _Literal(value)


@dataclass(frozen=True, eq=False)
class Step:
    """One equation: `outputs = primitive(*inputs, **params)`, with values named by numbers."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    avals: tuple[Any, ...]

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for `inputs`, evaluated, or traced where an input is a tracer."""
        return bound(self.primitive, self.params, inputs)

    def on_host(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """The outputs for `inputs`, evaluated by NumPy.

        Raises:
            NotExactError: NumPy is not known to give XLA's numbers for this primitive.
        """
        return fold(self.primitive.name, self.params, list(inputs), self.avals)


@dataclass(frozen=True, eq=False)
class Node:
    """A value made of weights alone.

    It is a weight itself (`step` is None and `index` its position), or output `index` of a step over such
    values. Steps over literals become nodes if weights are combined with them. Equal computations are one
    node, so all batch sizes share its value.
    """

    index: int
    step: Step | None = None
    inputs: tuple[Node | _Literal, ...] = ()


@final
class StandIn:
    """The stand-in for a JAX primitive in a step of ours."""

    multiple_results = True

    def __init__(self, name: str):
        self.name = name

    def get_bind_params(self, params: dict[str, Any]) -> dict[str, Any]:
        return params


@dataclass(frozen=True)
class Residual:
    """The work that remains for each call: `residual(values of nodes, inputs)`.

    Attributes:
        nodes: the values made of weights that the steps read.
        steps: the equations that remain, in order.
        inputs: numbers of the function's arguments other than weights.
        outputs: numbers of the results, or literals.
        leading: numbers under which the steps read the values of `nodes`.
        avals: number -> shape and dtype, for `leading` and `inputs`.
    """

    nodes: tuple[Node, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    leading: tuple[int, ...]
    avals: Mapping[int, Any] = field(default_factory=dict)

    def origin(self) -> str:
        """A description of `nodes` as computations of the weights, the same in every process."""
        # An executable from disk or from the compile helper fits only if its arguments are these values.
        places: dict[Node, int] = {}
        words = []
        for node in _behind(self.nodes):
            places[node] = len(places)
            if node.step is None:
                words.append(f"weight {node.index}")
            else:
                given = (
                    str(places[source]) if isinstance(source, Node) else f"{np.shape(source.value)}"
                    for source in node.inputs
                )
                words.append(f"{node.step.primitive.name}.{node.index}({', '.join(given)})")
        return "; ".join((*words, ", ".join(str(places[node]) for node in self.nodes)))

    def __call__(
        self, leading: Sequence[Any], inputs: Sequence[Any], rewrite: Rewrite | None = None
    ) -> list[Any]:
        """Compute the outputs; `rewrite(step, inputs)` replaces `step.bind(inputs)`.

        An output that is an input is copied, so input buffers may be reused.
        """
        # Values by number: arguments first, then the outputs of each step.
        env = dict(zip((*self.leading, *self.inputs), (*leading, *inputs), strict=True))
        passed = set(env)
        for step in self.steps:
            given = [_read(env, atom) for atom in step.inputs]
            env.update(zip(step.outputs, rewrite(step, given) if rewrite else step.bind(given), strict=True))
        # Without a copy, such an output would be the input buffer itself, which the next call overwrites.
        return [
            lax.copy_p.bind(env[atom]) if isinstance(atom, int) and atom in passed else _read(env, atom)
            for atom in self.outputs
        ]


class Hoister:
    """Splits traced functions of one set of weights, and holds the nodes that batch sizes share."""

    leaves: tuple[Any, ...]

    def __init__(self, leaves: Sequence[Any], limited: bool = False):
        """A hoister without nodes.

        Args:
            leaves: the weights, in the order of the traced function's first arguments.
            limited: whether values made of weights are limited to `memojax.xla.limits.HOISTED`; true for a
                function that comes from a file.
        """
        self.leaves = tuple(leaves)
        self._allowed = HOISTED.allowed + 8 * sum(map(_bytes, leaves)) if limited else None
        self._made_bytes = 0
        self._weights = tuple(Node(index) for index in range(len(leaves)))
        self._nodes: dict[Any, tuple[Node, ...]] = {}
        # Weak on both sides: values live as long as a plan holds them, since weights may be gigabytes.
        self._values: weakref.WeakKeyDictionary[Node, weakref.ref[np.ndarray]] = weakref.WeakKeyDictionary()

    def split(self, closed: Any) -> Residual:
        """Split a closed jaxpr whose first arguments are the weights; the caller holds the tracing lock.

        A step with more numbers in its outputs than in its inputs, such as a bias broadcast to the batch,
        stays in the residual.
        """
        jaxpr = closed.jaxpr
        flat = _Flat()
        # The jaxpr is flattened first, since a step inside a nested jit may depend on weights alone as well.
        arguments = [flat.number(var.aval) for var in jaxpr.invars]
        outputs = flat.inline(jaxpr, closed.consts, arguments)
        # Known values are made of weights. Free values depend on nothing (iota, a broadcast literal): a node
        # absorbs them if it needs them.
        known: dict[int, Node] = dict(zip(arguments, self._weights, strict=False))
        free: dict[int, Step] = {}
        kept = []
        for step in flat.steps:
            # Literals have no number: they never keep a step from being hoisted.
            numbers = [atom for atom in step.inputs if isinstance(atom, int)]
            taken = sum(flat.sizes[number] for number in numbers if number in known)
            given = sum(flat.sizes[number] for number in step.outputs)
            made = None
            if all(number in known or number in free for number in numbers) and not any(
                map(_opaque, step.avals)
            ):
                # Hoisting pays if the result is not larger than its inputs: a larger one costs more to read
                # than to compute. A pad may grow a little, and what is made of it is then hoisted, too.
                if 0 < given <= taken * (_PADDED if step.primitive.name == "pad" else 1):
                    made = self._made(step, known, free)
                # A step that reads no weight becomes a node only if a hoisted step needs it.
                elif not taken:
                    free.update(dict.fromkeys(step.outputs, step))
            if made is None:
                kept.append(step)
            else:
                known.update(zip(step.outputs, made, strict=True))
        # A node that only other nodes read is not an argument, because their values contain its value.
        steps, needed = alive(kept, outputs)
        leading = tuple(number for number in known if number in needed)
        return Residual(
            tuple(known[n] for n in leading),
            steps,
            tuple(arguments[len(self.leaves) :]),
            tuple(outputs),
            leading,
            {number: flat.avals[number] for number in (*leading, *arguments[len(self.leaves) :])},
        )

    def values(self, nodes: Iterable[Node]) -> list[np.ndarray]:
        """Values of `nodes` on the host; the hoister remembers each for as long as a caller holds it."""
        nodes = list(nodes)
        held = {node: ref() for node in nodes if (ref := self._values.get(node)) is not None}
        missing = [node for node in nodes if held.get(node) is None]
        for node, value in zip(missing, evaluate(missing, self.leaves), strict=True):
            held[node] = value
            # Weights themselves are held by `leaves`, so only computed values are remembered.
            if node.step is not None:
                self._values[node] = weakref.ref(value)
        return [held[node] for node in nodes]  # pyright: ignore[reportReturnType]

    def replace(self, leaves: Sequence[Any]) -> None:
        """Switch to other weights of the same shapes and dtypes."""
        # Nodes stay: they describe computations, which are the same for other weights.
        self.leaves = tuple(leaves)
        self._values.clear()

    def _made(self, step: Step, known: dict[int, Node], free: Mapping[int, Step]) -> tuple[Node, ...] | None:
        """The nodes of a step over weights and literals; None if the step has no key."""
        made: dict[int, Node] = {}
        for needed in (*_free_before(step, known, free), step):
            nodes = self._nodes_of(needed, known, made)
            if nodes is None:
                return None
            made.update(zip(needed.outputs, nodes, strict=True))
        return tuple(made[number] for number in step.outputs)

    def _nodes_of(
        self, step: Step, known: Mapping[int, Node], made: Mapping[int, Node]
    ) -> tuple[Node, ...] | None:
        inputs = tuple(
            (known.get(atom) or made[atom]) if isinstance(atom, int) else atom for atom in step.inputs
        )
        try:
            return self.made_by(step, inputs)
        except TypeError:
            return None

    def made_by(self, step: Step, inputs: Sequence[Node | _Literal]) -> tuple[Node, ...]:
        """The nodes of `step` over `inputs`; an equal computation has the same nodes.

        Raises:
            TypeError: the parameters of the step have no key.
        """
        # Each batch size traces the same computation again. The key finds its first node, so sizes share the
        # value.
        key = (
            step.primitive,
            _frozen(step.params),
            tuple(n if isinstance(n, Node) else _frozen(n.value) for n in inputs),
        )
        if key not in self._nodes:
            if step.primitive.name not in _VIEWS:
                self._made_bytes += sum(map(_bytes, step.avals))
            if self._allowed is not None and self._made_bytes > self._allowed:
                raise HOISTED.exceeded(self._made_bytes, "computation on weights alone", self._allowed)
            self._nodes[key] = tuple(Node(index, step, tuple(inputs)) for index in range(len(step.outputs)))
        return self._nodes[key]


def evaluate(nodes: Sequence[Node], leaves: Sequence[Any]) -> list[np.ndarray]:
    """Values of `nodes`, by NumPy if it can evaluate all steps, else by one executable."""
    # Most files only transpose and reshape weights; NumPy does that without compiling an executable.
    try:
        run = values_of(nodes, leaves, lambda step, given: step.on_host(given))
        # A view of a weight becomes a contiguous copy: XLA reads such an argument without another copy.
        return [np.asarray(value, order="C") for value in run]
    except NotExactError:
        pass
    place = jax.sharding.SingleDeviceSharding(cpu_device())

    def traced(weights: Sequence[Any]) -> list[Any]:
        return values_of(nodes, weights)

    with own_settings():
        lowered = jax.jit(traced, in_shardings=place, out_shardings=place).lower(list(leaves))
        return [np.asarray(value) for value in compiled(lowered, cpu_device())(list(leaves))]


def values_of(nodes: Sequence[Node], weights: Sequence[Any], run: Rewrite | None = None) -> list[Any]:
    """Values of `nodes` for `weights`, by `run(step, inputs)` for each step; by default in JAX's trace."""
    memo: dict[Node, Any] = {}
    for node in _behind(nodes):
        if node.step is None:
            memo[node] = weights[node.index]
        else:
            given = [memo[source] if isinstance(source, Node) else source.value for source in node.inputs]
            memo[node] = (run(node.step, given) if run else node.step.bind(given))[node.index]
    return [memo[node] for node in nodes]


def _behind(nodes: Iterable[Node]) -> list[Node]:
    """`nodes` and all nodes behind them, each after its inputs."""
    # Depth first with a list as the stack, since a chain of nodes may be too long for recursion. A node
    # leaves the stack once all its inputs are in `order`.
    order: dict[Node, None] = {}
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting[-1]
        missing = [source for source in node.inputs if isinstance(source, Node) and source not in order]
        if missing:
            waiting.extend(missing[::-1])
        else:
            order[waiting.pop()] = None
    return list(order)


def _free_before(step: Step, known: Mapping[int, Node], free: Mapping[int, Step]) -> list[Step]:
    """The steps on literals alone that `step` needs, in order."""
    found: dict[int, Step] = {}
    waiting = [step]
    while waiting:
        for atom in waiting.pop().inputs:
            if isinstance(atom, int) and atom not in known and free[atom].outputs[0] not in found:
                found[free[atom].outputs[0]] = free[atom]
                waiting.append(free[atom])
    return [found[number] for number in sorted(found)]


_VIEWS = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "slice", "broadcast_in_dim", "copy", "split"}
)
"""Primitives that NumPy evaluates as views; they take no memory of the limit on hoisted values."""


def _bytes(value: Any) -> int:
    return int(np.prod(np.shape(value), dtype=np.int64)) * getattr(
        getattr(value, "dtype", None), "itemsize", 8
    )


@dataclass
class _Flat:
    """A jaxpr as numbered steps, with calls of other jaxprs inlined."""

    steps: list[Step] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    avals: dict[int, Any] = field(default_factory=dict)

    def number(self, aval: Any) -> int:
        self.avals[len(self.sizes)] = aval
        self.sizes[len(self.sizes)] = int(np.prod(getattr(aval, "shape", ()), dtype=np.int64))
        return len(self.sizes) - 1

    def inline(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Atom]) -> list[Atom]:
        env: dict[Any, Atom] = dict(zip(jaxpr.constvars, map(_Literal, consts), strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            inputs = tuple(_Literal(var.val) if hasattr(var, "val") else env[var] for var in eqn.invars)
            # Loops and branches stay whole: their bodies run a number of times that is not known here.
            inner = eqn.params.get(_INLINED.get(eqn.primitive.name, ""))
            if inner is not None and hasattr(inner, "jaxpr"):
                outputs = self.inline(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = tuple(self.number(var.aval) for var in eqn.outvars)
                avals = tuple(var.aval for var in eqn.outvars)
                self.steps.append(Step(eqn.primitive, eqn.params, inputs, outputs, avals))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [_Literal(var.val) if hasattr(var, "val") else env[var] for var in jaxpr.outvars]


def flattened(closed: Any) -> tuple[list[int], list[Step], list[Atom]]:
    """Arguments, steps and outputs of a closed jaxpr, numbered from 0, with calls of other jaxprs inlined."""
    flat = _Flat()
    arguments = [flat.number(var.aval) for var in closed.jaxpr.invars]
    outputs = flat.inline(closed.jaxpr, closed.consts, arguments)
    return arguments, flat.steps, outputs


def alive(steps: Sequence[Step], outputs: Iterable[Atom]) -> tuple[tuple[Step, ...], set[int]]:
    """The steps that the outputs need, and the numbers that these steps and the outputs read."""
    # Backwards, a step is met after all steps that read it.
    needed = {atom for atom in outputs if isinstance(atom, int)}
    alive = []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            alive.append(step)
            needed.update(atom for atom in step.inputs if isinstance(atom, int))
    return tuple(reversed(alive)), needed


def _opaque(aval: Any) -> bool:
    """Whether NumPy cannot hold a value (a random key, a token)."""
    return not hasattr(aval, "dtype") or jnp.issubdtype(aval.dtype, jax.dtypes.extended)


def _read(env: dict[int, Any], atom: Atom) -> Any:
    return env[atom] if isinstance(atom, int) else atom.value


def _frozen(value: Any) -> Any:
    """A hashable key of `value`, equal for equal computations.

    Raises:
        TypeError: the value has no key (a jaxpr, a function, a large array).
    """
    if isinstance(value, dict):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(map(_frozen, value))
    # Keys live as long as the hoister, so they hold no large arrays.
    if hasattr(value, "__array__") and hasattr(value, "shape") and np.size(value) <= 64:
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    if hasattr(value, "eqns") or hasattr(value, "jaxpr") or (callable(value) and not isinstance(value, type)):
        raise TypeError(f"no key for {type(value).__name__}")
    hash(value)
    return type(value).__name__, value
