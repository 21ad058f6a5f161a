"""The math family, split by kind of operator."""

from . import activation, along_axis, elementwise, linear, loss, signal

__all__ = ["activation", "along_axis", "elementwise", "linear", "loss", "signal"]
