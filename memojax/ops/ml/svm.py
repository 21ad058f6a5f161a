"""Support vector machines."""

from __future__ import annotations

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._types import GraphValue
from .. import inline as rolled
from ..registry import op
from ._scores import ML, floats, labels, largest, matrix, transformed, two_scores


def _kernel(X: GraphValue, vectors: np.ndarray, kind: str, params: tuple[float, ...]) -> GraphValue:
    """Kernel values between rows of X and vectors: [batch, vectors]."""
    gamma, offset, degree = params or (0.0, 0.0, 0.0)
    if kind == "RBF":
        # |x|^2 - 2 x.v + |v|^2 would cancel where x is close to v.
        return jnp.exp(-gamma * jnp.square(X[:, None, :] - vectors).sum(-1))
    products = X @ vectors.T
    if kind == "LINEAR":
        return products
    shifted = gamma * products + offset
    return (
        jnp.tanh(shifted)
        if kind == "SIGMOID"
        else lax.integer_pow(shifted, int(degree))
        if degree == int(degree)
        else shifted**degree
    )


@op("SVMRegressor", domain=ML)
def svm_regressor(
    X: GraphValue,
    *,
    coefficients: tuple[float, ...],
    kernel_params: tuple[float, ...] = (),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: tuple[float, ...] = (),
    support_vectors: tuple[float, ...] = (),
) -> GraphValue:
    """Support vector regression, or +1 and -1 for `one_class`; as in ONNX Runtime without post transform.

    https://onnx.ai/onnx/operators/onnx_aionnxml_SVMRegressor.html
    """
    x = floats(X)
    kernels = _kernel(x, matrix(support_vectors, n_supports), kernel_type, kernel_params) if n_supports else x
    scores = kernels @ np.asarray(coefficients, np.float32)[:, None] + np.asarray(rho[:1], np.float32)
    return jnp.where(scores > 0, np.float32(1), np.float32(-1)) if one_class else scores


@op("SVMClassifier", domain=ML)
def svm_classifier(
    X: GraphValue,
    *,
    coefficients: tuple[float, ...],
    classlabels_ints: tuple[int, ...] = (),
    classlabels_strings: tuple[str, ...] = (),
    kernel_params: tuple[float, ...] = (),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: tuple[float, ...] = (),
    prob_b: tuple[float, ...] = (),
    rho: tuple[float, ...] = (),
    support_vectors: tuple[float, ...] = (),
    vectors_per_class: tuple[int, ...] = (),
) -> tuple[GraphValue, GraphValue]:
    """Labels and scores, or labels and probabilities with `prob_a`.

    Without support vectors the label is that of the largest score. Here ONNX Runtime differs: of two labels,
    it returns the second one if any score is positive.

    https://onnx.ai/onnx/operators/onnx_aionnxml_SVMClassifier.html
    """
    x, n = floats(X), max(len(classlabels_ints), len(classlabels_strings))
    if not sum(vectors_per_class):
        scores = x @ matrix(coefficients, n).T + np.float32(rho[0])
        return labels(largest(scores), classlabels_ints, classlabels_strings), transformed(
            scores, post_transform
        )
    kernels = _kernel(x, matrix(support_vectors, sum(vectors_per_class)), kernel_type, kernel_params)
    scores = kernels @ _pairwise(matrix(coefficients, n - 1), vectors_per_class) + np.asarray(rho, np.float32)
    # Each pair of classes votes for one of its two; the class with most votes wins.
    wins = np.zeros((len(rho), n, 2), np.float32)
    for k, (i, j) in enumerate(combinations(range(n), 2)):
        wins[k, i, 0] = wins[k, j, 1] = 1
    won = (scores > 0).astype(np.float32)
    index = largest(won @ wins[..., 0] + (1 - won) @ wins[..., 1])
    if prob_a:
        pairs = jax.nn.sigmoid(-(scores * np.asarray(prob_a, np.float32) + np.asarray(prob_b, np.float32)))
        scores = transformed(_coupled(jnp.clip(pairs, 1e-7, 1 - 1e-7), n), post_transform)
    elif n == 2:
        scores = two_scores(scores, post_transform, margin=post_transform == "NONE")
    else:
        scores = transformed(scores, post_transform)
    return labels(index, classlabels_ints, classlabels_strings), scores


def _pairwise(coefficients: np.ndarray, vectors_per_class: tuple[int, ...]) -> np.ndarray:
    """One column of coefficients for each pair of classes: [vectors, pairs]."""
    starts = np.cumsum([0, *vectors_per_class])
    columns = []
    for i, j in combinations(range(len(vectors_per_class)), 2):
        column = np.zeros(starts[-1], np.float32)
        column[starts[i] : starts[i + 1]] = coefficients[j - 1, starts[i] : starts[i + 1]]
        column[starts[j] : starts[j + 1]] = coefficients[i, starts[j] : starts[j + 1]]
        columns.append(column)
    return np.stack(columns, 1)


def _coupled(pairs: GraphValue, n: int) -> GraphValue:
    """Class probabilities from pairwise ones: Wu, Lin and Weng (2004), with libsvm's steps and stopping rule.

    https://www.csie.ntu.edu.tw/~cjlin/papers/svmprob/svmprob.pdf
    """
    first, second = np.array(list(combinations(range(n), 2))).T

    def one(pair: GraphValue) -> GraphValue:
        r = jnp.zeros((n, n), pair.dtype).at[first, second].set(pair).at[second, first].set(1 - pair)
        Q = jnp.where(np.eye(n, dtype=bool), jnp.square(r).sum(0), -r.T * r)

        def error(p: GraphValue) -> GraphValue:
            Qp = Q @ p
            return jnp.abs(Qp - p @ Qp).max()

        def sweep(state: tuple[GraphValue, GraphValue]) -> tuple[GraphValue, GraphValue]:
            p, step = state
            Qp = Q @ p
            pQp = p @ Qp
            for i in range(n):
                diff = (pQp - Qp[i]) / Q[i, i]
                pQp = (pQp + diff * (diff * Q[i, i] + 2 * Qp[i])) / jnp.square(1 + diff)
                Qp = (Qp + diff * Q[i]) / (1 + diff)
                p = p.at[i].add(diff) / (1 + diff)
            return p, step + 1

        start = jnp.full(n, 1 / n, pair.dtype), jnp.zeros((), np.int32)
        return rolled.while_loop(
            lambda state: (error(state[0]) >= 0.005 / n) & (state[1] < 100), sweep, start
        )[0]

    return jax.vmap(one)(pairs)
