"""Tests whether rows of a plan influence each other, by changing one row of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ..xla.settings import own_settings
from .compiler import PlanCompiler
from .plan import Plan


def plan_mixing(compiler: PlanCompiler, plan: Plan) -> tuple[str, ...]:
    """Outputs in which one row influences another, for a plan of two or more rows; no call is counted."""
    typed = compiler.typed
    key = [np.zeros(2, np.uint32)] if typed.random else []

    def run(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = [*rows, *key]
        if compiler.host:
            return [np.array(value) for value in plan.executable.run(given)]
        with own_settings():
            arrays = [jax.device_put(array, compiler.device) for array in given]
        return [np.asarray(value) for value in plan.executable.run(arrays)]

    return typed.mixing_by(run, plan.size)
