"""A plan that is one program: NumPy calls run it without XLA's client, which takes microseconds."""

from __future__ import annotations

import ctypes
import hashlib
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, final, overload

import numpy as np

from ..plans.hoist import Residual
from ..rows.scratch import COPIED_BYTES, aligned_empty
from .library import Library, opened
from .program import memory_of
from .rewrite import is_call
from .threads import usable_cores


@final
@dataclass(frozen=True, eq=False)
class Direct:
    """A program and where its arguments and results come from and go.

    Attributes:
        program: its words.
        rows: which input of the plan each of its first arguments is.
        weights: the arguments behind them: an array, or which of the plan's leading arguments it is.
        results: shape and dtype of each result.
        outputs: for each output of the plan, the number of the result; `~number` is an input that is an
            output.
    """

    program: np.ndarray
    rows: tuple[int, ...]
    weights: tuple[np.ndarray | int, ...]
    results: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    outputs: tuple[int, ...]

    def memory_analysis(self) -> SimpleNamespace:
        """Bytes for code, temporaries and outputs, under the names that XLA has for them."""
        outputs = sum(_bytes(shape, dtype) for shape, dtype in self.results)
        return SimpleNamespace(
            generated_code_size_in_bytes=self.program.nbytes,
            temp_size_in_bytes=memory_of(self.program, usable_cores()),
            output_size_in_bytes=outputs,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.program, self.rows, self.weights, self.results, self.outputs)


def direct(residual: Residual, constants: Sequence[np.ndarray] | None) -> Direct | None:
    """`residual`, rewritten for the kernels, as one program; None where something else is left of it.

    `constants` are the values of its leading arguments; None leaves them arguments.
    """
    calls = [step for step in residual.steps if is_call(step)]
    if len(calls) != 1 or len(residual.steps) != 1:
        return None
    (call,) = calls
    made = {number: index for index, number in enumerate(call.outputs)}
    places = {number: index for index, number in enumerate(residual.inputs)}
    leading = {number: index for index, number in enumerate(residual.leading)}
    rows: list[int] = []
    weights: list[np.ndarray | int] = []
    for atom in call.inputs:
        if isinstance(atom, int) and atom in places:
            if weights:
                return None
            rows.append(places[atom])
        elif isinstance(atom, int):
            index = leading[atom]
            weights.append(index if constants is None else constants[index])
        else:
            weights.append(aligned(np.asarray(atom.value)))
    outputs: list[int] = []
    for atom in residual.outputs:
        if isinstance(atom, int) and atom in made:
            outputs.append(made[atom])
        elif (
            isinstance(atom, int)
            and atom in places
            and _bytes(residual.avals[atom].shape, residual.avals[atom].dtype) <= COPIED_BYTES
        ):
            outputs.append(~places[atom])
        else:
            return None
    if not set(made.values()) <= set(outputs):
        return None
    results = tuple((tuple(aval.shape), np.dtype(aval.dtype)) for aval in call.avals)
    return Direct(call.params["program"], tuple(rows), tuple(weights), results, tuple(outputs))


def aligned(array: np.ndarray) -> np.ndarray:
    """`array`, or a copy of it that begins on a cache line."""
    if array.flags.c_contiguous and array.__array_interface__["data"][0] % 64 == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class _Prepared(ctypes.Structure):
    _fields_ = (("program", ctypes.c_void_p), ("words", ctypes.c_int64), ("buffers", ctypes.c_void_p))


@final
class Slot:
    """Buffers for one call at a time, and the call.

    Attributes:
        inputs: numbers of the plan's inputs that are copied, and their buffers.
        outputs: for each output the buffer that it is copied from; None where each call has a new array.
        weights: the leading arguments whose places the call holds.
        prepared: the argument of the C function that `caller` gives.
        places: of the arguments and results that change from call to call.
    """

    __slots__ = ("_held", "inputs", "outputs", "places", "prepared", "weights")

    def __init__(self, direct: Direct, specs: Sequence[tuple[tuple[int, ...], Any]], leading: Any):
        """Buffers for inputs of `specs`, and for results, that are not too large to be copied."""
        needed = {*direct.rows, *(~number for number in direct.outputs if number < 0)}
        buffers = {number: _small(specs[number]) for number in sorted(needed)}
        results = [_small(spec) for spec in direct.results]
        self.inputs: list[tuple[int, np.ndarray]] = [
            (number, buffer) for number, buffer in buffers.items() if buffer is not None
        ]
        self.outputs: list[Any] = [
            results[number] if number >= 0 else buffers[~number] for number in direct.outputs
        ]
        self.weights: Any = leading
        weights = [np.asarray(leading[w]) if isinstance(w, int) else w for w in direct.weights]
        given = [*(buffers[number] for number in direct.rows), *weights, *results]
        self.places: Any = (ctypes.c_void_p * len(given))(*(_address(one) for one in given))
        call = _Prepared(direct.program.ctypes.data, direct.program.size, ctypes.addressof(self.places))
        self._held = call, weights, direct.program
        self.prepared: ctypes.c_void_p = ctypes.c_void_p(ctypes.addressof(call))


