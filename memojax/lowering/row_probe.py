"""Find out by trial whether a model's rows influence each other.

The model runs on random rows, then on the same rows with one changed. If the outputs of another row differ,
rows mix. The rows in reverse show whether an answer depends on its place. Only models whose traces prove
nothing come here (`row_proof.py`), so the trials look for rare values, too: the numbers of the file itself,
for one, because rows often mix beyond a threshold.
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


SOME_ROWS = 5
"""Rows of a trial: with fewer ones, every second row, or the row before the last, could be the same one."""


def mixing_rows(
    inputs: Sequence[TensorSpec],
    computed: Sequence[str],
    n: int,
    run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    *,
    by_place: bool = True,
    numbers: Sequence[float] = (),
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
        numbers: numbers with which the model compares: rows at, above and below each are tried.
    """
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    for base, changes in _trials(numbers):
        rows = [base(rng, n, spec) for spec in inputs]
        before = [np.array(value) for value in run(rows)]
        if base is _normal and by_place:
            turned = run(
                [row if spec.shared else row[::-1].copy() for spec, row in zip(inputs, rows, strict=True)]
            )
            for name, a, b in zip(computed, before, turned, strict=True):
                if not _alike(a[::-1], np.asarray(b), _OTHER_PLACE):
                    found[name] = None
        for change in changes:
            for changed in _changed_rows(n, change):
                others = [row.copy() for row in rows]
                for spec, row in zip(inputs, others, strict=True):
                    if not spec.shared:
                        row[changed] = change(rng, len(changed), spec)
                after = run(others)
                kept = np.setdiff1d(np.arange(n), changed)
                for name, a, b in zip(computed, before, after, strict=True):
                    if not _alike(np.asarray(a)[kept], np.asarray(b)[kept], _SAME_PLACE):
                        found[name] = None
    return tuple(name for name in computed if name in found)


def unlike_alone(
    inputs: Sequence[TensorSpec],
    computed: Sequence[str],
    n: int,
    run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    alone: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
) -> tuple[str, ...]:
    """Names of the computed outputs in which a row among `n` has another answer than by itself.

    `run` takes `n` rows, and `alone` takes one.
    """
    rng = np.random.default_rng(0)
    rows = [_normal(rng, n, spec) for spec in inputs]
    together = [np.array(value) for value in run(rows)]
    found: dict[str, None] = {}
    for row in sorted({0, n - 1}):
        single = alone(
            [value if spec.shared else value[row : row + 1] for spec, value in zip(inputs, rows, strict=True)]
        )
        for name, a, b in zip(computed, together, single, strict=True):
            other = np.asarray(b)[0]
            # An entry for each agent of the call makes an element of another shape.
            if a[row].shape == other.shape and not _alike(a[row], other, _OTHER_PLACE):
                found[name] = None
    return tuple(name for name in computed if name in found)


def _changed_rows(n: int, change: _Change) -> list[list[int]]:
    """The first and the last row, each for itself: a running sum passes values on in one direction only.

    Unusual rows, if others are left to compare, change both in one run. All rows but the first become padding
    as well: a count of rows may pass its threshold only then.
    """
    ends = sorted({0, n - 1})
    if change is _normal or n < 3:
        return [[row] for row in ends]
    return [ends, [*range(1, n)]] if change is _zero else [ends]


def _normal(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
    """Usual rows."""
    return random_rows(rng, n, spec)


def _wide(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
    """Rows on both sides of more thresholds, where no unit is saturated."""
    return _times(random_rows(rng, n, spec), spec, 8)


def _extreme(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
    """Rows beyond most thresholds: large numbers, and masks that hide something."""
    shape = spec.rows(n)
    if _is_number(spec):
        return _cast(rng.standard_normal(shape) * _LARGE, spec)
    if is_mask(spec.name) or spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    return rng.integers(0, _LARGE_WHOLE, shape).astype(spec.dtype)


def _full(value: float) -> _Change:
    """Rows of one number; masks, and numbers that the input cannot hold, are usual rows."""

    def change(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
        whole = spec.dtype.kind in "iu"
        if is_mask(spec.name) or spec.dtype.kind not in "iufV" or (whole and not np.isfinite(value)):
            return random_rows(rng, n, spec)
        if whole:
            limits = np.iinfo(spec.dtype)
            return np.full(spec.rows(n), min(max(int(value), limits.min), limits.max), spec.dtype)
        return _cast(np.full(spec.rows(n), value), spec)

    return change


def _zero(rng: np.random.Generator, n: int, spec: TensorSpec) -> np.ndarray:
    """Rows of zeros, as padding has."""
    return np.zeros(spec.rows(n), spec.dtype)


_LARGE, _LARGE_WHOLE = 1e3, 100
_Change = Callable[[np.random.Generator, int, TensorSpec], np.ndarray]
_UNUSUAL = (_extreme, _zero, *map(_full, (np.nan, np.inf, -np.inf, -1.0, 1e6, -1e6)))
_MOST_NUMBERS = 6


def _trials(numbers: Sequence[float]) -> list[tuple[_Change, tuple[_Change, ...]]]:
    """How the rows are at first -> how some of them change."""
    near = [value + step * (1 + abs(value) / 2) for value in numbers[:_MOST_NUMBERS] for step in (0, 1, -1)]
    return [
        (_normal, (_normal, *_UNUSUAL, *map(_full, near))),
        (_wide, (_normal,)),
        (_zero, (_normal, _extreme)),
        (_extreme, (_zero,)),
    ]


def _is_number(spec: TensorSpec) -> bool:
    return jnp.issubdtype(spec.dtype, jnp.floating) and not is_mask(spec.name)


def _times(rows: np.ndarray, spec: TensorSpec, scale: float) -> np.ndarray:
    return _cast(rows * scale, spec) if _is_number(spec) else rows


def _cast(rows: np.ndarray, spec: TensorSpec) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(rows).astype(spec.dtype)


_SAME_PLACE, _OTHER_PLACE = (1e-5, 1e-6), (1e-3, 1e-4)
"""Largest differences, relative to each number and to the largest one.

A row that keeps its place has the same arithmetic. At another place, XLA may add its terms in another order.
"""


def _alike(before: np.ndarray, after: np.ndarray, close: tuple[float, float]) -> bool:
    """Whether results are the same. One that has become NaN counts as the same.

    A row of NaN spoils other rows by 0 * NaN, where no other value would reach them.
    """
    if before.dtype.kind not in "fcV":
        return bool(np.array_equal(before, after))
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    a, b = before.astype(wide), after.astype(wide)
    relative, absolute = close
    largest = np.abs(a[np.isfinite(a)]).max(initial=0)
    same = np.isclose(a, b, rtol=relative, atol=absolute * largest, equal_nan=True)
    return bool((same | np.isnan(b)).all())
