"""Long residuals, cut into calls that XLA:CPU does not inline; see `memojax/xla/pieces.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..xla import pieces
from .hoist import Residual, Step
from .in_order import calls_are_kept, grouped, is_heavy


def cut(residual: Residual) -> Residual | None:
    """`residual` in pieces; None where it is not long, or where this JAX has no such calls."""
    steps = residual.steps
    if not calls_are_kept() or not pieces.is_long(len(steps), longest(steps)):
        return None
    wanted = {atom for atom in residual.outputs if isinstance(atom, int)}
    parts = pieces.cut([step.primitive.name for step in steps])
    return replace(residual, steps=tuple(grouped(steps, parts, wanted)))


def steps_of(residual: Residual) -> int:
    """The light steps that a residual takes as long to compile as, with those of its bodies."""
    return sum(pieces.cost(step.primitive.name, step.params) for step in residual.steps)


def longest(steps: Sequence[Step]) -> int:
    """Steps of the longest chain that no heavy one interrupts."""
    return pieces.longest_chain(
        ([atom for atom in step.inputs if isinstance(atom, int)], step.outputs, not is_heavy(step))
        for step in steps
    )
