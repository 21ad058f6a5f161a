"""All calls for the injector to interrupt."""

from __future__ import annotations

from . import (
    interrupt_batches,
    interrupt_layers,
    interrupt_misses,
    interrupt_plans,
    interrupt_runtimes,
    interrupt_trackers,
)
from .interrupt_case import CASES

__all__ = [
    "CASES",
    "interrupt_batches",
    "interrupt_layers",
    "interrupt_misses",
    "interrupt_plans",
    "interrupt_runtimes",
    "interrupt_trackers",
]
