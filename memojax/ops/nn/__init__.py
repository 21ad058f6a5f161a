"""The nn family, split by what an operator does."""

from . import attention, conv, misc, norm, pool

__all__ = ["attention", "conv", "misc", "norm", "pool"]
