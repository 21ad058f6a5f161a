"""Reductions over the entries that a mask picks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._types import Shape

Reduction = Callable[[Any, Any, Shape, bool], Any]
"""(values, mask of the entries that count, axes, whether the axes stay with length 1) -> reduced values."""


def _sum_of(before: Callable[[Any], Any], after: Callable[[Any], Any] = lambda total: total) -> Reduction:
    def reduce(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
        picked = jnp.where(mask, before(values), jnp.zeros((), values.dtype))
        return after(jnp.sum(picked, axes, dtype=values.dtype, keepdims=keep))

    return reduce


def _mean(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError("ReduceMean of whole numbers that a mask picks is not supported: cast them first")
    count = jnp.sum(jnp.broadcast_to(mask, values.shape), axes, dtype=values.dtype, keepdims=keep)
    return _sum_of(lambda x: x)(values, mask, axes, keep) / count


def _product(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    return jnp.prod(
        jnp.where(mask, values, jnp.ones((), values.dtype)), axes, dtype=values.dtype, keepdims=keep
    )


def _extreme(function: Any, largest: bool) -> Reduction:
    def reduce(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
        if jnp.issubdtype(values.dtype, jnp.floating):
            neutral: Any = -jnp.inf if largest else jnp.inf
        else:
            limits = jnp.iinfo(values.dtype)
            neutral = limits.min if largest else limits.max
        return function(jnp.where(mask, values, jnp.asarray(neutral, values.dtype)), axes, keepdims=keep)

    return reduce


def _log_sum_exp(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    return jax.nn.logsumexp(
        values, axes, b=jnp.broadcast_to(mask, values.shape).astype(values.dtype), keepdims=keep
    )


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum_of(lambda x: x),
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extreme(jnp.max, True),
    "ReduceMin": _extreme(jnp.min, False),
    "ReduceL1": _sum_of(jnp.abs),
    "ReduceL2": _sum_of(jnp.square, jnp.sqrt),
    "ReduceSumSquare": _sum_of(jnp.square),
    "ReduceLogSum": _sum_of(lambda x: x, jnp.log),
    "ReduceLogSumExp": _log_sum_exp,
}
"""ONNX operator -> its reduction."""
