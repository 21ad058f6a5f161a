"""A range of an array's rows as an array of its own, without an executable.

XLA would compile a slice for each number of rows, and keep it for good.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from typing import Any

import jax
import numpy as np

from .settings import own_settings

log: logging.Logger = logging.getLogger("memojax")

_ALIGNMENT = 16
"""Bytes to which XLA's GPU backend wants each argument aligned (`kEntryParameterAlignBytes`)."""

_PROBE_ROWS = 37
"""Rows of the array by which views on a device are checked: no power of two."""


def granule(row_bytes: int) -> int:
    """Views begin at multiples of this many rows, a power of two, so that XLA takes them as they are."""
    rows = 1
    while rows * row_bytes % _ALIGNMENT:
        rows *= 2
    return rows


def can_view(dtype: Any) -> bool:
    """Whether DLPack names this type of numbers."""
    return np.dtype(dtype).kind in "fiub" or dtype == jax.numpy.bfloat16


def view(array: jax.Array, start: int, stop: int) -> jax.Array:
    """Rows `[start, stop)` of an array on one device, which lie where they are (on a CPU: are copied).

    `start` is a multiple of the array's `granule`. The view keeps `array` alive.
    """
    if (start, stop) == (0, array.shape[0]):
        return array
    device = next(iter(array.devices()))
    with own_settings():
        if device.platform == "cpu":
            return jax.device_put(np.array(np.asarray(array)[start:stop]), device)
        return lent(array, start, stop)


def lent(array: jax.Array, start: int, stop: int) -> jax.Array:
    """The same through DLPack, which gives JAX the address of the first row, and the number of rows."""
    return jax.dlpack.from_dlpack(_Rows(array, start, stop))


@functools.cache
def has_views(device: jax.Device) -> bool:
    """Whether `view` works on a device: known rows are compared once, each way that they are read."""
    if device.platform == "cpu":
        return True
    try:
        rows = np.arange(_PROBE_ROWS * 4, dtype=np.float32).reshape(_PROBE_ROWS, 4)
        with own_settings():
            whole = jax.device_put(rows, device)
            part = lent(whole, 5, 22)
            right = (
                part.devices() == {device}
                and np.array_equal(np.asarray(part), rows[5:22])
                and np.array_equal(np.asarray(part + 1), rows[5:22] + 1)
                and np.array_equal(np.asarray(whole), rows)
            )
    except Exception as cause:  # another backend, another JAX: rows then go through the host
        log.info(
            "%s: no views of rows (%s); rows that fit no plan go through the host's memory", device, cause
        )
        return False
    if not right:
        log.warning("%s: views of rows give other rows; rows that fit no plan go through the host", device)
    return right


class _Rows:
    """Some rows of an array, for `from_dlpack`."""

    def __init__(self, array: Any, start: int, stop: int):
        self._array, self._start, self._stop = array, start, stop

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        array = self._array
        capsule = array.__dlpack__(stream=stream)
        tensor = _tensor_in(capsule)
        if tensor.ndim != array.ndim or tuple(tensor.shape[: array.ndim]) != array.shape:
            raise ValueError(f"this JAX describes an array of shape {array.shape} in an unknown way")
        row = math.prod(array.shape[1:])
        if tensor.strides and tensor.strides[0] != row:
            raise ValueError("the rows of this array do not lie one after the other")
        # JAX made the capsule for us alone, and frees it by other fields than these.
        tensor.data += self._start * row * array.dtype.itemsize
        tensor.shape[0] = self._stop - self._start
        return capsule


class _Tensor(ctypes.Structure):
    """DLPack's `DLTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_BEFORE = {b"dltensor": 0, b"dltensor_versioned": 32}
"""Name of a capsule -> bytes before the tensor in the struct that it holds."""


_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_held_by = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _tensor_in(capsule: Any) -> Any:
    name = _name_of(capsule)
    if name not in _BEFORE:
        raise ValueError(f"this JAX gives a DLPack capsule named {name!r}")
    return _Tensor.from_address(_held_by(capsule, name) + _BEFORE[name])
