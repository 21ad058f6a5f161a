"""Plans that run in order on the calling thread: groups of steps, each a call that XLA:CPU does not inline.

XLA:CPU hands ready parts of an executable to a thread pool if it has more than eight of them and they form no
chain. Waking a thread takes longer than a small policy's computation. A call has its own executor with its
own few parts, so nested calls keep each executor below eight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.core import Tracer

from ..xla.pieces import APART, ENDS_FUSION, call_metadata
from .hoist import Residual, StandIn, Step

_MANY_PARTS = {
    **dict.fromkeys(
        ("dot_general", "conv_general_dilated", "scan", "while", "cond", "argmax", "argmin", "sort"), 2
    ),
    **dict.fromkeys(("random_bits", "random_fold_in", "random_split", "random_seed"), 3),
}
_ONE_PART = ("kernels", "gather", "scatter", "concatenate", "dynamic_slice", "dynamic_update_slice", "cumsum")

_FEW = 8
"""Number of parts that XLA:CPU runs in order, whatever their graph."""

_IN_GROUP = 6.0
_IN_PLAN = 5
"""Number of calls that leaves a plan room for parts that gather its inputs and outputs."""

_LIGHT = 1 / 12
"""Share of a part that a light step counts for, since XLA fuses most of them with others."""

_MOST_PRODUCTS = 8
"""A transformer's many products gain nothing in groups: 1.0 to 1.3 times one plan's time, longer compiles."""

_LARGE_IMAGE = 1 << 14
"""Results of a convolution from which XLA uses several threads in any order, so groups gain nothing."""


def in_order(residual: Residual, deep: bool = True) -> Residual | None:
    """`residual` in groups; None if XLA's order is as good, or if this JAX cannot mark calls.

    Groups pay if something stands beside the network, such as draws or a second branch. They do not pay if a
    convolution or many products have work for several threads. Groups of groups, and groups between
    convolutions, sometimes pay and take up to 2.6 times as long to compile: only `deep` allows them.
    """
    steps = residual.steps
    if not deep and any(step.primitive.name in APART for step in steps):
        return None
    if not calls_are_kept() or sum(map(_parts, steps)) < _FEW or _is_chain(steps) or _has_much_work(steps):
        return None
    wanted = {atom for atom in residual.outputs if isinstance(atom, int)}
    items = grouped(steps, list(_packed(steps, [_parts(step) or _LIGHT for step in steps])), wanted)
    while len(items) > _IN_PLAN:
        if not deep:
            return None
        sizes = [1.0 if isinstance(step, Group) else _IN_GROUP for step in items]
        merged = grouped(items, list(_packed(items, sizes)), wanted)
        if len(merged) >= len(items):
            break
        items = merged
    # Convolutions between the groups keep the number up. XLA then chooses the order anyway, and calls only
    # cost.
    return replace(residual, steps=tuple(items)) if len(items) <= _FEW else None


_CALL = StandIn("group")


class Group(Step):
    """Steps that run as one call; `params["steps"]` lists them."""

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        # Constant weights stay constants inside the call, because XLA packs them only then.
        fixed = {n: x for n, x in zip(self.inputs, inputs, strict=True) if not isinstance(x, Tracer)}
        given = {n: x for n, x in zip(self.inputs, inputs, strict=True) if n not in fixed}

        def group(*values: Any) -> list[Any]:
            env: dict[Any, Any] = {**fixed, **dict(zip(given, values, strict=True))}
            for step in self.params["steps"]:
                read = [env[atom] if isinstance(atom, int) else atom.value for atom in step.inputs]
                env.update(zip(step.outputs, step.bind(read), strict=True))
            return [env[number] for number in self.outputs]

        metadata = call_metadata()
        if metadata is None:
            return group(*given.values())
        with metadata(inlineable="false"):
            return list(jax.jit(group)(*given.values()))


def calls_are_kept() -> bool:
    """Whether this JAX can tell XLA not to inline a call."""
    return call_metadata() is not None


def is_heavy(step: Step) -> bool:
    """Whether nothing is fused with a step from both sides."""
    return step.primitive.name in ENDS_FUSION


def _parts(step: Step) -> int:
    """Number of parts that a step adds to an executable; a product also ends the fusion before it."""
    name = step.primitive.name
    if name in _ONE_PART or name.startswith("reduce_"):
        return 1
    return _MANY_PARTS.get(name, 0)


def _is_chain(steps: Sequence[Step]) -> bool:
    """Whether each product, draw or loop needs the result of the previous one."""
    last = -1
    behind: dict[int, int] = {}
    for index, step in enumerate(steps):
        before = max((behind.get(atom, -1) for atom in step.inputs if isinstance(atom, int)), default=-1)
        if is_heavy(step):
            if before != last:
                return False
            last = before = index
        behind.update(dict.fromkeys(step.outputs, before))
    return True


def _has_much_work(steps: Sequence[Step]) -> bool:
    """Whether there are many products, or a convolution so large that XLA gives it several threads."""
    names = [step.primitive.name for step in steps]
    images = [math.prod(step.avals[0].shape) for step in steps if step.primitive.name in APART]
    return names.count("dot_general") > _MOST_PRODUCTS or max(images, default=0) > _LARGE_IMAGE


def _packed(steps: Sequence[Step], weights: Sequence[float]) -> Iterable[list[int]]:
    """Cut `steps` into consecutive pieces of limited weight; a convolution is a piece of its own."""
    piece: list[int] = []
    weight = 0.0
    for index, (step, own) in enumerate(zip(steps, weights, strict=True)):
        apart = step.primitive.name in APART
        if piece and (apart or weight + own > _IN_GROUP):
            yield piece
            piece, weight = [], 0.0
        if apart:
            yield [index]
            continue
        piece.append(index)
        weight += own
    if piece:
        yield piece


def grouped(steps: Sequence[Step], pieces: Sequence[Sequence[int]], leaving: set[int]) -> list[Step]:
    """A step for each piece: a group, or the step itself if it is alone."""
    # A group gives only the values that a later piece or the plan needs.
    last = {atom: at for at, piece in enumerate(pieces) for i in piece for atom in steps[i].inputs}
    last.update(dict.fromkeys(leaving, len(pieces)))
    found = []
    for at, piece in enumerate(pieces):
        members = tuple(steps[i] for i in piece)
        if len(members) == 1:
            found.append(members[0])
            continue
        made = {number: aval for s in members for number, aval in zip(s.outputs, s.avals, strict=True)}
        read = {
            atom: None for s in members for atom in s.inputs if isinstance(atom, int) and atom not in made
        }
        kept = tuple(number for number in made if last.get(number, -1) > at)
        avals = tuple(made[number] for number in kept)
        found.append(Group(_CALL, {"steps": members}, tuple(read), kept, avals))
    return found
