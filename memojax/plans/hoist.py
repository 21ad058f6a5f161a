"""Computation that depends on weights alone, found on the jaxpr and taken out of the function: done once per weight load, not per call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..xla.cpu_client import cpu_device
from ..xla.options import compiled
from ..xla.settings import own_settings
from .numpy_eval import fold

Atom: TypeAlias = "int | _Literal"
Rewrite: TypeAlias = "Callable[[Step, list[Any]], list[Any]]"

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that holds it; derivatives are of no use in a plan."""


@dataclass(frozen=True, eq=False)
class _Literal:
    value: Any


@dataclass(frozen=True, eq=False)
class Step:
    """One equation: `outputs = primitive(*inputs, **params)`; values are numbered."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    avals: tuple[Any, ...]

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        """Evaluate or trace it."""
        given = self.primitive.get_bind_params(self.params)
        functions, params = given if isinstance(given, tuple) else ((), given)  # a pair before JAX 0.9
        outputs = self.primitive.bind(*functions, *inputs, **params)
        return list(outputs) if self.primitive.multiple_results else [outputs]


@dataclass(frozen=True, eq=False)
class Node:
    """A value made from weights alone: a weight (`step` is None, `index` its position), or an output of a step over such values.

    Literals make nodes too where weights are combined with them. Equal computations are one node, so that all batch sizes share what they
    make of the weights.
    """

    index: int
    step: Step | None = None
    inputs: tuple[Node | _Literal, ...] = ()


@dataclass(frozen=True)
class Residual:
    """What is left to do per call: `residual(leading, inputs)`, where `leading` are the values of `nodes`."""

    nodes: tuple[Node, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    leading: tuple[int, ...]

    def origin(self) -> str:
        """How `nodes` are made of the weights, in words that are the same in every process."""
        return ", ".join(map(_origin, self.nodes))

    def __call__(
        self, leading: Sequence[Any], inputs: Sequence[Any], rewrite: Rewrite | None = None
    ) -> list[Any]:
        """Outputs; `rewrite(step, inputs)` stands in for `step.bind(inputs)`.

        No output is an input itself, so that buffers may be reused.
        """
        env = dict(zip((*self.leading, *self.inputs), (*leading, *inputs), strict=True))
        passed = set(env)
        for step in self.steps:
            given = [_read(env, atom) for atom in step.inputs]
            env.update(zip(step.outputs, rewrite(step, given) if rewrite else step.bind(given), strict=True))
        return [
            lax.copy_p.bind(env[atom]) if isinstance(atom, int) and atom in passed else _read(env, atom)
            for atom in self.outputs
        ]


class Hoister:
    """Splits traced functions of one set of weights; holds what several batch sizes share."""

    def __init__(self, leaves: Sequence[Any]):
        """`leaves` are the weights, in the order of the traced function's first arguments."""
        self.leaves = tuple(leaves)
        self._weights = tuple(Node(index) for index in range(len(leaves)))
        self._nodes: dict[Any, tuple[Node, ...]] = {}
        self._values: weakref.WeakKeyDictionary[Node, weakref.ref[np.ndarray]] = weakref.WeakKeyDictionary()

    def split(self, closed: Any) -> Residual:
        """Take what depends on weights alone out of a closed jaxpr whose first arguments are the weights.

        What makes more numbers than it takes (a bias broadcast to the batch) stays inside. Hold the tracing lock.
        """
        jaxpr = closed.jaxpr
        flat = _Flat()
        arguments = [flat.number(var.aval) for var in jaxpr.invars]
        outputs = flat.inline(jaxpr, closed.consts, arguments)
        known: dict[int, Node] = dict(zip(arguments, self._weights, strict=False))
        free: dict[int, Step] = {}
        kept = []
        for step in flat.steps:
            numbers = [atom for atom in step.inputs if isinstance(atom, int)]
            taken = sum(flat.sizes[number] for number in numbers if number in known)
            given = sum(flat.sizes[number] for number in step.outputs)
            made = None
            if all(number in known or number in free for number in numbers) and not any(
                map(_opaque, step.avals)
            ):
                if 0 < given <= taken:
                    made = self._made(step, known, free)
                elif not taken:
                    free.update(dict.fromkeys(step.outputs, step))
            if made is None:
                kept.append(step)
            else:
                known.update(zip(step.outputs, made, strict=True))
        steps, needed = _alive(kept, outputs)
        leading = tuple(number for number in known if number in needed)
        return Residual(
            tuple(known[n] for n in leading),
            steps,
            tuple(arguments[len(self.leaves) :]),
            tuple(outputs),
            leading,
        )

    def values(self, nodes: Iterable[Node]) -> list[np.ndarray]:
        """Values of `nodes` on the host; they are remembered for as long as somebody holds them."""
        nodes = list(nodes)
        held = {node: ref() for node in nodes if (ref := self._values.get(node)) is not None}
        missing = [node for node in nodes if held.get(node) is None]
        for node, value in zip(missing, evaluate(missing, self.leaves), strict=True):
            held[node] = value
            if node.step is not None:
                self._values[node] = weakref.ref(value)
        return [held[node] for node in nodes]  # pyright: ignore[reportReturnType]

    def replace(self, leaves: Sequence[Any]) -> None:
        """Go on with other weights of the same shapes and dtypes."""
        self.leaves = tuple(leaves)
        self._values.clear()

    def _made(
        self, step: Step, known: Mapping[int, Node], free: Mapping[int, Step]
    ) -> tuple[Node, ...] | None:
        """The nodes of a step over weights and literals; None for one that cannot be recognised again."""
        inputs: list[Node | _Literal] = []
        for atom in step.inputs:
            if isinstance(atom, int) and atom not in known:
                made = self._made(free[atom], known, free)
                if made is None:
                    return None
                inputs.append(made[free[atom].outputs.index(atom)])
            else:
                inputs.append(known[atom] if isinstance(atom, int) else atom)
        try:
            key = (
                step.primitive,
                _frozen(step.params),
                tuple(n if isinstance(n, Node) else _frozen(n.value) for n in inputs),
            )
        except TypeError:
            return None
        if key not in self._nodes:
            self._nodes[key] = tuple(Node(index, step, tuple(inputs)) for index in range(len(step.outputs)))
        return self._nodes[key]


