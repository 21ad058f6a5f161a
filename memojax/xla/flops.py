"""Floating point operations of a trace: a product or a convolution counts two for each multiplication."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .equations import bodies

MULTIPLY = frozenset({"dot_general", "conv_general_dilated"})
"""The primitives that multiply matrices or convolve."""


def of_products(name: str, params: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Operations of the products and convolutions of one equation, those of the traces that it runs included.

    Args:
        name: name of its primitive.
        params: its parameters.
        inputs: avals, or values with a shape.
        outputs: avals.
    """
    if name in MULTIPLY:
        return of_one(name, params, inputs[0].shape, inputs[1].shape, outputs[0].shape)
    return of_bodies(name, params, _products_of_jaxpr)


def of_one(
    name: str, params: Mapping[str, Any], left: Sequence[int], right: Sequence[int], made: Sequence[int]
) -> float:
    """Operations of one product or convolution (`MULTIPLY`) of `left` and `right`."""
    numbers = params["dimension_numbers"]
    if name == "dot_general":
        (over, _), _ = numbers
        return 2.0 * math.prod(made) * math.prod(left[axis] for axis in over)
    return 2.0 * math.prod(made) * math.prod(right) / max(right[numbers.rhs_spec[0]], 1)


def of_bodies(name: str, params: Mapping[str, Any], of_jaxpr: Callable[[Any], float]) -> float:
    """Operations of the traces that an equation runs: each turn of a scan, the larger branch of a condition.

    Of a loop whose end depends on data, one turn counts.
    """
    inner = [of_jaxpr(body) for body in bodies(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0.0) if name == "cond" else sum(inner)


def _products_of_jaxpr(jaxpr: Any) -> float:
    return sum(
        of_products(
            eqn.primitive.name,
            eqn.params,
            [var.aval for var in eqn.invars],
            [var.aval for var in eqn.outvars],
        )
        for eqn in jaxpr.eqns
    )
