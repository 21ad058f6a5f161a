"""The closures that serve NumPy calls of a plan that is one program of the kernels.

They run the program itself. The plan's executable is a call of the same program, and XLA's client would add
several microseconds to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.direct import Direct, Large, Slot, caller
from ..model.signature import ModelApi
from .dispatch import SAMPLE_EVERY, Answer, Meter, Rows, Run
from .weight_arguments import Leading


def direct_calls(
    direct: Direct,
    specs: Sequence[tuple[tuple[int, ...], Any]],
    leading: Leading,
    api: ModelApi,
    outputs: Sequence[str],
    random: bool,
    meter: Meter,
) -> tuple[Run, Answer]:
    """The closures for rows in order, and for rows by name, with the checks.

    `specs` are the shapes and dtypes of the rows, of a random model's key too. A call takes a slot of buffers
    and returns it, so two threads never write to the same one.
    """

    def fresh() -> Slot:
        return Slot(direct, specs, leading.values)

    call = caller()
    free = [fresh()]
    take, give, numbers = free.pop, free.append, direct.outputs
    large = Large(direct, specs, free[0])

    # All arrays have a buffer: the usual case of small batches.
    def staged(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        if slot.weights is not leading.values:
            slot = fresh()
        for number, buffer in slot.inputs:
            buffer[...] = rows[number]
        if call(slot.prepared):
            raise MemoryError(_NO_MEMORY)
        results = []
        for buffer in slot.outputs:
            result = buffer.copy()
            result.setflags(write=False)
            results.append(result)
        give(slot)
        return results

    # Some are too large to copy: the program reads the caller's, and writes to new ones.
    def mixed(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        if slot.weights is not leading.values:
            slot = fresh()
        for number, buffer in slot.inputs:
            buffer[...] = rows[number]
        held, made = large.placed(slot, rows)
        if call(slot.prepared):
            raise MemoryError(_NO_MEMORY)
        del held
        results = []
        for number, buffer in zip(numbers, slot.outputs):
            if buffer is not None:
                result = buffer.copy()
            elif (result := made.pop(number, None)) is None:  # given already, as an output before
                result = results[numbers.index(number)].copy()
            result.setflags(write=False)
            results.append(result)
        give(slot)
        return results

    run = mixed if large else staged
    tick, timed, ndarray = meter.tick, meter.timed, np.ndarray
    inputs = [(spec.name, shape, np.dtype(dtype)) for spec, (shape, dtype) in zip(api.inputs, specs)]

    def answer(given: Mapping[str, Any], draw: Any = None) -> dict[str, np.ndarray] | None:
        rows = []
        for name, shape, dtype in inputs:
            row = given.get(name)
            # An exact type: a subclass (a matrix, a masked array) may define assignment otherwise. The
            # checked path takes it.
            if type(row) is not ndarray or row.shape != shape or row.dtype != dtype:
                return None
            rows.append(row)
        if random:
            rows.append(draw())
        return dict(zip(outputs, run(rows) if tick() % SAMPLE_EVERY else timed(run, rows)))

    return run, answer


_NO_MEMORY = "memojax's kernels found no memory for what lies between the layers of this batch"
