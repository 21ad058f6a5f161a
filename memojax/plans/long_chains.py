"""Long chains of light steps, cut into calls that XLA:CPU does not inline.

XLA takes time that grows with the square of the length, and comes to the end of the stack at some ten
thousand steps. A call is a computation of its own, so the time of a plan in pieces grows with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .hoist import Residual, Step
from .in_order import calls_are_kept, grouped, is_heavy

LONG = 1000
"""Light steps after each other from which a plan is cut; XLA needs a second for them."""

_PIECE = 250


def cut(residual: Residual) -> Residual | None:
    """`residual` in pieces; None where no chain in it is long, or where this JAX has no such calls."""
    steps = residual.steps
    if len(steps) <= LONG or not calls_are_kept() or longest(steps) <= LONG:
        return None
    pieces = [list(range(at, min(at + _PIECE, len(steps)))) for at in range(0, len(steps), _PIECE)]
    wanted = {atom for atom in residual.outputs if isinstance(atom, int)}
    return replace(residual, steps=tuple(grouped(steps, pieces, wanted)))


def longest(steps: Sequence[Step]) -> int:
    """Steps of the longest chain that no heavy one interrupts."""
    depth: dict[int, int] = {}
    most = 0
    for step in steps:
        own = 1 + max((depth.get(atom, 0) for atom in step.inputs if isinstance(atom, int)), default=0)
        if is_heavy(step):
            own = 0
        most = max(most, own)
        depth.update(dict.fromkeys(step.outputs, own))
    return most
