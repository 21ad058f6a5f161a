"""The choice among XLA's ways for a plan without kernels, by a model of their times.

`benchmarks/choice.py` measures the ways and fits the numbers here; its data lies beside it. Kernels need no
such model: where they run a part, they were faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..xla.options import YNN
from .candidates import EIGEN_CONVOLUTIONS, ORDERED, Candidate
from .hoist import Residual, Step

EIGEN_FROM = 20e6
"""Floating point operations of all convolutions of a call from which Eigen takes less time than YNNPACK."""


def chosen(residual: Residual, options: Mapping[str, Any]) -> Candidate:
    """The way for `residual` on a CPU; `options` are those that XLA has without a choice.

    YNNPACK begins a convolution sooner, and Eigen shares many rows better among cores. Plans without
    convolutions run in order where that is known to pay.
    """
    if "CONVOLUTION" not in options.get(YNN, ""):
        return ORDERED
    return EIGEN_CONVOLUTIONS if convolution_work(residual) >= EIGEN_FROM else ORDERED


def convolution_work(residual: Residual) -> float:
    """Floating point operations of all convolutions of one call."""
    shapes = {number: aval.shape for number, aval in residual.avals.items()}
    work = 0.0
    for step in residual.steps:
        shapes.update((n, aval.shape) for n, aval in zip(step.outputs, step.avals, strict=True))
        if step.primitive.name == "conv_general_dilated":
            work += _work(step, shapes)
    return work


def _work(step: Step, shapes: Mapping[int, tuple[int, ...]]) -> float:
    weights = step.inputs[1]
    window = shapes[weights] if isinstance(weights, int) else weights.value.shape
    made = window[step.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(step.avals[0].shape) * math.prod(window) / max(made, 1)
