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

WIDE = 32
"""Channels from which a convolution is wide; YNNPACK computes 16 channels less well than 32."""

EIGEN_FROM = {False: 16e6, True: 64e6}
"""Operations of a call's convolutions from which Eigen takes less time, if the largest is narrow, or wide."""


def chosen(residual: Residual, options: Mapping[str, Any]) -> Candidate:
    """The way for `residual` on a CPU; `options` are XLA's without a choice.

    YNNPACK begins a convolution sooner, and Eigen shares many rows better among cores. Plans without
    convolutions run in order where that is known to pay.
    """
    if "CONVOLUTION" not in options.get(YNN, ""):
        return ORDERED
    work, channels = convolution_work(residual)
    return EIGEN_CONVOLUTIONS if work >= EIGEN_FROM[channels >= WIDE] else ORDERED


def convolution_work(residual: Residual) -> tuple[float, int]:
    """Floating point operations of all convolutions of one call, and the channels that the largest makes."""
    shapes = {number: aval.shape for number, aval in residual.avals.items()}
    works = [(0.0, 0)]
    for step in residual.steps:
        shapes.update((n, aval.shape) for n, aval in zip(step.outputs, step.avals, strict=True))
        if step.primitive.name == "conv_general_dilated":
            works.append(_work(step, shapes))
    return sum(work for work, _ in works), max(works)[1]


def _work(step: Step, shapes: Mapping[int, tuple[int, ...]]) -> tuple[float, int]:
    weights = step.inputs[1]
    window = shapes[weights] if isinstance(weights, int) else weights.value.shape
    channels = window[step.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(step.avals[0].shape) * math.prod(window) / max(channels, 1), channels