def evaluate(nodes: Sequence[Node], leaves: Sequence[Any]) -> list[np.ndarray]:
    """Values of `nodes`: by NumPy where it knows all steps, else by one small executable on the private client."""
    memo: dict[Node, Any] = {}

    def walk(node: Node, run: Callable[[Step, list[Any]], list[Any]], weights: Sequence[Any]) -> Any:
        if node.step is None:
            return weights[node.index]
        if node not in memo:
            given = [
                walk(source, run, weights) if isinstance(source, Node) else source.value
                for source in node.inputs
            ]
            memo[node] = run(node.step, given)[node.index]
        return memo[node]

    try:
        return [np.asarray(walk(node, _by_numpy, leaves), order="C") for node in nodes]
    except NotImplementedError:
        memo.clear()
    place = jax.sharding.SingleDeviceSharding(cpu_device())

    def traced(weights: Sequence[Any]) -> list[Any]:
        return [walk(node, lambda step, given: step.bind(given), weights) for node in nodes]

    with own_settings():
        lowered = jax.jit(traced, in_shardings=place, out_shardings=place).lower(list(leaves))
        return [np.asarray(value) for value in compiled(lowered, cpu_device())(list(leaves))]


@dataclass
class _Flat:
    """A jaxpr as numbered steps, calls of other jaxprs inlined."""

    steps: list[Step] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)

    def number(self, aval: Any) -> int:
        self.sizes[len(self.sizes)] = int(np.prod(getattr(aval, "shape", ()), dtype=np.int64))
        return len(self.sizes) - 1

    def inline(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Atom]) -> list[Atom]:
        env: dict[Any, Atom] = dict(zip(jaxpr.constvars, map(_Literal, consts), strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            inputs = tuple(_Literal(var.val) if hasattr(var, "val") else env[var] for var in eqn.invars)
            inner = eqn.params.get(_INLINED.get(eqn.primitive.name, ""))
            if inner is not None and hasattr(inner, "jaxpr"):
                outputs = self.inline(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = tuple(self.number(var.aval) for var in eqn.outvars)
                avals = tuple(var.aval for var in eqn.outvars)
                self.steps.append(Step(eqn.primitive, eqn.params, inputs, outputs, avals))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [_Literal(var.val) if hasattr(var, "val") else env[var] for var in jaxpr.outvars]


def _alive(steps: Sequence[Step], outputs: Iterable[Atom]) -> tuple[tuple[Step, ...], set[int]]:
    """The steps that the outputs need, and all numbers that are read."""
    needed = {atom for atom in outputs if isinstance(atom, int)}
    alive = []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            alive.append(step)
            needed.update(atom for atom in step.inputs if isinstance(atom, int))
    return tuple(reversed(alive)), needed


def _origin(node: Node) -> str:
    if node.step is None:
        return str(node.index)
    given = (
        _origin(source) if isinstance(source, Node) else f"{np.shape(source.value)}" for source in node.inputs
    )
    return f"{node.step.primitive.name}.{node.index}({', '.join(given)})"


def _opaque(aval: Any) -> bool:
    """Whether a value is none that NumPy can hold (a random key, a token)."""
    return not hasattr(aval, "dtype") or jnp.issubdtype(aval.dtype, jax.dtypes.extended)


def _read(env: dict[int, Any], atom: Atom) -> Any:
    return env[atom] if isinstance(atom, int) else atom.value


def _by_numpy(step: Step, inputs: list[Any]) -> list[Any]:
    return fold(step.primitive.name, step.params, inputs, step.avals)


def _frozen(value: Any) -> Any:
    """`value` as a key by which equal computations are found.

    Raises:
        TypeError: there is no such key (a jaxpr, a function, a large array).
    """
    if isinstance(value, dict):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(map(_frozen, value))
    if hasattr(value, "__array__") and hasattr(value, "shape") and np.size(value) <= 64:
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    if hasattr(value, "eqns") or hasattr(value, "jaxpr") or (callable(value) and not isinstance(value, type)):
        raise TypeError(f"no key for {type(value).__name__}")
    hash(value)
    return type(value).__name__, value
