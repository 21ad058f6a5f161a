"""Input buffers that an executable reads in place: written by NumPy, seen by XLA as device arrays, so that a call converts nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from .scratch import aligned_empty

LARGEST = 32 * 1024
"""Bytes; up to here a copy into a buffer (about 0.5 us and 50 us/MB) costs less than JAX's look at a NumPy array (3 us)."""


Slot: TypeAlias = "tuple[list[np.ndarray | None], list[jax.Array | None]]"


class Staging:
    """Makes slots: a buffer for each small input of a plan, with the device array that aliases it.

    Only for a synchronous client: when a call returns its inputs have been read, so that the buffers may be written again.
    """

    __slots__ = ("_device", "free", "needs_x64", "specs", "staged")

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any], device: jax.Device):
        """Slots for inputs of these shapes and dtypes.

        `free` are slots that no call holds; `staged` says which inputs have a buffer; `needs_x64`, whether a 64-bit input has none, so
        that JAX must be told not to cut it.
        """
        self._device = device
        self.free: list[Slot] = []
        self.specs = [(shape, np.dtype(dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
        small = [0 < math.prod(shape) * dtype.itemsize <= LARGEST for shape, dtype in self.specs]
        self.staged = [fits and device.platform == "cpu" for fits in small]
        if any(buffer is not None and not _aliases(buffer, array) for buffer, array in zip(*self.slot(), strict=True)):
            self.staged = [False] * len(small)
        wide = [dtype.itemsize == 16 or (dtype.itemsize == 8 and dtype.kind in "iuf") for _, dtype in self.specs]
        self.needs_x64 = any(is_wide and not staged for is_wide, staged in zip(wide, self.staged, strict=True))

    def slot(self) -> Slot:
        """Fresh buffers and their aliases; None for an input that is passed as it comes."""
        buffers = [aligned_empty(*spec) if staged else None for spec, staged in zip(self.specs, self.staged, strict=True)]
        with jax.enable_x64(True):
            return buffers, [b if b is None else jax.device_put(b, self._device, may_alias=True) for b in buffers]


def _aliases(buffer: np.ndarray, array: Any) -> bool:
    return array.unsafe_buffer_pointer() == buffer.__array_interface__["data"][0]
