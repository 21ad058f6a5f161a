"""Small outputs of one dtype leave an executable as one flat array: each further output would cost a call microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

LARGEST = 64 * 1024
"""Bytes of all outputs packed together; beyond, the copy costs more than the outputs."""


@dataclass(frozen=True)
class Packing:
    """How outputs are laid out.

    Attributes:
        shapes: shape of each output.
        groups: positions of the outputs that each result of the executable holds, one after the other.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]) -> Packing:
        """Pack the outputs of each dtype whose bytes are few."""
        groups: dict[Any, list[int]] = {}
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            groups.setdefault((np.dtype(dtype), index if _bytes(shape, dtype) > LARGEST else -1), []).append(index)
        packed = []
        for (dtype, _), members in groups.items():
            fits = len(members) > 1 and sum(_bytes(shapes[i], dtype) for i in members) <= LARGEST
            packed += [tuple(members)] if fits else [(i,) for i in members]
        return cls(tuple(map(tuple, shapes)), tuple(packed))

    def pack(self, outputs: Sequence[Any]) -> Any:
        """In the traced function: outputs to results; a lone result is not in a tuple."""
        results = [
            outputs[group[0]] if len(group) == 1 else jnp.concatenate([outputs[i].reshape(-1) for i in group]) for group in self.groups
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def unpack(self, results: Any) -> list[np.ndarray]:
        """What the executable gave, as one read-only, contiguous array per output, without a copy."""
        arrays: list[Any] = [None] * len(self.shapes)
        for group, result in zip(self.groups, [results] if len(self.groups) == 1 else results, strict=True):
            flat = np.asarray(result)
            if len(group) == 1:
                arrays[group[0]] = flat
                continue
            start = 0
            for index in group:
                shape = self.shapes[index]
                stop = start + int(np.prod(shape, dtype=np.int64))
                arrays[index] = flat[start:stop].reshape(shape)
                start = stop
        return arrays


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
