"""Find out by trial whether a model's rows influence each other.

The model runs on random rows, then on the same rows with one changed. If the outputs of another row differ,
rows mix. The rows in reverse show whether an answer depends on its place.
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
    *,
    by_place: bool = True,
) -> tuple[str, ...]:
    """Names of the computed outputs in which one of `n` rows influences another, or its place matters.

    Args:
        inputs: the model's inputs.
        computed: names of the outputs that `run` returns, in order.
        n: rows, at least 2.
        run: runs the model on one array for each input. A random model must draw the same numbers at each
            call.
        by_place: whether to look at the places of rows: each place has draws, or a row of a constant, of its
            own in some models.
    """
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    for scale, changes in _TRIALS:
        rows = [_scaled(random_rows(rng, n, spec), spec, scale) for spec in inputs]
        before = [np.array(value) for value in run(rows)]
        if scale == 1 and by_place:
            turned = run(
                [row if spec.shared else row[::-1].copy() for spec, row in zip(inputs, rows, strict=True)]
            )
            for name, a, b in zip(computed, before, turned, strict=True):
                if not _alike(a[::-1], np.asarray(b)):
                    found[name] = None
        for change in changes:
            for changed in _changed_rows(n, change is _normal):
                others = [row.copy() for row in rows]
                for spec, row in zip(inputs, others, strict=True):
                    if not spec.shared:
                        row[changed] = change(rng, len(changed), spec, scale)
                after = run(others)
                kept = np.setdiff1d(np.arange(n), changed)
                for name, a, b in zip(computed, before, after, strict=True):
                    if not _alike(np.asarray(a)[kept], np.asarray(b)[kept]):
                        found[name] = None
    return tuple(name for name in computed if name in found)


def _changed_rows(n: int, apart: bool) -> list[list[int]]:
    """The first and the last row, each for itself: a running sum passes values on in one direction only.

    If they need not be `apart`, and others are left to compare, one run changes both.
    """
    ends = sorted({0, n - 1})
    return [[row] for row in ends] if apart or n < 3 else [ends]


def _normal(rng: np.random.Generator, n: int, spec: TensorSpec, scale: float) -> np.ndarray:
    """Rows like the others."""
    return _scaled(random_rows(rng, n, spec), spec, scale)


def _extreme(rng: np.random.Generator, n: int, spec: TensorSpec, scale: float) -> np.ndarray:
    """Rows beyond most thresholds: large numbers, and masks that hide something."""
    shape = spec.rows(n)
    if jnp.issubdtype(spec.dtype, jnp.floating) and not is_mask(spec.name):
        return _cast(rng.standard_normal(shape) * _LARGE, spec)
    if is_mask(spec.name) or spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    return rng.integers(0, _LARGE_WHOLE, shape).astype(spec.dtype)


def _zero(rng: np.random.Generator, n: int, spec: TensorSpec, scale: float) -> np.ndarray:
    """Rows of zeros, as padding has."""
    return np.zeros(spec.rows(n), spec.dtype)


def _not_a_number(rng: np.random.Generator, n: int, spec: TensorSpec, scale: float) -> np.ndarray:
    """Rows of NaN, if the input can hold them."""
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return np.full(spec.rows(n), np.nan, spec.dtype)
    return random_rows(rng, n, spec)


_LARGE, _LARGE_WHOLE = 1e3, 100
_Change = Callable[[np.random.Generator, int, TensorSpec, float], np.ndarray]
_TRIALS: tuple[tuple[float, tuple[_Change, ...]], ...] = (
    (1.0, (_normal, _extreme, _zero, _not_a_number)),
    # Normal rows can all fall on the flat side of a threshold or a saturated unit: larger ones reach further.
    (8.0, (_normal,)),
)
"""Scale of the rows -> how the first and the last one change."""


def _scaled(rows: np.ndarray, spec: TensorSpec, scale: float) -> np.ndarray:
    floating = jnp.issubdtype(spec.dtype, jnp.floating) and not is_mask(spec.name)
    return _cast(rows * scale, spec) if floating else rows


def _cast(rows: np.ndarray, spec: TensorSpec) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(rows).astype(spec.dtype)


def _alike(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether results are the same. One that has become NaN counts as the same.

    A row of NaN spoils other rows by 0 * NaN, where no other value would reach them.
    """
    if before.dtype.kind not in "fcV":
        return bool(np.array_equal(before, after))
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    a, b = before.astype(wide), after.astype(wide)
    same = np.isclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
    return bool((same | np.isnan(b)).all())
