"""The ai.onnx.preview.training domain: optimiser steps, and gradients of a part of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._types import GraphValue
from ._common import cast, nx, traced
from .registry import op

_DOMAIN = "ai.onnx.preview.training"


@op("Adagrad", domain=_DOMAIN)
def adagrad(
    R: GraphValue,
    T: GraphValue,
    *inputs: GraphValue,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[GraphValue, ...]:
    """One Adagrad step, from tensors, gradients and squared sums to new tensors and squared sums.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adagrad.html
    """
    rate = R / (1 + cast(T, R.dtype) * decay_factor)

    def step(x: GraphValue, gradient: GraphValue, total: GraphValue) -> tuple[GraphValue, GraphValue]:
        gradient = norm_coefficient * x + gradient
        total = total + gradient * gradient
        return x - rate * gradient / (nx.sqrt(total) + epsilon), total

    return _each(step, inputs, 3)


@op("Adam", domain=_DOMAIN)
def adam(
    R: GraphValue,
    T: GraphValue,
    *inputs: GraphValue,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[GraphValue, ...]:
    """One Adam step, from tensors, gradients, first and second moments to new tensors and moments.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html
    """
    steps = cast(T, R.dtype)
    rate = nx.where(steps > 0, R * nx.sqrt(1 - beta**steps) / nx.where(steps > 0, 1 - alpha**steps, 1), R)

    def step(
        x: GraphValue, gradient: GraphValue, first: GraphValue, second: GraphValue
    ) -> tuple[GraphValue, GraphValue, GraphValue]:
        gradient = norm_coefficient * x + gradient
        first = alpha * first + (1 - alpha) * gradient
        second = beta * second + (1 - beta) * gradient * gradient
        return (1 - norm_coefficient_post) * (x - rate * first / (nx.sqrt(second) + epsilon)), first, second

    return _each(step, inputs, 4)


@op("Momentum", domain=_DOMAIN)
def momentum(
    R: GraphValue,
    T: GraphValue,
    *inputs: GraphValue,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[GraphValue, ...]:
    """One step with momentum, standard or Nesterov's, from tensors, gradients and momenta to new ones.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Momentum.html
    """
    fresh = nx.where(T > 0, cast(beta, R.dtype), cast(1, R.dtype))

    def step(x: GraphValue, gradient: GraphValue, velocity: GraphValue) -> tuple[GraphValue, GraphValue]:
        gradient = norm_coefficient * x + gradient
        velocity = alpha * velocity + fresh * gradient
        return x - R * (gradient + alpha * velocity if mode == "nesterov" else velocity), velocity

    return _each(step, inputs, 3)


@op("Gradient", domain=_DOMAIN)
def gradient(
    *inputs: GraphValue,
    xs: Sequence[str],
    y: str,
    zs: Sequence[str] = (),
    recompute: Callable[..., GraphValue],
) -> tuple[GraphValue, ...]:
    """Derivatives of the value named `y` by the values named `xs`, at `inputs`; `zs` are held constant.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Gradient.html
    """
    held = dict(zip(zs, inputs[len(xs) :], strict=True))

    def of(*values: GraphValue) -> jax.Array:
        return traced(recompute({**held, **dict(zip(xs, values, strict=True))}, y)).sum()

    points = [traced(value) for value in inputs[: len(xs)]]
    return tuple(jax.grad(of, argnums=tuple(range(len(points))))(*points))


def _each(step: Callable[..., tuple[Any, ...]], inputs: Sequence[GraphValue], kinds: int) -> tuple[Any, ...]:
    """`step` for each tensor; inputs and outputs are grouped by kind (all tensors, all gradients, ...)."""
    count = len(inputs) // kinds
    results = [step(*inputs[index::count]) for index in range(count)]
    return tuple(value for kind in zip(*results, strict=True) for value in kind)
