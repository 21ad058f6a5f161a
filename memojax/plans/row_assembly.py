"""Puts rows together for a plan of another size, and joins results of several plans, on their device.

Both take a few executables for each plan, for any number of rows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from ..model.signature import TensorSpec
from ..xla.options import compiled
from ..xla.settings import own_settings
from ..xla.views import can_view, granule, has_views, view
from .forbid import is_forbidden

_VIEWS = 4
"""Views that one executable puts together. The size of a view is a power of this number, in granules."""

_MOST_LAST_ROWS = 8
"""Largest granule that is put together on the device; each number of last rows needs an executable.

Larger granules, for rows of an odd number of bytes, go through the host.
"""


class _Kept:
    """Executables for one device, each compiled when it is first asked for."""

    def __init__(self, device: jax.Device):
        self._device = device
        self._made: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, run: Callable[..., Any], shapes: Callable[[], Sequence[Any]]) -> Any:
        """The executable of `run` for arguments of these shapes; None if its compile is forbidden."""
        made = self._made.get(key)
        if made is None and not is_forbidden():
            with self._lock:
                made = self._made.get(key) or self._compiled(run, shapes())
                self._made[key] = made
        return made

    def _compiled(self, run: Callable[..., Any], shapes: Sequence[Any]) -> Any:
        place = SingleDeviceSharding(self._device)
        with own_settings():
            lowered = jax.jit(run, in_shardings=place, out_shardings=place).lower(*shapes)
            return compiled(lowered, self._device)

    def __len__(self) -> int:
        return len(self._made)


class RowAssembly:
    """Makes the inputs of one plan from a range of the given rows, on their device.

    An executable takes arrays of one shape, so it cannot take any number of rows. A view needs no executable.
    Up to four overlapping views of equal size cover the range. One more view has the last rows, whose number
    is no multiple of the `granule`. One executable puts the views in their places, casts them, and fills up
    with zeros. Another one adds the last rows.
    """

    def __init__(self, specs: Sequence[TensorSpec], size: int, device: jax.Device):
        """Make `size` rows of each input of `specs` on `device`."""
        self._specs = [spec for spec in specs if not spec.shared]
        self._shared = [spec.shared for spec in specs]
        self._size = size
        self._kept = _Kept(device)
        self._device = device
        self._empty: list[jax.Array] | None = None

    def prepare(self) -> None:
        """Compile all executables for rows of the model's own dtypes; none if the device has no views."""
        dtypes = tuple(spec.dtype for spec in self._specs)
        if not has_views(self._device) or not self._viewable(dtypes):
            return
        unit = self._unit(dtypes)
        block = unit
        while block < self._size + 2 * unit:
            self._blocks(dtypes, block)
            block *= _VIEWS
        for tail in range(1, unit):
            self._tail(dtypes, tail)

    def __call__(self, rows: Sequence[Any], start: int, count: int) -> list[Any] | None:
        """`count` rows from `start` on, filled up to the plan's size with zeros; shared inputs stay as given.

        None without views, or if a compile is forbidden; nothing has run then.
        """
        sources = [row for row, shared in zip(rows, self._shared, strict=True) if not shared]
        dtypes = tuple(np.dtype(row.dtype) for row in sources)
        if not has_views(self._device) or not self._viewable(dtypes):
            return None
        made = self._made(sources, dtypes, start, count)
        if made is None:
            return None
        found = iter(made)
        return [row if shared else next(found) for row, shared in zip(rows, self._shared, strict=True)]

    def by_host(self, rows: Sequence[Any], start: int, count: int) -> list[Any]:
        """The same by NumPy, through the host's memory."""
        found = iter(self._specs)
        with own_settings():
            return [
                row if shared else self._by_numpy(next(found), row, start, count)
                for row, shared in zip(rows, self._shared, strict=True)
            ]

    def _by_numpy(self, spec: TensorSpec, row: Any, start: int, count: int) -> jax.Array:
        padded = np.zeros(spec.rows(self._size), spec.dtype)
        padded[:count] = np.asarray(row)[start : start + count]
        return jax.device_put(padded, self._device)

    def _made(self, sources: Sequence[Any], dtypes: Any, start: int, count: int) -> Sequence[Any] | None:
        unit, n, stop = self._unit(dtypes), sources[0].shape[0], start + count
        begin = start - start % unit
        # Views end at a granule, or at the end of the array.
        end = min(stop + -stop % unit, n - n % unit)
        tail = max(0, stop - end)
        block, whole = unit, end - begin
        while block * _VIEWS <= whole:
            block *= _VIEWS
        blocks = self._blocks(dtypes, block) if whole > 0 else None
        ends = self._tail(dtypes, tail) if tail else None
        if (whole > 0 and blocks is None) or (tail and ends is None):
            return None
        filled: Sequence[Any] = self._nothing() if whole <= 0 else ()
        if blocks is not None:
            places = [min(index * block, whole - block) for index in range(_VIEWS)]
            parts = [[view(row, begin + at, begin + at + block) for at in places] for row in sources]
            filled = _again(blocks, np.array([*places, start - begin, count], np.int32), parts)
        if ends is not None:
            parts = [view(row, end, stop) for row in sources]
            filled = _again(ends, np.array(end - start, np.int32), parts, list(filled))
        return filled

    def _nothing(self) -> list[jax.Array]:
        if self._empty is None:
            with own_settings():
                self._empty = [
                    jax.device_put(np.zeros(spec.rows(self._size), spec.dtype), self._device)
                    for spec in self._specs
                ]
        return self._empty

    def _viewable(self, dtypes: Sequence[np.dtype]) -> bool:
        return (
            all(
                math.prod(spec.shape) > 0 and can_view(dtype)
                for spec, dtype in zip(self._specs, dtypes, strict=True)
            )
            and self._unit(dtypes) <= _MOST_LAST_ROWS
        )

    def _unit(self, dtypes: Sequence[np.dtype]) -> int:
        return max(
            granule(math.prod(spec.shape) * dtype.itemsize)
            for spec, dtype in zip(self._specs, dtypes, strict=True)
        )

    def _blocks(self, dtypes: tuple[np.dtype, ...], block: int) -> Any:
        size, unit, specs = self._size, self._unit(dtypes), self._specs

        def run(places: jax.Array, parts: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
            shift, count = places[_VIEWS], places[_VIEWS + 1]
            made = []
            for spec, views in zip(specs, parts, strict=True):
                rows = jnp.zeros((size + 2 * unit, *spec.shape), views[0].dtype)
                for index, part in enumerate(views):
                    rows = jax.lax.dynamic_update_slice_in_dim(rows, part, places[index], 0)
                rows = jax.lax.dynamic_slice_in_dim(rows, shift, size, 0)
                kept = (jnp.arange(size) < count).reshape(size, *[1] * len(spec.shape))
                made.append(jnp.where(kept, rows, jnp.zeros((), rows.dtype)).astype(spec.dtype))
            return made

        def shapes() -> list[Any]:
            parts = [
                [jax.ShapeDtypeStruct((block, *spec.shape), dtype)] * _VIEWS
                for spec, dtype in zip(specs, dtypes, strict=True)
            ]
            return [jax.ShapeDtypeStruct((_VIEWS + 2,), np.int32), parts]

        return self._kept.get(("blocks", dtypes, block), run, shapes)

    def _tail(self, dtypes: tuple[np.dtype, ...], tail: int) -> Any:
        size, specs = self._size, self._specs

        def run(at: jax.Array, parts: Sequence[jax.Array], filled: Sequence[jax.Array]) -> list[jax.Array]:
            # Rows before the range are dropped by an index past the end; a negative one would count from the
            # end.
            places = jnp.where(at + jnp.arange(tail) < 0, size, at + jnp.arange(tail))
            return [
                rows.at[places].set(part.astype(spec.dtype), mode="drop")
                for spec, part, rows in zip(specs, parts, filled, strict=True)
            ]

        def shapes() -> list[Any]:
            parts = [
                jax.ShapeDtypeStruct((tail, *spec.shape), dtype)
                for spec, dtype in zip(specs, dtypes, strict=True)
            ]
            filled = [jax.ShapeDtypeStruct(spec.rows(size), spec.dtype) for spec in specs]
            return [jax.ShapeDtypeStruct((), np.int32), parts, filled]

        return self._kept.get(("tail", dtypes, tail), run, shapes)


class RowJoin:
    """Joins the results of several plans, on their device.

    Executables write them into an array whose number of rows is a power of two. The batch is a view of it.
    """

    def __init__(self, device: jax.Device):
        self._device = device
        self._kept = _Kept(device)

    def __call__(self, parts: Sequence[Sequence[Any]], places: Sequence[int], n: int) -> list[Any] | None:
        """One array of `n` rows for each output.

        Args:
            parts: the outputs of each plan.
            places: the first row of each part.
            n: number of rows.

        Returns:
            None without views, or if a compile is forbidden; nothing has run then.
        """
        if not has_views(self._device) or not all(can_view(array.dtype) for part in parts for array in part):
            return None
        room = (
            1 << max(at + part[0].shape[0] - 1 for at, part in zip(places, parts, strict=True)).bit_length()
        )
        made = [self._put(part, room, first=at == 0) for at, part in zip(places, parts, strict=True)]
        if any(run is None for run in made):
            return None
        filled: Sequence[Any] = ()
        for at, part, run in zip(places, parts, made, strict=True):
            filled = _again(run, np.array(at, np.int32), list(part), list(filled))
        return [view(rows, 0, n) for rows in filled]

    def by_host(self, parts: Sequence[Sequence[Any]], places: Sequence[int], n: int) -> list[Any]:
        """The same by NumPy, through the host's memory."""
        ends = [*places[1:], n]
        with own_settings():
            cut = [
                [np.asarray(array)[: end - at] for array in part]
                for part, at, end in zip(parts, places, ends, strict=True)
            ]
            return [jax.device_put(np.concatenate(pieces), self._device) for pieces in zip(*cut, strict=True)]

    def _put(self, part: Sequence[jax.Array], room: int, first: bool) -> Any:
        like = tuple((tuple(array.shape), np.dtype(array.dtype)) for array in part)

        def run(at: jax.Array, part: Sequence[jax.Array], filled: Sequence[jax.Array]) -> list[jax.Array]:
            if first:
                filled = [jnp.zeros((room, *shape[1:]), dtype) for shape, dtype in like]
            return [
                jax.lax.dynamic_update_slice_in_dim(rows, array, at, 0)
                for rows, array in zip(filled, part, strict=True)
            ]

        def shapes() -> list[Any]:
            arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in like]
            before = (
                [] if first else [jax.ShapeDtypeStruct((room, *shape[1:]), dtype) for shape, dtype in like]
            )
            return [jax.ShapeDtypeStruct((), np.int32), arrays, before]

        return self._kept.get((room, first, like), run, shapes)


def _again(run: Any, *given: Any) -> Any:
    with own_settings():
        return run(*given)
