"""The code between rows and an executable: closures without inner frames, as every call pays for each."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from ..model.signature import ModelApi
from ..rows.scratch import is_readable
from ..xla.settings import with_own_settings
from .input_buffers import Staging
from .packing import Packing
from .weight_arguments import Leading

Rows: TypeAlias = Sequence[Any]
Run: TypeAlias = Callable[[Rows], list[Any]]
"""Takes one array per input (and the key of a random model), gives one array per output."""

Answer: TypeAlias = Callable[[Mapping[str, Any], Any], "dict[str, np.ndarray] | None"]
"""Takes inputs by name and a function that draws a random model's key, gives outputs by name.

It gives None, before anything runs, if an input does not fit."""


SAMPLE_EVERY = 16
"""One call in this many is timed, because reading the clock costs a percent of the smallest call."""

_HOT = 4


@dataclass
class Meter:
    """Counts the calls of a plan over all its executables, and keeps the seconds of recent timed calls.

    Attributes:
        counter: the number of the next call.
        when_hot: called once, after a few timed calls.
    """

    counter: itertools.count[int] = field(default_factory=itertools.count)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    when_hot: Callable[[], None] | None = None

    @property
    def tick(self) -> Callable[[], int]:
        """Count a call without a lock, and return its number from 0."""
        return self.counter.__next__

    @property
    def calls(self) -> int:
        """Number of calls."""
        # `next` would count this look as a call; only the repr shows the value without changing it.
        return int(repr(self.counter).removeprefix("count(").removesuffix(")"))

    def timed(self, run: Run, rows: Rows) -> list[Any]:
        """Run, and record the time."""
        started = time.perf_counter()
        results = run(rows)
        # An accelerator returns arrays before it has computed them.
        if results and isinstance(results[0], jax.Array):
            jax.block_until_ready(results)
        self.seconds.append(time.perf_counter() - started)
        if self.when_hot is not None and len(self.seconds) >= _HOT:
            # Cleared first, so the calls during `notify` do not notify again.
            notify, self.when_hot = self.when_hot, None
            notify()
        return results


def on_host(call: Callable[..., Any], staging: Staging, packing: Packing, leading: Leading) -> Run:
    """The closure for NumPy rows, in and out; `leading` holds the weight arguments of `call`.

    A call takes a slot of input buffers and returns it, so two threads never write to the same slot. If a
    call fails, it runs again under memojax's own settings, because the user's settings may refuse NaN, jit or
    transfers. Checking the settings first would cost every call.
    """
    # Locals of the closures, because an attribute look-up costs each call about 30 ns. `pop` and `append` are
    # atomic, so threads need no lock.
    take, give, fresh, unpack, asarray = (
        staging.free.pop,
        staging.free.append,
        staging.slot,
        packing.unpacker(),
        np.asarray,
    )

    again = with_own_settings(call)

    # The usual case of small batches: every input has a buffer.
    def staged(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        buffers, arrays = slot
        for buffer, row in zip(buffers, rows):
            buffer[...] = row  # pyright: ignore[reportOptionalSubscript]
        try:
            result = call(*leading.values, *arrays)
        except Exception:
            result = again(*leading.values, *arrays)
        results = [asarray(result)] if unpack is None else unpack(result)
        give(slot)
        return results

    # For batches with inputs that are too large to copy.
    def mixed(rows: Rows) -> list[np.ndarray]:
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        # XLA reads the caller's array in place, if that array is aligned and contiguous.
        given = []
        for buffer, array, row, always in zip(*slot, rows, staging.staged):
            if buffer is None or (not always and is_readable(row)):
                given.append(row)
            else:
                buffer[...] = row
                given.append(array)
        try:
            result = call(*leading.values, *given)
        except Exception:
            result = again(*leading.values, *given)
        results = [asarray(result)] if unpack is None else unpack(result)
        give(slot)
        return results

    # Only x64 mode passes 64-bit arrays unnarrowed. The switch costs time, so other models avoid it.
    def mixed_x64(rows: Rows) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return mixed(rows)

    def staged_x64(rows: Rows) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return staged(rows)

    # Chosen here once, so that no call asks.
    if all(staging.staged):
        return staged_x64 if staging.needs_x64 else staged
    return mixed_x64 if staging.needs_x64 else mixed


def by_name(
    run: Run,
    call: Callable[..., Any],
    staging: Staging,
    packing: Packing,
    leading: Leading,
    api: ModelApi,
    outputs: Sequence[str],
    random: bool,
    meter: Meter,
) -> Answer:
    """The closure for inputs and outputs by name, including the checks.

    A model with one input and one output gets a copy of `run`'s body, because a Python frame costs 1 us.
    """
    tick, timed, ndarray = meter.tick, meter.timed, np.ndarray
    take, give, fresh, unpack, asarray = (
        staging.free.pop,
        staging.free.append,
        staging.slot,
        packing.unpacker(),
        np.asarray,
    )
    inputs = [
        Wanted(spec.name, shape, spec.dtype, castable(spec.dtype) if all(staging.staged) else "")
        for spec, (shape, _) in zip(api.inputs, staging.specs)
    ]
    again = with_own_settings(call)

    def answer_one(given: Mapping[str, Any], draw: Any = None) -> dict[str, np.ndarray] | None:
        row = given.get(name)
        # The exact type: a subclass (matrix, masked array) may assign differently, so it takes the checked
        # path.
        if (
            type(row) is not ndarray
            or row.shape != shape
            or (row.dtype != dtype and row.dtype.kind not in kinds)
        ):
            return None
        if not tick() % SAMPLE_EVERY:
            return {output: timed(run, (row,))[0]}
        try:
            slot = take()
        except IndexError:
            slot = fresh()
        (buffer,), (array,) = slot
        buffer[...] = row  # pyright: ignore[reportOptionalSubscript]
        try:
            result = asarray(call(*leading.values, array))
        except Exception:
            result = asarray(again(*leading.values, array))
        # The slot is free once the result exists: on a synchronous client nothing reads the buffers any more.
        give(slot)
        return {output: result}

    # `answer_one` reads these names when it runs, after this check has shown that they exist.
    if (
        len(inputs) == len(outputs) == 1
        and all(staging.staged)
        and not staging.needs_x64
        and unpack is None
        and not random
    ):
        ((name, shape, dtype, kinds),), (output,) = inputs, outputs
        return answer_one
    return checked(run, inputs, outputs, random, meter)


class Wanted(NamedTuple):
    """An input of a plan.

    Attributes:
        name: of the input.
        shape: of its array, the batch axis included.
        dtype: of its array.
        kinds: letters of the kinds of dtypes (`np.dtype.kind`) that the copy into the plan's buffer casts.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kinds: str


