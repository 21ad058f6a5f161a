"""Post transforms, labels and rows of features, which classifiers and regressors share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .._common import cast, nx, traced

ML = "ai.onnx.ml"


def rows(X: GraphValue) -> jax.Array:
    """Features as a matrix; a vector is one row."""
    return jnp.atleast_2d(traced(X))


def floats(X: GraphValue) -> jax.Array:
    """Features as a float32 matrix."""
    return cast(rows(X), np.float32)


def matrix(values: Sequence[float], n_rows: int) -> np.ndarray:
    """An attribute that lists a float32 matrix row by row."""
    return np.asarray(values, np.float32).reshape(n_rows, -1)


def _softmax_zero(scores: GraphValue) -> GraphValue:
    """Softmax over the scores that are not 0."""
    top = scores.max(-1, keepdims=True)
    live = jnp.abs(scores) > 1e-7
    parts = jnp.where(live, jnp.exp(scores - top), scores * jnp.exp(-top))
    return parts / jnp.where(live, parts, 0).sum(-1, keepdims=True)


def _probit(scores: GraphValue) -> GraphValue:
    """Winitzki's approximation of the normal quantile, as in ONNX Runtime."""
    x = 2 * scores - 1
    log = jnp.log((1 - x) * (1 + x))
    v = 2 / (3.14159 * 0.147) + 0.5 * log
    return jnp.sign(x) * jnp.sqrt(jnp.sqrt(v * v - log / 0.147) - v) * 2**0.5


_TRANSFORMS: dict[str, Any] = {
    "NONE": lambda scores: scores,
    "LOGISTIC": jax.nn.sigmoid,
    "SOFTMAX": jax.nn.softmax,
    "SOFTMAX_ZERO": _softmax_zero,
    "PROBIT": _probit,
}


def transformed(scores: GraphValue, post_transform: str) -> GraphValue:
    """Scores after a post transform; for a single score, ONNX Runtime applies only PROBIT."""
    return (
        scores
        if scores.shape[-1] == 1 and post_transform != "PROBIT"
        else _TRANSFORMS[post_transform](scores)
    )


def two_scores(score: GraphValue, post_transform: str, margin: bool = False) -> GraphValue:
    """Scores of both classes, from the score of the second class, a single column.

    The first class gets the negative of a `margin`, else the complement to 1.
    """
    if post_transform == "LOGISTIC":
        return jax.nn.sigmoid(jnp.concatenate([-score, score], -1))
    score = transformed(score, post_transform)
    return jnp.concatenate([-score if margin and post_transform != "PROBIT" else 1 - score, score], -1)


def labels(index: GraphValue, ints: Sequence[int], strings: Sequence[str]) -> GraphValue:
    """Class labels at positions; the positions themselves if labels are strings."""
    if strings or list(ints) == list(range(len(ints))):
        return cast(index, np.int64)
    return traced(np.asarray(ints, np.int64)).at[index].get(mode="clip")


def largest(scores: GraphValue) -> GraphValue:
    """Position of each row's first largest score."""
    return nx.argmax(scores, axis=-1)
