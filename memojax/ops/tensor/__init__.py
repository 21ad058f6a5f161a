"""The tensor family, split by kind of operator."""

from . import cast, index, resize, shape

__all__ = ["cast", "index", "resize", "shape"]