def castable(dtype: np.dtype[Any]) -> str:
    """The kinds of dtypes that may become `dtype` without a check: floats become floats of another width.

    Environments give float64, and the cast by the copy costs a tenth of a separate one.
    """
    return "f" if dtype.kind == "f" else ""


def checked(run: Run, inputs: Sequence[Wanted], outputs: Sequence[str], random: bool, meter: Meter) -> Answer:
    """The closure that checks the arrays of `inputs`, and runs them in order."""
    tick, timed, ndarray = meter.tick, meter.timed, np.ndarray

    def answer(given: Mapping[str, Any], draw: Any = None) -> dict[str, np.ndarray] | None:
        rows = []
        for name, shape, dtype, kinds in inputs:
            row = given.get(name)
            # The exact type, as in `by_name`.
            if (
                type(row) is not ndarray
                or row.shape != shape
                or (row.dtype != dtype and row.dtype.kind not in kinds)
            ):
                return None
            rows.append(row)
        if random:
            # Last, because a call that does not fit must not use up a key.
            rows.append(draw())
        return dict(zip(outputs, run(rows) if tick() % SAMPLE_EVERY else timed(run, rows)))

    return answer


def never(given: Mapping[str, Any], draw: Any = None) -> None:
    """The `answer` of executables that take `jax.Array`s."""


def on_device(call: Callable[..., Any], leading: Leading) -> Run:
    """The closure for `jax.Array` rows, in and out."""
    again = with_own_settings(call)

    def run(rows: Rows) -> list[Any]:
        try:
            return list(call(*leading.values, *rows))
        except Exception:
            return list(again(*leading.values, *rows))

    return run


def lean_call(compiled: Any) -> Callable[..., Any]:
    """The compiled function without JAX's Python frame around it (1 us), if this JAX offers that."""
    try:
        return compiled._executable.create_cpp_call(compiled._params) or compiled
    except (AttributeError, TypeError):
        # These names are private to JAX. In a version without them, calls only take longer.
        return compiled
