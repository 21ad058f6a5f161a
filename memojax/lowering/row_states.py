"""How the rows of a batch lie in a value of a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

_CHECKED_BYTES = 1 << 22


@dataclass(frozen=True)
class Same:
    """A value that depends on no row.

    Attributes:
        uniform: axes along which all its entries are the same.
    """

    uniform: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Rows:
    """A value with rows on one axis of `outer * n * inner` entries, the last ones side by side."""

    axis: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Mixed:
    """A value in which rows may influence each other."""


MIXED: Mixed = Mixed()
Apart: TypeAlias = "Same | Rows"
State: TypeAlias = "Apart | Mixed"


def moved(state: Rows, axis: int) -> Rows:
    """The same rows on another axis."""
    return replace(state, axis=axis)


def uniform_on(state: State, axis: int) -> bool:
    """Whether a value depends on no row, and is the same along an axis."""
    return isinstance(state, Same) and axis in state.uniform


def joined(states: Sequence[State]) -> State:
    """The state of a value whose entry at a place depends on the entries of `states` there."""
    rows = {state for state in states if isinstance(state, Rows)}
    if MIXED in states or len(rows) > 1:
        return MIXED
    others = [state.uniform for state in states if isinstance(state, Same)]
    if not rows:
        return Same(frozenset.intersection(*others)) if others else Same()
    (found,) = rows
    return found if all(found.axis in uniform for uniform in others) else MIXED


def of_constant(value: Any) -> State:
    """The state of a constant of a trace."""
    shape = np.shape(value)
    if not shape:
        return Same()
    units = frozenset(axis for axis, size in enumerate(shape) if size == 1)
    if not isinstance(value, np.ndarray) and not hasattr(value, "__array__"):
        return Same(units)
    if math.prod(shape) * value.dtype.itemsize > _CHECKED_BYTES or not math.prod(shape):
        return Same(units)
    try:
        array = np.asarray(value)
    except TypeError:  # a constant key of random numbers
        return Same(units)
    along = (axis for axis in range(array.ndim) if axis in units or (array == array.take([0], axis)).all())
    return Same(frozenset(along))


def reshaped(state: State, before: Sequence[int], after: Sequence[int], n: int) -> State:
    """The state after a reshape from `before` to `after`."""
    if isinstance(state, Mixed):
        return state
    if isinstance(state, Same):
        if len(state.uniform) == len(before):
            return Same(frozenset(range(len(after))))
        return Same(frozenset(_kept(state, before, after)))
    ahead = math.prod(before[: state.axis]) * state.outer
    size = 1
    for axis, dim in enumerate(after):
        # The entries are `[ahead, n, ...]`: the rows' axis begins within `ahead`, and ends after n.
        if size * dim > ahead:
            outer, left = divmod(ahead, size)
            whole = not left and dim % (outer * n) == 0
            return Rows(axis, outer, dim // (outer * n)) if whole else MIXED
        size *= dim
    return MIXED


def _kept(state: Same, before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Axes of a reshaped value that are the same axes as before, or have one entry."""
    starts = {(math.prod(before[:axis]), before[axis]) for axis in state.uniform}
    return [axis for axis, size in enumerate(after) if size == 1 or (math.prod(after[:axis]), size) in starts]
