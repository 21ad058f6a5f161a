"""The few lines between rows and an executable: what they cost is paid with every call, so each is there for a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from .packing import Packing
from .staging import Staging

Rows: TypeAlias = Sequence[Any]
Run: TypeAlias = Callable[[Rows], list[Any]]
Answer: TypeAlias = Callable[[Mapping[str, Any], Any], "dict[str, np.ndarray] | None"]
"""Inputs by name, and what draws the key of a random model, to outputs by name; None where an input does not fit."""

Leading: TypeAlias = list[tuple[Any, ...]]
"""One cell: the weights that an executable takes first; replacing its content swaps them between two calls."""


def on_host(call: Callable[..., Any], staging: Staging, packing: Packing, leading: Leading) -> Run:
    """Rows as NumPy arrays, in and out; `leading[0]` are the weights that `call` takes first.

    A call takes a slot of input buffers and gives it back, so that threads never write to the same one.
    """
    free: list[Any] = []
    take, give, fresh, unpack, asarray = free.pop, free.append, staging.slot, packing.unpacker(), np.asarray

    def staged_one(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        (buffer,), (array,) = slot
        buffer[...] = rows[0]
        result = call(*leading[0], array)
        results = [asarray(result)] if unpack is None else unpack(result)
        give(slot)
        return results

    def staged(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        buffers, arrays = slot
        for buffer, row in zip(buffers, rows):
            buffer[...] = row
        result = call(*leading[0], *arrays)
        results = [asarray(result)] if unpack is None else unpack(result)
        give(slot)
        return results

    def mixed(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        given = []
        for buffer, array, row in zip(*slot, rows):
            if buffer is not None:
                buffer[...] = row
            given.append(row if buffer is None else array)
        result = call(*leading[0], *given)
        results = [asarray(result)] if unpack is None else unpack(result)
        give(slot)
        return results

    def mixed_x64(rows: Rows) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return mixed(rows)

    if all(staging.staged):
        return staged_one if len(staging.staged) == 1 else staged
    return mixed_x64 if staging.needs_x64 else mixed


def by_name(run: Run, inputs: Sequence[tuple[str, tuple[int, ...], np.dtype]], outputs: Sequence[str], random: bool) -> Answer:
    """`run` for inputs and outputs by name; `inputs` are names, shapes and dtypes in order."""
    ndarray = np.ndarray
    if len(inputs) == len(outputs) == 1 and not random:
        ((name, shape, dtype),), (output,) = inputs, outputs

        def answer_one(given: Mapping[str, Any], draw: Any = None) -> dict[str, np.ndarray] | None:
            row = given.get(name)
            if type(row) is not ndarray or row.shape != shape or row.dtype != dtype:
                return None
            return {output: run((row,))[0]}

        return answer_one

    def answer(given: Mapping[str, Any], draw: Any = None) -> dict[str, np.ndarray] | None:
        rows = []
        for name, shape, dtype in inputs:
            row = given.get(name)
            if type(row) is not ndarray or row.shape != shape or row.dtype != dtype:
                return None
            rows.append(row)
        if random:
            rows.append(draw())
        return dict(zip(outputs, run(rows)))

    return answer


def never(given: Mapping[str, Any], draw: Any = None) -> None:
    """The answer of executables that take no NumPy arrays."""


def on_device(call: Callable[..., Any], leading: Leading) -> Run:
    """Rows as `jax.Array`s, in and out."""
    return lambda rows: list(call(*leading[0], *rows))


def lean_call(compiled: Any) -> Callable[..., Any]:
    """The compiled function without the Python frame around it (1 us), where this JAX has a way."""
    try:
        return compiled._executable.create_cpp_call(compiled._params) or compiled
    except (AttributeError, TypeError):
        return compiled
