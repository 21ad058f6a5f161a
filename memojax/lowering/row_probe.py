"""Find out by trial whether a model's rows influence each other.

The model runs on random rows, then on the same rows with one changed. If the outputs of another row differ,
rows mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from ..model.exporter_names import is_mask
from ..model.signature import TensorSpec


def random_rows(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
    """Random values for one input: `[n, *element_shape]`, or `element_shape` for a shared input.

    Floats are standard normal, whole numbers are 0 or 1, and masks are all ones.
    """
    shape = spec.rows(n)
    if is_mask(spec.name):
        return np.ones(shape, spec.dtype)
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def mixing_rows(
    inputs: Sequence[TensorSpec],
    computed: Sequence[str],
    n: int,
    run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
) -> tuple[str, ...]:
    """Names of the computed outputs in which one of `n` rows influences another.

    Args:
        inputs: the model's inputs.
        computed: names of the outputs that `run` returns, in order.
        n: rows, at least 2.
        run: runs the model on one array for each input. A random model must draw the same numbers at each
            call.
    """
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    # Normal rows can all fall on the flat side of a threshold or a saturated unit: larger ones reach further.
    for scale in (1.0, 8.0):
        rows = [_scaled(random_rows(rng, n, spec), spec, scale) for spec in inputs]
        before = [np.array(value) for value in run(rows)]
        # The first and the last row: a running sum passes values on in one direction only.
        for changed in {0, n - 1}:
            others = [row.copy() for row in rows]
            for spec, row in zip(inputs, others, strict=True):
                if not spec.shared:
                    row[changed] = _scaled(random_rows(rng, 1, spec), spec, scale)[0]
            after = run(others)
            kept = np.arange(n) != changed
            for name, a, b in zip(computed, before, after, strict=True):
                if not _alike(np.asarray(a)[kept], np.asarray(b)[kept]):
                    found[name] = None
    return tuple(name for name in computed if name in found)


def _scaled(rows: np.ndarray, spec: TensorSpec, scale: float) -> np.ndarray:
    floating = jnp.issubdtype(spec.dtype, jnp.floating) and not is_mask(spec.name)
    return (rows * scale).astype(spec.dtype) if floating else rows


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind not in "fcV":
        return bool(np.array_equal(a, b))
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    return bool(np.allclose(a.astype(wide), b.astype(wide), rtol=1e-3, atol=1e-4, equal_nan=True))
