"""How much a model computes for a row: floating point operations of its trace, counted without a compile."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from ..ops.inline import inlined
from ..xla.equations import bodies
from ..xla.flops import MULTIPLY, of_bodies, of_one
from ..xla.settings import own_settings
from .typed_model import TypedModel

_MOVES = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "transpose",
    ]
)
"""Operations that compute nothing; those on weights alone are done once, before any row comes."""


def flops_per_row(typed: TypedModel) -> float | None:
    """Floating point operations for one more row, by a trace of the model; None where that is not known.

    Products and convolutions count two for each multiplication, moves nothing, anything else one for each
    number that it gives. Of a loop whose end depends on data, one turn counts.
    """
    if typed.is_open:
        return None
    rows = typed.only_rows or 1
    try:
        return _of_jaxpr(_trace(typed, rows)) / rows
    except Exception:  # a model that cannot be traced says so when it is compiled
        return None


def _trace(typed: TypedModel, rows: int) -> Any:
    def run(params: Any, given: Any, key: Any) -> Any:
        drawn = jax.random.wrap_key_data(key, impl="threefry2x32") if typed.random else None
        with inlined():
            return typed.fn(params, given, drawn)

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), typed.params)
    given = [jax.ShapeDtypeStruct(spec.rows(rows), spec.dtype) for spec in typed.api.inputs]
    with own_settings():
        return jax.make_jaxpr(run)(abstract, given, jax.ShapeDtypeStruct((2,), np.uint32)).jaxpr


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: Any) -> float:
    name, given = eqn.primitive.name, eqn.params
    shapes = [getattr(out.aval, "shape", ()) for out in eqn.outvars]
    if name in MULTIPLY:
        return of_one(name, given, eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, shapes[0])
    if any(bodies(given)):
        return of_bodies(name, given, _of_jaxpr)
    return 0.0 if name in _MOVES else float(sum(map(math.prod, shapes)))
