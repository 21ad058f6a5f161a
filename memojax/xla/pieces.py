"""Long functions, traced as calls that XLA:CPU does not inline, so XLA's time grows with their length.

XLA repeats light steps in each fusion that reads them. Its time then grows with the square of a chain's
length, and it comes to the end of the stack at some ten thousand steps. A call is a computation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer

from .draws import at_once
from .equations import bodies, bound
from .limits import COMPILED

PIECE = 16
"""Steps in one call. XLA needs twice as long per step at 50, and calls take longer than steps below 12."""

LONG_CHAIN = 150
"""Light steps after each other from which a function is cut; those of real networks have at most 80."""

LONG = 2000
"""Steps from which a function is cut; real networks for single rows have at most half as many."""

APART = ("conv_general_dilated",)
"""Steps that stay outside of calls, because XLA:CPU runs them several times slower inside."""

ENDS_FUSION = frozenset(
    {
        "argmax",
        "argmin",
        "cond",
        "conv_general_dilated",
        "dot_general",
        "kernels",
        "random_bits",
        "random_fold_in",
        "random_seed",
        "random_split",
        "scan",
        "sort",
        "while",
    }
)
"""Primitives with which nothing is fused on both sides."""

_SLOW = {
    **dict.fromkeys(("random_bits", "random_fold_in", "random_split", "random_seed", "threefry2x32"), 100),
    "erf_inv": 32,
    "dot_general": 8,
}
"""Steps that take XLA:CPU as long to compile as so many light ones: hashes, normal draws, and products."""

_IN_BODY = 2
"""Steps that one step in the body of a loop or branch counts as; XLA's stack is short."""

_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


def call_metadata() -> Callable[..., Any] | None:
    """JAX's context that marks calls for XLA; None if this JAX has no such context."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:
        return None
    return set_xla_metadata


def is_long(steps: int, chain: int) -> bool:
    """Whether a function of so many steps, with such a chain of light ones, is cut."""
    return steps > LONG or chain > LONG_CHAIN


def longest_chain(steps: Iterable[tuple[Iterable[Any], Iterable[Any], int]]) -> int:
    """Steps of the longest chain in which each can be fused with the next.

    `steps` are the values that each reads and makes, and its number of light steps: 0 ends a chain.
    """
    depth: dict[Any, int] = {}
    most = 0
    for read, made, light in steps:
        own = light and light + max((depth.get(value, 0) for value in read), default=0)
        most = max(most, own)
        depth.update(dict.fromkeys(made, own))
    return most


def cut(names: Sequence[str]) -> list[list[int]]:
    """Positions of steps, by the names of their primitives, in pieces."""
    found: list[list[int]] = []
    piece: list[int] = []
    for place, name in enumerate(names):
        if name in APART or len(piece) == PIECE:
            found.append(piece)
            piece = []
        if name in APART:
            found.append([place])
        else:
            piece.append(place)
    return [piece for piece in (*found, piece) if piece]


def in_pieces(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees, cut where it is long; where nothing is traced, it runs as it is."""

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tracer)]
        metadata = call_metadata()
        if not places or metadata is None:
            return function(*args)

        def flat(*given: Any) -> Any:
            whole = list(leaves)
            for place, value in zip(places, given, strict=True):
                whole[place] = value
            return function(*jax.tree.unflatten(structure, whole))

        given = [leaves[place] for place in places]
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*given)
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluated(closed, given, metadata))

    return call


def _evaluated(closed: Any, given: Sequence[Any], metadata: Callable[..., Any]) -> list[Any]:
    closed = at_once(closed)
    jaxpr = closed.jaxpr
    steps = (cost(eqn.primitive.name, eqn.params) for eqn in jaxpr.eqns)
    COMPILED.check(sum(steps), "this graph")
    sizes = [_size(eqn) for eqn in jaxpr.eqns]
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *given), strict=True))
    pieces = [list(range(len(jaxpr.eqns)))]
    light = [0 if _ends_fusion(eqn) else size for eqn, size in zip(jaxpr.eqns, sizes, strict=True)]
    reads = [_variables(eqn.invars) for eqn in jaxpr.eqns]
    makes = [eqn.outvars for eqn in jaxpr.eqns]
    long = is_long(sum(sizes), longest_chain(zip(reads, makes, light, strict=True)))
    if long:
        pieces = cut([eqn.primitive.name for eqn in jaxpr.eqns])
    last = _last_readers(jaxpr)
    for piece in pieces:
        eqns = [jaxpr.eqns[place] for place in piece]
        if not long or len(eqns) == 1:
            _run(eqns, env)
            continue
        made = [var for eqn in eqns for var in eqn.outvars if last.get(var, -1) > piece[-1]]
        own = {var for eqn in eqns for var in eqn.outvars}
        read = list({var: None for eqn in eqns for var in _variables(eqn.invars) if var not in own})
        with metadata(inlineable="false"):
            values = jax.jit(_piece(eqns, read, made, env))(
                *(env[var] for var in read if isinstance(env[var], Tracer))
            )
        env.update(zip(made, values, strict=True))
    return [var.val if hasattr(var, "val") else env[var] for var in jaxpr.outvars]


def _piece(
    eqns: Sequence[Any], read: Sequence[Any], made: Sequence[Any], around: dict[Any, Any]
) -> Callable[..., Any]:
    # Constants stay constants inside the call.
    fixed = {var: around[var] for var in read if not isinstance(around[var], Tracer)}
    traced = [var for var in read if var not in fixed]

    def piece(*given: Any) -> list[Any]:
        env = {**fixed, **dict(zip(traced, given, strict=True))}
        _run(eqns, env)
        return [env[var] for var in made]

    return piece


def _run(eqns: Sequence[Any], env: dict[Any, Any]) -> None:
    for eqn in eqns:
        inputs = [var.val if hasattr(var, "val") else env[var] for var in eqn.invars]
        env.update(zip(eqn.outvars, bound(eqn.primitive, eqn.params, inputs), strict=True))


def _size(eqn: Any) -> int:
    return max(1, sum(_size(inner) for jaxpr in bodies(eqn.params) for inner in jaxpr.eqns))


def cost(name: str, params: Mapping[str, Any]) -> int:
    """The light steps that a step takes as long to compile as, with those of its calls and bodies."""
    inner = sum(cost(eqn.primitive.name, eqn.params) for jaxpr in bodies(params) for eqn in jaxpr.eqns)
    return max(_SLOW.get(name, 1), inner if name in _CALLS else inner * _IN_BODY)


def _ends_fusion(eqn: Any) -> bool:
    name = eqn.primitive.name
    if name in ENDS_FUSION:
        return True
    return name in _CALLS and any(_ends_fusion(inner) for jaxpr in bodies(eqn.params) for inner in jaxpr.eqns)


def _last_readers(jaxpr: Any) -> dict[Any, int]:
    """Variable -> position of the last equation that reads it; of outputs, a position after all."""
    last = {var: place for place, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn.invars)}
    return {**last, **dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))}


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not hasattr(atom, "val")]
