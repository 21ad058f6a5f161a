"""Packs small arrays of one dtype into one flat array, because each array of a call costs microseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKED_BYTES = 256 * 1024
"""Upper limit of bytes to pack; beyond it, the copy takes longer than separate arrays."""

DRAWN_BYTES = 1024
"""The same for outputs of a model that draws random numbers.

XLA computes packed numbers one by one, 11 ns for a normal draw; one more array costs 3 us.
"""


@dataclass(frozen=True)
class Packing:
    """Layout of outputs (or inputs) in the results (or arguments) of an executable.

    Attributes:
        shapes: shape of each output.
        groups: for each result of the executable, the positions of the outputs that it holds end to end.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any], limit: int = PACKED_BYTES
    ) -> Packing:
        """Pack the small outputs of each dtype, if all of them together have at most `limit` bytes."""
        groups: dict[Any, list[int]] = {}
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            groups.setdefault((np.dtype(dtype), index if _bytes(shape, dtype) > limit else -1), []).append(
                index
            )
        packed = []
        for (dtype, _), members in groups.items():
            fits = len(members) > 1 and sum(_bytes(shapes[i], dtype) for i in members) <= limit
            packed += [tuple(members)] if fits else [(i,) for i in members]
        return cls(tuple(map(tuple, shapes)), tuple(packed))

    def pack(self, outputs: Sequence[Any]) -> Any:
        """Outputs to results, in the traced function; a single result is not in a tuple."""
        results = [
            outputs[group[0]] if len(group) == 1 else jnp.concatenate([outputs[i].reshape(-1) for i in group])
            for group in self.groups
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def parts(self, results: Sequence[Any]) -> list[Any]:
        """Results to outputs, in the traced function."""
        found: list[Any] = [None] * len(self.shapes)
        for group, result in zip(self.groups, results, strict=True):
            stop = 0
            for index in group:
                start, stop = stop, stop + math.prod(self.shapes[index])
                found[index] = result if len(group) == 1 else result[start:stop].reshape(self.shapes[index])
        return found

    def results(self, dtypes: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each result, for outputs of these dtypes."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return [
            jax.ShapeDtypeStruct(
                self.shapes[group[0]] if len(group) == 1 else (sum(sizes[i] for i in group),),
                dtypes[group[0]],
            )
            for group in self.groups
        ]

    def unpacker(self) -> Callable[[Any], list[np.ndarray]] | None:
        """A function from results to read-only views, one per output; None for a single output."""
        if len(self.shapes) == 1:
            return None
        places: list[Any] = [None] * len(self.shapes)
        for number, group in enumerate(self.groups):
            stop = 0
            for index in group:
                start, stop = stop, stop + math.prod(self.shapes[index])
                places[index] = (number, slice(start, stop), self.shapes[index])
        asarray = np.asarray
        if len(self.groups) == 1:
            one = [(part, shape) for _, part, shape in places]

            def unpack_one(result: Any) -> list[np.ndarray]:
                flat = asarray(result)
                return [flat[part].reshape(shape) for part, shape in one]

            return unpack_one
        whole = [len(group) == 1 for group in self.groups]

        def unpack(results: Any) -> list[np.ndarray]:
            flats = [asarray(result) for result in results]
            return [
                flats[number] if whole[number] else flats[number][part].reshape(shape)
                for number, part, shape in places
            ]

        return unpack


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
