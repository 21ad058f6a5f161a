"""Random draws as plain arithmetic, which XLA:CPU fuses with the steps that read them.

JAX hashes counters in a loop on CPUs, to compile large programs faster. For a policy this is the slow way.
Each draw becomes two loops of some twenty parts with copies between them. They take longer to compile and to
run than the same hash without a loop. The numbers are the same, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..xla.settings import own_settings
from .hoist import Atom, Residual, Step, flattened

log: logging.Logger = logging.getLogger("memojax")

_HASH = "threefry2x32"

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ROUNDS = 5
_PARITY = np.uint32(0x1BD11BDA)
"""The constants of Threefry-2x32 with 20 rounds."""


def without_loops(residual: Residual) -> Residual:
    """`residual` with its draws as plain arithmetic; unchanged without draws or with keys of another kind."""
    if not any(step.primitive.name in ("random_bits", _HASH) for step in residual.steps):
        return residual
    try:
        return _Expansion(residual).run()
    except _NotOurs:
        return residual
    except Exception as cause:  # a mistake of ours must not keep a model from running
        log.warning("draws stay as JAX makes them: %r", cause)
        return residual


class _NotOurs(Exception):
    """A step uses a key in a way that this module does not handle."""


class _Hash(Step):
    """Threefry's hash of counters, without a loop."""

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        made = _hashed(*inputs)
        if np.ndim(inputs[0]):
            # A fusion of several hashes of arrays of keys repeats the first for each number of the last.
            made = lax.optimization_barrier(made)
        return list(made)


class _Expansion:
    """Rewrites one residual: a key becomes its data, uint32[2] with leading axes for arrays of keys."""

    def __init__(self, residual: Residual) -> None:
        self.residual = residual
        self.next_number = 1 + max(
            (*residual.avals, *(number for step in residual.steps for number in step.outputs)), default=0
        )
        self.data: dict[int, Atom] = {}
        """For each key, or array of keys, the atom of its data."""
        self.avals: dict[int, Any] = dict(residual.avals)
        for step in residual.steps:
            self.avals.update(zip(step.outputs, step.avals, strict=True))

    def run(self) -> Residual:
        steps: list[Step] = []
        for step in self.residual.steps:
            steps += self._plain(step)
        # A key has no value any more, so it cannot be an output.
        if any(atom in self.data for atom in self.residual.outputs if isinstance(atom, int)):
            raise _NotOurs
        outputs = tuple(self.residual.outputs)
        return replace(self.residual, steps=tuple(steps), outputs=outputs)

    def _plain(self, step: Step) -> list[Step]:
        name = step.primitive.name
        if name == _HASH:
            return [_Hash(step.primitive, step.params, step.inputs, step.outputs, step.avals)]
        if name == "random_wrap":
            return self._wrapped(step)
        keys = [atom for atom in step.inputs if isinstance(atom, int) and atom in self.data]
        if not keys:
            return [step]
        data = self.data[keys[0]]
        rank = self._abstract(data).ndim - 1
        if name == "random_fold_in":
            other = np.ndim(self._abstract(step.inputs[1]))
            fold = _over_keys(_implementation().fold_in, rank, other)
            made, (folded,) = self._traced(fold, [data, step.inputs[1]])
            self.data[step.outputs[0]] = folded
            return made
        if name == "random_bits":
            width, shape = step.params["bit_width"], step.params["shape"]

            def bits(key: Any) -> Any:
                return _implementation().random_bits(key, width, shape)

            made, (drawn,) = self._traced(_over_keys(bits, rank), [data])
            # Later steps read the result of the draw by its old number.
            return _renumbered(made, drawn, step.outputs[0])
        raise _NotOurs

    def _wrapped(self, step: Step) -> list[Step]:
        if str(step.avals[0].dtype) != "key<fry>":
            raise _NotOurs
        self.data[step.outputs[0]] = step.inputs[0]
        return []

    def _traced(self, function: Callable[..., Any], inputs: Sequence[Atom]) -> tuple[list[Step], list[Atom]]:
        """The steps and results of a function of `inputs`, with numbers that the residual has free."""
        with own_settings():
            closed = jax.make_jaxpr(function)(*map(self._abstract, inputs))
        arguments, steps, results = flattened(closed)
        numbers: dict[int, Atom] = dict(zip(arguments, inputs, strict=True))
        made = []
        for step in steps:
            outputs = tuple(range(self.next_number, self.next_number + len(step.outputs)))
            self.next_number += len(outputs)
            kind = _Hash if step.primitive.name == _HASH else Step
            read = tuple(_moved(numbers, atom) for atom in step.inputs)
            made.append(kind(step.primitive, step.params, read, outputs, step.avals))
            numbers.update(zip(step.outputs, outputs, strict=True))
            self.avals.update(zip(outputs, step.avals, strict=True))
        return made, [_moved(numbers, atom) for atom in results]

    def _abstract(self, atom: Atom) -> Any:
        return self.avals[atom] if isinstance(atom, int) else atom.value


def _moved(numbers: Mapping[int, Atom], atom: Atom) -> Atom:
    return numbers[atom] if isinstance(atom, int) else atom


def _renumbered(steps: Sequence[Step], old: Atom, new: int) -> list[Step]:
    return [
        replace(step, outputs=tuple(new if number == old else number for number in step.outputs))
        for step in steps
    ]


def _over_keys(function: Callable[..., Any], *ranks: int) -> Callable[..., Any]:
    """`function` of one key, mapped over arrays of keys; an argument has all axes of the arrays, or none."""
    deep = max(ranks)
    if any(rank not in (0, deep) for rank in ranks):
        raise _NotOurs
    for _ in range(deep):
        function = jax.vmap(function, in_axes=tuple(0 if rank else None for rank in ranks))
    return function


def _implementation() -> Any:
    """JAX's functions for Threefry keys."""
    try:
        from jax.extend.random import threefry_prng_impl
    except ImportError:
        raise _NotOurs from None
    return threefry_prng_impl


def _hashed(key0: Any, key1: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """The Threefry-2x32 hash of the counters `(x0, x1)`.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    shape = lax.broadcast_shapes(*(np.shape(value) for value in (key0, key1, x0, x1)))
    x0, x1 = (jnp.broadcast_to(x, shape) for x in (x0, x1))
    keys = (key0, key1, lax.bitwise_xor(lax.bitwise_xor(key0, key1), _PARITY))

    def plus(x: Any, key: Any) -> Any:
        return lax.add(x, jnp.broadcast_to(key, shape))

    x0, x1 = plus(x0, keys[0]), plus(x1, keys[1])
    for number in range(_ROUNDS):
        for distance in _ROTATIONS[number % 2]:
            x0 = lax.add(x0, x1)
            left = lax.shift_left(x1, lax.full_like(x1, distance))
            right = lax.shift_right_logical(x1, lax.full_like(x1, 32 - distance))
            x1 = lax.bitwise_xor(x0, lax.bitwise_or(left, right))
        x0 = plus(x0, keys[(number + 1) % 3])
        x1 = plus(x1, lax.add(keys[(number + 2) % 3], np.uint32(number + 1)))
    return x0, x1
