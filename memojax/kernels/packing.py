"""Weights as the kernels read them: panels of neighbouring columns, one after the other."""

from __future__ import annotations

import numpy as np

LANES = 16
"""Columns are padded to a multiple of these."""


def padded(columns: int) -> int:
    """`columns`, rounded up to whole vectors."""
    return -(-columns // LANES) * LANES


def pack_matrix(matrix: np.ndarray, panel: int) -> np.ndarray:
    """[K, N] float32 to flat panels: each has `panel` columns (the last one the rest, padded with zeros) for each of K rows."""
    depth, columns = matrix.shape
    whole = np.zeros((depth, padded(columns)), np.float32)
    whole[:, :columns] = matrix
    parts = [whole[:, start : start + panel].reshape(-1) for start in range(0, whole.shape[1], panel)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def pack_vector(vector: np.ndarray) -> np.ndarray:
    """[N] float32, padded with zeros."""
    packed = np.zeros(padded(vector.size), np.float32)
    packed[: vector.size] = vector.reshape(-1)
    return packed