@final
class Large:
    """The arrays of a plan that calls do not copy."""

    def __init__(self, direct: Direct, specs: Sequence[tuple[tuple[int, ...], Any]], slot: Slot):
        """`slot` has buffers for the others."""
        copied = {number for number, _ in slot.inputs}
        self._rows = [
            (place, number, np.dtype(specs[number][1]))
            for place, number in enumerate(direct.rows)
            if number not in copied
        ]
        self._outputs = [n for n, buffer in zip(direct.outputs, slot.outputs) if buffer is None]
        first = len(direct.rows) + len(direct.weights)
        self._results = [(first + number, number, *direct.results[number]) for number in {*self._outputs}]

    def __bool__(self) -> bool:
        return bool(self._rows or self._results)

    def placed(self, slot: Slot, rows: Sequence[Any]) -> Iterator[np.ndarray]:
        """Point a slot to the caller's rows and to new results; gives the large outputs, after the call."""
        held, made = [], {}
        for place, number, dtype in self._rows:
            row = np.require(rows[number], dtype, ["C", "A"])
            held.append(row)
            slot.places[place] = _address(row)
        for place, number, shape, dtype in self._results:
            made[number] = result = np.empty(shape, dtype)
            slot.places[place] = _address(result)
        return self._given(held, made)

    def _given(self, held: list[np.ndarray], made: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
        """The outputs in order. Until they are taken, `held` keeps the rows that the program reads."""
        given: set[int] = set()
        for number in self._outputs:
            yield made[number].copy() if number in given else made[number]
            given.add(number)


def caller() -> Any:
    """The C function that runs a slot's prepared call; it gives 0, or another number without enough memory.

    Raises:
        RuntimeError: the kernels are not there.
    """
    library: Library | None = opened()
    if library is None:
        raise RuntimeError("this plan needs memojax's kernels, which are not there")
    return library.call


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.__array_interface__["data"][0]


def _small(spec: tuple[tuple[int, ...], Any]) -> np.ndarray | None:
    shape, dtype = spec
    return aligned_empty(shape, dtype) if _bytes(shape, dtype) <= COPIED_BYTES else None


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


SHARED_BYTES = 1 << 16
"""Bytes from which weights are stored apart from the programs that read them (`plans/serialized.py`)."""

_known: weakref.WeakValueDictionary[str, np.ndarray] = weakref.WeakValueDictionary()


def digest_of(array: np.ndarray) -> str:
    """A name for the shape, dtype and contents of an array."""
    made = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()


@overload
def shared(digest: str, array: np.ndarray) -> np.ndarray: ...
@overload
def shared(digest: str, array: np.ndarray | None = None) -> np.ndarray | None: ...
def shared(digest: str, array: np.ndarray | None = None) -> np.ndarray | None:
    """The one array of this digest in the process; it becomes `array`, aligned, if there is none."""
    held = _known.get(digest)
    if held is not None or array is None:
        return held
    return _known.setdefault(digest, aligned(array))


def _restored(
    program: np.ndarray,
    rows: tuple[int, ...],
    weights: tuple[np.ndarray | int, ...],
    results: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...],
    outputs: tuple[int, ...],
) -> Direct:
    """A pickled one; sizes of one model share their weights, as where they were made."""
    found = tuple(
        shared(digest_of(weight), weight)
        if isinstance(weight, np.ndarray) and weight.nbytes < SHARED_BYTES
        else weight
        for weight in weights
    )
    return Direct(program, rows, found, results, outputs)
