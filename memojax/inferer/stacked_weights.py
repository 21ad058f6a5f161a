"""Functions over the weights of several policies at once, stacked along a new first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ..model.signature import TensorSpec


@dataclass(frozen=True)
class OverWeights:
    """A model's function over weights `[capacity, ...]` and rows `[n, capacity, ...]`."""

    fn: Callable[..., Any]
    capacity: int
    random: bool

    def __call__(self, params: Any, rows: Sequence[Any], key: Any) -> tuple[Any, ...]:
        # Each weight set draws its own numbers.
        keys = jax.random.split(key, self.capacity) if self.random else None
        over = jax.vmap(self.fn, in_axes=(0, 1, 0 if self.random else None), out_axes=1)
        return over(params, list(rows), keys)


def widened(specs: Iterable[TensorSpec], capacity: int) -> tuple[TensorSpec, ...]:
    """`specs` with an axis `[capacity]` before the axes of an element: a place for each weight set."""
    return tuple(replace(spec, shape=(capacity, *spec.shape)) for spec in specs)


def stacked(params: Any, count: int) -> Any:
    """`count` copies of the weights, as arrays `[count, ...]`."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], count, axis=0), params)


def with_slot(stack: Any, slot: int, params: Any) -> Any:
    """A copy of the stack in which `params` is the weight set at `slot`."""

    def written(stack: np.ndarray, leaf: Any) -> np.ndarray:
        stack = stack.copy()  # Concurrent calls still read the old array.
        stack[slot] = np.asarray(leaf)
        return stack

    return jax.tree.map(written, stack, params)


def turns_of(slots: np.ndarray, capacity: int) -> np.ndarray:
    """For each row, the number of earlier rows with the same slot."""
    order = np.argsort(slots, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(slots, minlength=capacity))[:-1]])
    turns = np.empty(len(slots), np.int64)
    turns[order] = np.arange(len(slots)) - starts[slots[order]]
    return turns
