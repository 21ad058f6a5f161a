"""The math family, split by what an operator does."""

from . import activation, along_axis, elementwise, linear, loss, signal

__all__ = ["activation", "along_axis", "elementwise", "linear", "loss", "signal"]
