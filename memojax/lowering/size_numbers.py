"""Fractions in a trace that depend on the number of rows, such as the 1/n of a hand-written mean.

Whole numbers do not count: bounds of indices depend on the number of rows in any file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def fractions_in(closed: ClosedJaxpr) -> tuple[float, ...]:
    """The floats that a trace has as literals or as constants of one value, in their order."""
    return tuple(_in_closed(closed))


def _in_closed(closed: ClosedJaxpr) -> Iterator[float]:
    for value in closed.consts:
        yield from _alike(value)
    yield from _in(closed.jaxpr)


def _in(jaxpr: Jaxpr) -> Iterator[float]:
    for equation in jaxpr.eqns:
        for operand in equation.invars:
            if isinstance(operand, Literal):
                yield from _alike(operand.val)
        for part in equation.params.values():
            for body in part if isinstance(part, (tuple, list)) else (part,):
                if isinstance(body, ClosedJaxpr):
                    yield from _in_closed(body)
                elif isinstance(body, Jaxpr):
                    yield from _in(body)


def _alike(value: Any) -> Iterator[float]:
    """The entry of a float array whose entries are all the same."""
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating):
        return
    array = np.asarray(value).astype(np.float64)
    if array.size and (array == array.flat[0]).all():
        yield float(array.flat[0])
