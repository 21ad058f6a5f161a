"""The tensor family, split by what an operator does."""

from . import cast, index, resize, shape

__all__ = ["cast", "index", "resize", "shape"]
