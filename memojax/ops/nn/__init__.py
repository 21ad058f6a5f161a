"""The nn family, split by kind of operator."""

from . import attention, conv, misc, norm, pool

__all__ = ["attention", "conv", "misc", "norm", "pool"]
