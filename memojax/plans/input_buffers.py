"""Input buffers: calls write rows into them, and the executable reads them in place or in one transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from ..rows.scratch import COPIED_BYTES, aligned_empty
from ..xla.settings import own_settings
from .packing import Packing

Slot: TypeAlias = "tuple[list[np.ndarray | None], list[Any]]"
"""A buffer for each input (None: the caller's array is passed), and the arguments of the executable."""

_SPARE_BYTES = 8 << 20
"""Bytes of an input up to which there is a buffer for rows that do not lie as XLA reads them.

XLA's client copies such rows on another thread, for which the call waits: 25 us more than a copy here."""


class Staging:
    """Makes the slots of a plan.

    On a synchronous CPU client the executable reads the buffers in place, through device arrays that alias
    them. For an accelerator the buffers of one dtype lie end to end in one argument (`packing` is not None).
    A slot may be overwritten once its call has results.

    Attributes:
        specs: shape and dtype of each input.
        packing: layout of inputs that lie end to end, or None.
        staged: which inputs are always copied into a buffer.
        spare: which others have a buffer, for rows that XLA cannot read where they lie.
        needs_x64: whether a call passes 64-bit arrays, which JAX would narrow by default.
        free: slots that no call uses.
    """

    __slots__ = ("_device", "free", "needs_x64", "packing", "spare", "specs", "staged")

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[Any],
        device: jax.Device,
        packing: Packing | None = None,
    ):
        """Make slots for inputs of these shapes and dtypes."""
        self._device = device
        self.packing: Packing | None = packing
        self.specs: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
            (shape, np.dtype(dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.specs]
        here = device.platform == "cpu"
        self.staged = [packing is not None or (here and 0 < size <= COPIED_BYTES) for size in sizes]
        self.spare = [packing is None and here and COPIED_BYTES < size <= _SPARE_BYTES for size in sizes]
        first = self.slot()
        # A client may copy instead of aliasing. Writing to the buffers would then have no effect, so plans
        # there use none.
        if packing is None and any(
            buffer is not None and not _aliases(buffer, array) for buffer, array in zip(*first, strict=True)
        ):
            self.staged: list[bool] = [False] * len(sizes)
            self.spare: list[bool] = [False] * len(sizes)
            first = self.slot()
        self.free: list[Slot] = [first]
        wide = [
            dtype.itemsize == 16 or (dtype.itemsize == 8 and dtype.kind in "iuf") for _, dtype in self.specs
        ]
        self.needs_x64: bool = any(
            is_wide and (packing or not staged) for is_wide, staged in zip(wide, self.staged, strict=True)
        )

    def slot(self) -> Slot:
        """Make a slot."""
        if self.packing is not None:
            return self._packed(self.packing)
        buffers = [
            aligned_empty(*spec) if staged or spare else None
            for spec, staged, spare in zip(self.specs, self.staged, self.spare, strict=True)
        ]
        with own_settings():
            return buffers, [
                b if b is None else jax.device_put(b, self._device, may_alias=True) for b in buffers
            ]

    def _packed(self, packing: Packing) -> Slot:
        buffers: list[Any] = [None] * len(self.specs)
        arrays = []
        for group in packing.groups:
            dtype = self.specs[group[0]][1]
            sizes = [math.prod(self.specs[index][0]) for index in group]
            whole = aligned_empty(self.specs[group[0]][0] if len(group) == 1 else (sum(sizes),), dtype)
            arrays.append(whole)
            stop = 0
            for index, size in zip(group, sizes, strict=True):
                start, stop = stop, stop + size
                buffers[index] = whole if len(group) == 1 else whole[start:stop].reshape(self.specs[index][0])
        return buffers, arrays


def _aliases(buffer: np.ndarray, array: Any) -> bool:
    return array.unsafe_buffer_pointer() == buffer.__array_interface__["data"][0]
