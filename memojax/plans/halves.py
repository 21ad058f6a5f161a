"""A batch as two halves that run at the same time, each on one core, by one executable for half of the rows.

XLA:CPU shares the work of single steps among threads, which sleep between the steps. Two halves need one
waiting thread per call. An odd batch has its middle row in both halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import ShapedArray

from ..lowering.typed_model import TypedModel
from ..rows.scratch import is_readable
from ..xla.draws import draws
from ..xla.equations import bodies
from ..xla.pair import Pair, pair
from ..xla.settings import with_own_settings
from .candidates import HALVES
from .dispatch import Meter, Rows, Run, Wanted, castable, checked, lean_call
from .draws import without_loops
from .hoist import Node, Residual, Step, literal
from .input_buffers import Staging
from .packing import Packing
from .plan import LINKED_NOW, Compiled, Executable
from .serialized import again_on
from .weight_arguments import Leading, WeightArguments


def half_of(size: int) -> int:
    """Rows of each half."""
    return -(-size // 2)


def can_halve(typed: TypedModel) -> bool:
    """Whether the rows of a model may run apart: they are known not to influence each other."""
    return bool(
        typed.model is not None
        and typed.independent
        and typed.only_rows is None
        and not any(spec.shared for spec in typed.api.inputs)
    )


FIRST_ROW = jax.ShapeDtypeStruct((), np.int32)
"""The last input of an executable that draws: the first row of its half."""


class Halves:
    """Makes the plans of one model that run in halves."""

    def __init__(
        self,
        typed: TypedModel,
        arguments: WeightArguments,
        rows: Callable[[int], list[jax.ShapeDtypeStruct]],
        packing: Callable[[int], Packing],
    ):
        """Prepare, without a client so far.

        Args:
            typed: the model, which `can_halve` allows.
            arguments: its weights.
            rows: gives the inputs of a number of rows, the key of a random model included.
            packing: gives the layout of the outputs of a number of rows.
        """
        self._typed = typed
        self._arguments = arguments
        self._rows = rows
        self._packing = packing

    @property
    def here(self) -> jax.Device:
        """The device for which a half is compiled."""
        return self._pair.here

    def beside(self, executable: Any) -> Any:
        """The same executable on the other device."""
        return again_on(executable, self._pair.beside)

    @property
    def _pair(self) -> Pair:
        found = pair()
        if found is None:
            raise LookupError("this process has no pair of clients")
        return found

    def of(self, size: int, whole: Residual, trace: Callable[[int], Residual]) -> Residual | None:
        """The trace for half of the rows; None if this process has no pair, or if numbers would differ."""
        half = half_of(size)
        if pair() is None or not _split_by_row(self._packing(half), self._packing(size), size):
            return None
        found = _halved(whole, trace(half), size)
        return without_loops(found) if found else None

    def executable(self, size: int, made: Compiled, nodes: Sequence[Node], meter: Meter) -> Executable:
        """The executable of `size` rows, whose weight arguments are `nodes`."""
        both, typed = self._pair, self._typed
        leading = self._arguments.place(nodes, devices=(both.here, both.beside))
        rows, whole = self._rows(half_of(size)), self._rows(size)
        has_first = len(jax.tree.leaves(made.executable.in_avals)) > len(nodes) + len(rows)
        run, staged = _on_two_cores(
            made, both, rows, size, self._packing(half_of(size)), leading, typed.random, has_first
        )
        inputs = [
            Wanted(spec.name, row.shape, row.dtype, castable(row.dtype) if staged else "")
            for spec, row in zip(typed.api.inputs, whole, strict=False)  # without the key
        ]
        answer = checked(run, inputs, typed.computed, typed.random, meter)
        if sum(math.prod(row.shape) * row.dtype.itemsize for row in whole) <= LINKED_NOW:
            run([np.zeros(row.shape, row.dtype) for row in whole])
        return Executable(made, run, answer, HALVES.name)


def _halved(whole: Residual, half: Residual, size: int) -> Residual | None:
    """`half`, the trace for half of the rows, with draws as `whole` makes them; None if they do not match.

    If the model draws, the result has one more input, int32[]: the first row of the half. Then each half
    draws for all rows, and takes its own.
    """
    drawn = [step for step in half.steps if step.primitive.name.startswith(_RANDOM)]
    models = [step for step in whole.steps if step.primitive.name.startswith(_RANDOM)]
    if any("callback" in step.primitive.name or any(map(draws, bodies(step.params))) for step in half.steps):
        return None
    if not drawn and not models:
        return half
    if len(drawn) != len(models):
        return None
    free = 1 + max((*half.avals, *(number for step in half.steps for number in step.outputs)))
    first, free = free, free + 1
    by_half = {id(step): model for step, model in zip(drawn, models, strict=True)}
    steps: list[Step] = []
    for step in half.steps:
        model = by_half.get(id(step))
        if model is None or _alike(step, model):
            steps.append(step)
            continue
        if not _draws_by_row(step, model, size):
            return None
        shape = model.avals[0].shape
        steps.append(replace(step, params=model.params, outputs=(free,), avals=model.avals))
        starts = (first, *[literal(np.int32(0))] * (len(shape) - 1))
        params = {"slice_sizes": step.avals[0].shape}
        steps.append(Step(lax.dynamic_slice_p, params, (free, *starts), step.outputs, step.avals))
        free += 1
    return replace(
        half,
        steps=tuple(steps),
        inputs=(*half.inputs, first),
        avals={**half.avals, first: ShapedArray(FIRST_ROW.shape, FIRST_ROW.dtype)},
    )


_RANDOM = ("random_", "threefry")


def _alike(step: Step, model: Step) -> bool:
    return (
        step.primitive is model.primitive
        and [aval.shape for aval in step.avals] == [aval.shape for aval in model.avals]
        and {name: str(value) for name, value in step.params.items()}
        == {name: str(value) for name, value in model.params.items()}
    )


def _draws_by_row(step: Step, model: Step, size: int) -> bool:
    """Whether two draws of one key differ in the number of rows alone."""
    if step.primitive is not model.primitive or step.primitive.name != "random_bits":
        return False
    mine, other = step.params["shape"], model.params["shape"]
    return (
        step.avals[0].shape == mine
        and model.avals[0].shape == other
        and mine[:1] == (half_of(size),)
        and other[:1] == (size,)
        and mine[1:] == other[1:]
        and step.params["bit_width"] == model.params["bit_width"]
    )


def _split_by_row(half: Packing, whole: Packing, size: int) -> bool:
    """Whether each output of the whole is the outputs of the halves, one after the other."""
    return all(
        mine[:1] == (half_of(size),) and other[:1] == (size,) and mine[1:] == other[1:]
        for mine, other in zip(half.shapes, whole.shapes, strict=True)
    )


def _on_two_cores(
    made: Compiled,
    pair: Pair,
    specs: Sequence[jax.ShapeDtypeStruct],
    size: int,
    packing: Packing,
    leading: Leading,
    random: bool,
    has_first: bool,
) -> tuple[Run, bool]:
    """The closure for NumPy rows in and out, and whether it copies all of them into buffers.

    Args:
        made: the executable on each device of `pair`.
        pair: the devices.
        specs: inputs of the executable for half of the rows, the key of a random model included.
        size: number of all rows.
        packing: layout of the executable's outputs.
        leading: the weight arguments for each device.
        random: whether the last of `specs` is a key.
        has_first: whether the executable takes the first row of its half.
    """
    calls = lean_call(made.executable), lean_call(made.beside)
    half = half_of(size)
    cut, both = size - half, 2 * half - size
    shapes, dtypes = [spec.shape for spec in specs], [spec.dtype for spec in specs]
    stagings = [Staging(shapes, dtypes, device) for device in (pair.here, pair.beside)]
    firsts = [
        [jax.device_put(np.int32(start), device)] if has_first else []
        for start, device in ((0, pair.here), (cut, pair.beside))
    ]
    count = len(specs) - random
    unpack, asarray, part = packing.unpacker(), np.asarray, pair.part

    def begun(number: int, values: Any, rows: Rows) -> tuple[Any, Any]:
        staging = stagings[number]
        try:
            slot = staging.free.pop()
        except IndexError:
            slot = staging.slot()
        given = []
        for buffer, array, row, always in zip(*slot, rows, staging.staged):
            if buffer is None or (not always and is_readable(row)):
                given.append(row)
            else:
                buffer[...] = row
                given.append(array)
        return calls[number](*values[number], *given, *firsts[number]), slot

    def run_both(rows: Rows) -> list[np.ndarray]:
        values = leading.values
        part()
        keys = list(rows[count:])
        later, its_slot = begun(1, values, [*(row[cut:] for row in rows[:count]), *keys])
        now, slot = begun(0, values, [*(row[:half] for row in rows[:count]), *keys])
        first = [asarray(now)] if unpack is None else unpack(now)
        second = [asarray(later)] if unpack is None else unpack(later)
        stagings[0].free.append(slot)
        stagings[1].free.append(its_slot)
        results = [np.concatenate((a, b[both:])) for a, b in zip(first, second)]
        for result in results:
            result.flags.writeable = False
        return results

    again = with_own_settings(run_both)

    def run(rows: Rows) -> list[np.ndarray]:
        try:
            return run_both(rows)
        except Exception:
            return again(rows)

    def run_x64(rows: Rows) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return run(rows)

    staged = all(all(staging.staged) for staging in stagings)
    return run_x64 if any(staging.needs_x64 for staging in stagings) else run, staged
