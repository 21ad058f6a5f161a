"""Aliases shared by the whole package."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import IO, Any, TypeAlias

import jax
import numpy as np

Shape: TypeAlias = tuple[int, ...]
Dim: TypeAlias = int | str | None
"""A declared dimension: a number, a symbol, or unknown."""

Array: TypeAlias = np.ndarray | jax.Array
GraphValue: TypeAlias = Any
"""The value of a graph edge while tracing: an `Array`, a tuple (sequence), or None (absent)."""

Params: TypeAlias = Mapping[str, Array]
Arrays: TypeAlias = dict[str, Array]
Source: TypeAlias = "str | PathLike[str] | bytes | IO[bytes] | Any"
