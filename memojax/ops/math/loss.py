"""Losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .._common import cast, traced
from ..registry import op


@op("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(input, target, weight=None, *, ignore_index=None, reduction="mean"):
    """Weighted negative log-likelihood of `target`, with classes on axis 1; the mean divides by the weights.

    https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html
    """
    counted = jnp.ones(target.shape, bool) if ignore_index is None else traced(target) != ignore_index
    index = jnp.where(counted, target, 0)
    picked = jnp.take_along_axis(traced(input), jnp.expand_dims(index, 1), 1).squeeze(1)
    weights = cast(counted, input.dtype) if weight is None else jnp.where(counted, traced(weight)[index], 0)
    loss = jnp.where(counted, -picked * weights, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / weights.sum()


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(scores, labels, weights=None, *, ignore_index=None, reduction="mean"):
    """Negative log-likelihood of the softmax of `scores` over axis 1, and the log-softmax itself.

    https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html
    """
    log_prob = jax.nn.log_softmax(traced(scores), axis=1)
    return negative_log_likelihood_loss(
        log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction
    ), log_prob
