"""Packs weights in the order in which the kernels read them: panels of adjacent columns."""

from __future__ import annotations

from typing import Any

import numpy as np

LANES = 16
"""Columns are padded to a multiple of this number."""


def padded(columns: int) -> int:
    """`columns`, rounded up to whole vectors."""
    return -(-columns // LANES) * LANES


def pack_matrix(matrix: Any, panel: int, xp: Any = np) -> Any:
    """[K, N] float32 to flat panels of `panel` columns, K rows each; zeros pad the last panel.

    `xp` is NumPy, or JAX's NumPy for a traced matrix.
    """
    columns = padded(matrix.shape[1])
    whole = xp.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))
    parts = [whole[:, start : start + panel].reshape(-1) for start in range(0, columns, panel)]
    return xp.concatenate(parts)


def pack_vector(vector: Any, xp: Any = np) -> Any:
    """[N] float32, padded with zeros; `xp` as in `pack_matrix`."""
    return xp.pad(vector.reshape(-1), (0, padded(vector.size) - vector.size))
