"""Gather states into rows by a compiled helper, if it was built; otherwise NumPy does the same, more slowly.

The helper reads the memory of Python's and NumPy's objects as CPython lays them out. `_as_expected` compares
each field that it reads with Python's answer for an array, before the helper is used. The helper does not run
with the free-threaded build, whose objects have another layout.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from ..model.signature import TensorSpec

log: logging.Logger = logging.getLogger("memojax")

LIBRARY: Path = Path(__file__).with_name("_rows.dylib" if sys.platform == "darwin" else "_rows.so")
_MOST_RANK = 8
_C_CONTIGUOUS = 1


class _Array(ctypes.Structure):
    _fields_ = (
        ("references", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("base", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p),
        ("flags", ctypes.c_int32),
    )


class _Python(ctypes.Structure):
    _fields_ = (
        ("item_of_list", ctypes.c_void_p),
        ("item_of_dict", ctypes.c_void_p),
        ("size_of_dict", ctypes.c_void_p),
        ("clear_error", ctypes.c_void_p),
        ("dict_types", ctypes.c_void_p * 2),
        ("array_type", ctypes.c_void_p),
    )


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_int64 * _MOST_RANK),
    )


class _Aim(ctypes.Structure):
    _fields_ = (
        ("python", ctypes.c_void_p),
        ("fields", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
    )


@final
class Gatherer:
    """Copies the arrays of states into rows, for inputs of fixed shapes."""

    def __init__(self, specs: Sequence[TensorSpec], state_type: type[Any]):
        """A gatherer for states that are a `dict` or a `state_type` with exactly these inputs.

        Raises:
            OSError: there is no compiled helper, or it does not take such inputs.
        """
        if any(not spec.is_fixed or spec.shared or len(spec.shape) > _MOST_RANK for spec in specs):
            raise OSError("the helper takes only inputs of fixed shapes")
        self._function = _opened()
        self._kept = [(spec.name, spec.dtype) for spec in specs]
        self._count = len(self._kept)
        self._python = _Python(*_functions(), (ctypes.c_void_p * 2)(id(dict), id(state_type)), id(np.ndarray))
        self._fields = (_Field * self._count)()
        for field, spec, (name, dtype) in zip(self._fields, specs, self._kept, strict=True):
            field.name, field.dtype = id(name), id(dtype)
            field.bytes = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
            field.rank = len(spec.shape)
            field.shape[: field.rank] = spec.shape

    def aim(self, rows: Sequence[np.ndarray]) -> Aim:
        """An `Aim` at rows `[capacity, *element_shape]`, one array for each input; it keeps them alive.

        The arrays must be C-contiguous and have the dtypes of the inputs.
        """
        for array, (_, dtype) in zip(rows, self._kept, strict=True):
            assert array.dtype == dtype
            assert array.flags.c_contiguous
        places = (ctypes.c_void_p * self._count)(*(array.__array_interface__["data"][0] for array in rows))
        place = _Aim(
            *map(ctypes.addressof, (self._python, self._fields)), self._count, ctypes.addressof(places)
        )
        return Aim(self._function, ctypes.addressof(place), (self, list(rows), places, place))


@final
class Aim:
    """Rows into which states are copied; the caller makes sure that there is room.

    A method returns False if a state needs a cast, a check or an error. Some rows may have been written then.
    """

    __slots__ = ("_function", "_kept", "_place")

    def __init__(self, function: Any, place: int, kept: Any):
        self._function, self._place, self._kept = function, place, kept

    def one(self, state: Any, at: int) -> bool:
        """Copy one state into the row `at`."""
        return self._function(self._place, state, -1, at) == 1

    def all(self, states: list[Any], first: int = 0) -> bool:
        """Copy states into the rows that begin at `first`."""
        return self._function(self._place, states, len(states), first) == 1


@functools.lru_cache(maxsize=256)
def gatherer(specs: tuple[TensorSpec, ...], state_type: type[Any]) -> Gatherer | None:
    """A gatherer for these inputs; None without the compiled helper."""
    try:
        return Gatherer(specs, state_type)
    except OSError:
        return None


def _functions() -> tuple[Any, ...]:
    python = ctypes.pythonapi
    wanted = (python.PyList_GetItem, python.PyDict_GetItemWithError, python.PyDict_Size, python.PyErr_Clear)
    return tuple(ctypes.cast(function, ctypes.c_void_p).value for function in wanted)


@functools.cache
def _library() -> Any:
    """The compiled function, or the reason why there is none, as text."""
    if os.environ.get("MEMOJAX_KERNELS") == "0":
        return "turned off by MEMOJAX_KERNELS=0"
    if not LIBRARY.is_file():
        return "not built"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this Python has another memory layout of objects"
    try:
        function = ctypes.PyDLL(str(LIBRARY)).memojax_gather
    except (OSError, AttributeError) as cause:
        return str(cause)
    if not _as_expected():
        return "this Python or NumPy has another memory layout of objects"
    number = ctypes.c_int64
    function.argtypes = [ctypes.c_void_p, ctypes.py_object, number, number]
    function.restype = number
    return function


def _opened() -> Any:
    found = _library()
    if isinstance(found, str):
        raise OSError(found)
    return found


def _as_expected() -> bool:
    """Whether arrays have the memory layout that the helper reads; all reads stay inside the objects."""
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    if ctypes.sizeof(_Array) > np.ndarray.__basicsize__:
        return False
    for array in (whole, whole[:, ::2], np.zeros((), np.int64)):
        seen = _Array.from_address(id(array))
        if (seen.type, seen.dtype, seen.rank) != (id(np.ndarray), id(array.dtype), array.ndim):
            return False
        if seen.data != array.__array_interface__["data"][0]:
            return False
        if [seen.shape[i] for i in range(array.ndim)] != list(array.shape):
            return False
        if bool(seen.flags & _C_CONTIGUOUS) != array.flags.c_contiguous:
            return False
    return True
