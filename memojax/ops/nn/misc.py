"""Dropout, Flatten and TfIdfVectorizer; Shrink uses ONNX's function body."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .._common import cast, flatten_to_2d, nx, scalar, traced
from ..registry import op


@op("Flatten")
def flatten(x, *, axis=1):
    """The input as a matrix, split at `axis`. https://onnx.ai/onnx/operators/onnx__Flatten.html"""
    return flatten_to_2d(x, axis)


@op("Dropout", until=10)
def dropout_1(x, *, ratio=0.5, is_test=0, consumed_inputs=None):
    """The input, as in inference, and a mask of zeros.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    return x, nx.zeros_like(x)


@op("Dropout", since=10, until=12)
def dropout_10(x, *, ratio=0.5):
    """The input, and a mask of booleans. https://onnx.ai/onnx/operators/onnx__Dropout.html"""
    return x, np.zeros(x.shape, np.bool_)


@op(
    "Dropout",
    since=12,
    static=("training_mode",),
    random_if=lambda node: len(node.inputs) > 2 and bool(node.inputs[2]),
)
def dropout(x, ratio=None, training_mode=None, *, seed=None, key):
    """The input, with random elements set to zero in `training_mode`, and the mask of the kept ones.

    `seed` chooses a stream of random numbers, and the model's key the draw from it.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    if training_mode is None or not scalar(training_mode):
        return x, np.ones(x.shape, np.bool_)
    kept = 1 - (np.float32(0.5) if ratio is None else cast(nx.reshape(ratio, ()), np.float32))
    mask = jax.random.bernoulli(
        key if seed is None else jax.random.fold_in(key, seed & 0x7FFFFFFF), kept, x.shape
    )
    x = traced(x)
    return jnp.where(mask, x / cast(traced(kept), x.dtype), jnp.zeros_like(x)), mask


@op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    x,
    *,
    max_gram_length,
    max_skip_count,
    min_gram_length,
    mode,
    ngram_counts,
    ngram_indexes,
    pool_int64s=None,
    pool_strings=None,
    weights=None,
):
    """Counts of a pool's n-grams in each row of integers.

    https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html
    """
    if pool_int64s is None:
        raise ValueError(
            "TfIdfVectorizer on strings cannot run on XLA: map the tokens to integers, and use pool_int64s"
        )
    rows = nx.reshape(x, (-1, x.shape[-1]))
    pool = np.asarray(pool_int64s)
    starts = (*ngram_counts, len(pool))
    counts, first = [], 0
    for length, (start, end) in enumerate(itertools.pairwise(starts), 1):
        grams = pool[start:end].reshape(-1, length)
        wanted = ngram_indexes[first : first + len(grams)]
        first += len(grams)
        if len(grams) and min_gram_length <= length <= max_gram_length:
            counts.append((wanted, _occurrences(rows, cast(grams, x.dtype), max_skip_count)))
    y = jnp.zeros((len(rows), max(ngram_indexes) + 1), np.float32)
    for wanted, count in counts:
        y = y.at[:, np.array(wanted)].add(count)
    if mode == "IDF":
        y = cast(y > 0, np.float32)
    if mode != "TF" and weights:
        by_column = np.ones(y.shape[1], np.float32)
        by_column[list(ngram_indexes)] = weights
        y = y * by_column[None]
    return jnp.reshape(y, (*x.shape[:-1], -1))


def _occurrences(rows, grams, max_skip_count):
    """Matches (rows, count) of each of `grams` (count, length) in each row, at all allowed distances."""
    length = grams.shape[1]
    total = 0
    for distance in range(1, 2 if length == 1 else max_skip_count + 2):
        places = rows.shape[1] - distance * (length - 1)
        if places > 0:
            windows = nx.stack([rows[:, i * distance : i * distance + places] for i in range(length)], axis=2)
            same = nx.all(windows[:, :, None] == grams[None, None], axis=3)
            total = total + nx.sum(same, axis=1, dtype=np.float32)
    return total
