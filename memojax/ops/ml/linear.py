"""Linear models."""

from __future__ import annotations

import numpy as np

from ..._types import GraphValue
from ..registry import op
from ._scores import ML, floats, labels, largest, matrix, transformed, two_scores


def _scores(
    X: GraphValue, coefficients: tuple[float, ...], intercepts: tuple[float, ...], n: int
) -> GraphValue:
    scores = floats(X) @ matrix(coefficients, n).T
    return scores + np.asarray(intercepts, np.float32) if intercepts else scores


@op("LinearRegressor", domain=ML)
def linear_regressor(
    X: GraphValue,
    *,
    coefficients: tuple[float, ...],
    intercepts: tuple[float, ...] = (),
    post_transform: str = "NONE",
    targets: int = 1,
) -> GraphValue:
    """An affine function. https://onnx.ai/onnx/operators/onnx_aionnxml_LinearRegressor.html"""
    return transformed(_scores(X, coefficients, intercepts, targets), post_transform)


@op("LinearClassifier", domain=ML)
def linear_classifier(
    X: GraphValue,
    *,
    coefficients: tuple[float, ...],
    intercepts: tuple[float, ...] = (),
    multi_class: int = 0,
    post_transform: str = "NONE",
    classlabels_ints: tuple[int, ...] = (),
    classlabels_strings: tuple[str, ...] = (),
) -> tuple[GraphValue, GraphValue]:
    """Labels, and scores from an affine function.

    As in ONNX Runtime, a single score with two labels becomes two: `1 - score` and `score`, or with the post
    transform LOGISTIC the sigmoids of `-score` and `score`.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html
    """
    n_labels = max(len(classlabels_ints), len(classlabels_strings))
    scores = _scores(X, coefficients, intercepts, len(intercepts) or n_labels)
    if scores.shape[1] > 1:
        return labels(largest(scores), classlabels_ints, classlabels_strings), transformed(
            scores, post_transform
        )
    index = (scores[:, 0] > 0).astype(np.int32)
    if n_labels != 2:
        return labels(index, (), ()), transformed(scores, post_transform)
    return labels(index, classlabels_ints, classlabels_strings), two_scores(scores, post_transform)
