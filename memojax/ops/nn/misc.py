"""Dropout, Flatten and TfIdfVectorizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .._common import cast, flatten_to_2d, nx, scalar, traced
from ..registry import op


@op("Flatten")
def flatten(x, *, axis=1):
    """A matrix, split at `axis`. https://onnx.ai/onnx/operators/onnx__Flatten.html"""
    return flatten_to_2d(x, axis)


@op("Dropout", until=7)
@op("Dropout", since=7, until=10)
def dropout_7(x, *, ratio=0.5, is_test=0, consumed_inputs=None):
    """The input, as in inference, and a mask of its type. https://onnx.ai/onnx/operators/onnx__Dropout.html"""
    return x, nx.ones_like(x)


@op("Dropout", since=10, until=12)
def dropout_10(x, *, ratio=0.5):
    """The input, as in inference, and a mask. https://onnx.ai/onnx/operators/onnx__Dropout.html"""
    return x, np.ones(x.shape, np.bool_)


@op("Dropout", since=12, static=("training_mode",))
def dropout(x, ratio=None, training_mode=None, *, seed=None, key):
    """Zeros at random with `training_mode`, else the input; `seed` picks the stream, the model's key the draw.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    if training_mode is None or not scalar(training_mode):
        return x, np.ones(x.shape, np.bool_)
    ratio = 0.5 if ratio is None else cast(nx.reshape(ratio, ()), np.float32)
    if seed is not None:
        key = jax.random.fold_in(key, int(seed) & 0x7FFFFFFF)
    mask = jax.random.uniform(key, x.shape, np.float32) >= ratio
    return jnp.where(mask, traced(x) * cast(jnp.asarray(1 / (1 - ratio)), x.dtype), cast(0, x.dtype)), mask
