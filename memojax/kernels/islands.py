"""Steps of a trace that run as one program, and where to cut them in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plans.hoist import Atom, Step


@dataclass(frozen=True)
class Island:
    """Steps that run as one program, by their indices."""

    steps: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def cut(island: Island, steps: Sequence[Step], dtype_of: Callable[[Atom], Any]) -> int | None:
    """The position next to the middle where an island may end and another begin; None if there is none.

    Only floats have a form outside of a program, so no truth value or whole number may pass there.
    """
    last_use = {
        atom: at
        for at, index in enumerate(island.steps)
        for atom in steps[index].inputs
        if isinstance(atom, int)
    }
    positions = set(range(1, len(island.steps)))
    for at, index in enumerate(island.steps):
        for number in steps[index].outputs:
            if dtype_of(number) != np.float32:
                positions.difference_update(range(at + 1, last_use.get(number, at) + 1))
    middle = len(island.steps) // 2
    return min(positions, key=lambda at: abs(at - middle), default=None)
