"""The choice among XLA's ways for a plan without kernels, by a model of their times.

`benchmarks/choice.py` measures the ways and fits the numbers here; its data lies beside it. Kernels need no
such model: where they run a part, they were faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..xla.flops import of_one, of_products
from ..xla.options import VECTOR_WIDTH, YNN
from .candidates import EIGEN, EIGEN_CONVOLUTIONS, ORDERED, Candidate
from .hoist import Residual, Step

WIDE = 32
"""Channels from which a convolution is wide; YNNPACK computes 16 channels less well than 32."""

EIGEN_FROM = {False: 16e6, True: 64e6}
"""Operations of a call's convolutions from which Eigen takes less time, if the largest is narrow, or wide."""

PRODUCTS_FROM = 16e6
"""Operations of a call's largest product from which Eigen takes less time, if none is wider."""

MOST_COLUMNS = 512
"""Columns up to which that holds; YNNPACK shares a wider product better among threads."""

HALVES_FROM = 16e6
"""Operations of a call's products and convolutions from which two halves take less time, each on a core."""

_CORES = 2

SHORT = 32
"""Numbers in a row below which XLA writes out its loop, which takes longer to compile with wide vectors."""

_FUNCTIONS = frozenset({"erf", "erf_inv", "exp", "expm1", "log", "log1p", "logistic", "pow", "tanh"})


def pays_in_halves(residual: Residual, size: int, cores: int) -> bool:
    """Whether `size` rows take less time as two halves, on a machine with so many cores.

    Only two cores were measured; XLA shares the work of larger steps among more.
    """
    return size > 1 and cores == _CORES and all_work(residual) >= HALVES_FROM


def all_work(residual: Residual) -> float:
    """Floating point operations of all products and convolutions of a call, in each turn of its loops."""
    return sum(
        of_products(step.primitive.name, step.params, inputs, step.avals) for step, inputs in _fed(residual)
    )


def chosen(residual: Residual, options: Mapping[str, Any]) -> Candidate:
    """The way for `residual` on a CPU; `options` are XLA's without a choice.

    YNNPACK begins a convolution or a product sooner, and Eigen shares many rows better among cores. Plans
    without convolutions run in order where that is known to pay, and have narrow vectors for short rows.
    """
    work, channels = convolution_work(residual)
    if work:
        sound = "CONVOLUTION" in options.get(YNN, "")
        return EIGEN_CONVOLUTIONS if sound and work >= EIGEN_FROM[channels >= WIDE] else ORDERED
    work, columns = product_work(residual)
    way = EIGEN if work >= PRODUCTS_FROM and columns <= MOST_COLUMNS else ORDERED
    if VECTOR_WIDTH in options and has_short_rows(residual):
        return replace(way, options={**way.options, VECTOR_WIDTH: "256"})
    return way


def has_short_rows(residual: Residual) -> bool:
    """Whether all elementary functions of a call are of arrays with short rows."""
    steps = [step for step in residual.steps if step.primitive.name in _FUNCTIONS]
    return bool(steps) and all(step.avals[0].shape[-1:] < (SHORT,) for step in steps)


def product_work(residual: Residual) -> tuple[float, int]:
    """Floating point operations of the largest product of a call, and the columns of the widest one."""
    sizes = list(_products(residual))
    return max((work for work, _ in sizes), default=0.0), max((columns for _, columns in sizes), default=0)


def _products(residual: Residual) -> Iterator[tuple[float, int]]:
    for step, work, (left, right) in _multiplying(residual, "dot_general"):
        (over, _), (batch, _) = step.params["dimension_numbers"]
        inner = math.prod(left[axis] for axis in (*over, *batch))
        yield work, math.prod(right) // max(inner, 1)


def convolution_work(residual: Residual) -> tuple[float, int]:
    """Floating point operations of all convolutions of one call, and the channels that the largest makes."""
    works = [
        (work, window[step.params["dimension_numbers"].rhs_spec[0]])
        for step, work, (_, window) in _multiplying(residual, "conv_general_dilated")
    ]
    return sum((work for work, _ in works), 0.0), max(works, default=(0.0, 0))[1]


def _multiplying(residual: Residual, name: str) -> Iterator[tuple[Step, float, list[tuple[int, ...]]]]:
    """The steps of a primitive of `MULTIPLY`, with their operations and the shapes of their inputs."""
    for step, inputs in _fed(residual):
        if step.primitive.name == name:
            shapes = [one.shape for one in inputs]
            yield step, of_one(name, step.params, shapes[0], shapes[1], step.avals[0].shape), shapes


def _fed(residual: Residual) -> Iterator[tuple[Step, list[Any]]]:
    """The steps, with their inputs: avals, or values with a shape."""
    avals = dict(residual.avals)
    for step in residual.steps:
        avals.update(zip(step.outputs, step.avals, strict=True))
        yield step, [avals[atom] if isinstance(atom, int) else atom.value for atom in step.inputs]
