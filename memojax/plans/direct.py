"""The closures that serve NumPy calls of a plan that is one program of the kernels.

They run the program itself. The plan's executable is a call of the same program, and XLA's client would add
several microseconds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels.direct import Direct, Large, Slot, caller
from ..model.signature import ModelApi
from .dispatch import Answer, Meter, Rows, Run, Wanted, castable, checked
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
    take, give = free.pop, free.append
    large = Large(direct, specs, free[0])

    placed = large.placed if large else None

    def run(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        if slot.weights is not leading.values:
            slot = fresh()
        for number, buffer in slot.inputs:
            buffer[...] = rows[number]
        # The program reads arrays that are too large to copy from the caller, and writes them to new ones.
        made: Any = placed(slot, rows) if placed else None
        if call(slot.prepared):
            raise MemoryError(_NO_MEMORY)
        results = []
        for buffer in slot.outputs:
            result = next(made) if buffer is None else buffer.copy()
            result.setflags(write=False)
            results.append(result)
        give(slot)
        return results

    # What is too large to copy is cast by itself, as `Large` says.
    inputs = [
        Wanted(spec.name, shape, np.dtype(dtype), castable(np.dtype(dtype)))
        for spec, (shape, dtype) in zip(api.inputs, specs)
    ]
    return run, checked(run, inputs, outputs, random, meter)


_NO_MEMORY = "memojax's kernels found no memory for what lies between the layers of this batch"
