"""A pure function of JAX whose layers run in the kernels on CPUs.

JAX's transformations keep their meaning. Derivatives are those of the pure function, and `vmap` finds the
parts for the kernels anew in the mapped function. Other devices get the pure function.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..plans.hoist import Hoister, Residual, Step, values_of
from .ffi import bind
from .library import opened
from .rewrite import is_call, rewrite

log: logging.Logger = logging.getLogger("memojax")

Function = Callable[..., Any]


def with_kernels(function: Function) -> Function:
    """`function(params, inputs, key)`, whose layers run in the kernels; arguments and results are pytrees.

    Without kernels it is `function` itself.
    """
    if opened() is None:
        return function
    mapped = _with_vmap(function)

    @jax.custom_jvp
    def call(params: Any, inputs: Any, key: Any) -> Any:
        return mapped(params, inputs, key)

    @call.defjvp
    def _(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        return jax.jvp(function, primals, tangents)

    # Without a trace around it, a call would look for the kernels' parts each time.
    return jax.jit(call)


def _with_vmap(function: Function) -> Function:
    """`function` in the kernels; under `vmap`, the mapped function in the kernels."""

    @jax.custom_batching.custom_vmap
    def call(params: Any, inputs: Any, key: Any) -> Any:
        def kernels(*given: Any) -> Any:
            return _in_kernels(function, *given)

        return jax.lax.platform_dependent(params, inputs, key, cpu=kernels, default=function)

    @call.def_vmap
    def _(size: int, batched: Sequence[Any], params: Any, inputs: Any, key: Any) -> Any:
        axes = jax.tree.map(lambda one: 0 if one else None, batched)
        mapped = jax.vmap(function, in_axes=tuple(axes), axis_size=size)
        # The kernels take no weights that differ from element to element.
        alike = not any(jax.tree.leaves((batched[0], batched[2])))
        made = (_with_vmap(mapped) if alike else mapped)(params, inputs, key)
        return made, jax.tree.map(lambda _: True, made)

    return call


def _in_kernels(function: Function, params: Any, inputs: Any, key: Any) -> Any:
    """Trace `function`, with calls of the kernels in it as far as they can run it."""
    leaves, structure = jax.tree.flatten(params)
    rows, inner = jax.tree.flatten((inputs, key))

    def flat(*given: Any) -> Any:
        return function(
            jax.tree.unflatten(structure, given[: len(leaves)]),
            *jax.tree.unflatten(inner, given[len(leaves) :]),
        )

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves, *rows)
    residual = _rewritten(closed, leaves, rows)
    if residual is None:
        return flat(*leaves, *rows)
    made = residual(values_of(residual.nodes, leaves), rows, _bind)
    return jax.tree.unflatten(jax.tree.structure(shape), made)


def _rewritten(closed: Any, leaves: Sequence[Any], rows: Sequence[Any]) -> Residual | None:
    kernels = opened()
    if kernels is None:
        return None
    kernels.use_threads()
    try:
        hoister = Hoister(leaves)
        return rewrite(hoister.split(closed), _blocks(rows), hoister, kernels)
    except Exception as cause:  # A mistake in the rewriting must not keep a function from running.
        log.warning("no kernels for this function (%r): XLA uses its own", cause)
        return None


def _blocks(rows: Sequence[Any]) -> int:
    """The number of rows that the threads share out: the most frequent size of a first dimension."""
    # A program keeps track of each dimension, so another number costs speed, not answers.
    sizes = Counter(np.shape(row)[0] for row in rows if np.ndim(row) > 1)
    return max(1, sizes.most_common(1)[0][0]) if sizes else 1


def _bind(step: Step, inputs: list[Any]) -> list[Any]:
    return bind(step.params["program"], inputs, step.avals, held=True) if is_call(step) else step.bind(inputs)
