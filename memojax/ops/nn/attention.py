"""Attention and RotaryEmbedding."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...model.tensor import dtype_of
from .._common import cast, is_static, nx, traced
from ..registry import op
from ..tensor.index import take_by_data
from .norm import wide

RAW, CAPPED, BIASED, PROBABILITIES = range(4)
"""Values of `qk_matmul_output_mode`."""


@op("Attention", since=23)
def attention(
    q,
    k,
    v,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal=0,
    kv_num_heads=None,
    left_window_size=-1,
    q_num_heads=None,
    qk_matmul_output_mode=0,
    right_window_size=-1,
    scale=None,
    softcap=0.0,
    softmax_precision=None,
):
    """Scaled dot-product attention, with cache, mask, causal limit and sliding window.

    Half-precision inputs are computed in float32.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    flat, dtype = q.ndim == 3, q.dtype
    if flat:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if past_key is not None:
        k, v = nx.concatenate((past_key, k), axis=2), nx.concatenate((past_value, v), axis=2)
    batch, heads, queries, size = q.shape
    groups, keys = k.shape[1:3]
    if heads % groups:
        raise ValueError(f"{heads} query heads are not a multiple of {groups} key and value heads")
    offset = 0 if past_key is None else past_key.shape[2]
    bias = _bias(
        attn_mask,
        nonpad_kv_seqlen,
        (queries, keys),
        offset,
        bool(is_causal),
        left_window_size,
        right_window_size,
    )

    scaled = wide(traced(q)) * (1 / math.sqrt(size) if scale is None else scale)
    grouped = jnp.reshape(scaled, (batch, groups, heads // groups, queries, size))
    scores = jnp.reshape(jnp.einsum("bgrqd,bgkd->bgrqk", grouped, wide(k)), (batch, heads, queries, keys))
    capped = softcap * jnp.tanh(scores / softcap) if softcap else scores
    biased, masked = _with_bias(capped, bias)
    precise = biased if softmax_precision is None else cast(biased, dtype_of(softmax_precision))
    weights = cast(jax.nn.softmax(precise, axis=-1), scores.dtype)
    if masked is not None:
        weights = jnp.where(masked, jnp.zeros_like(weights), weights)
    shared = jnp.reshape(weights, (batch, groups, heads // groups, queries, keys))
    y = jnp.reshape(
        jnp.einsum("bgrqk,bgkd->bgrqd", shared, cast(wide(v), weights.dtype)),
        (batch, heads, queries, v.shape[3]),
    )
    shown = (scores, capped, capped if bias is None else capped + bias, weights)[qk_matmul_output_mode]
    return cast(_flat(y) if flat else y, dtype), k, v, cast(shown, dtype)


def _heads(x: Any, count: int | None) -> Any:
    """(batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    batch, length, hidden = x.shape
    if not count or hidden % count:
        raise ValueError(
            f"{count} heads do not divide a hidden size of {hidden}: inputs of rank 3 need q_num_heads and "
            "kv_num_heads"
        )
    return nx.swapaxes(nx.reshape(x, (batch, length, count, hidden // count)), 1, 2)


def _flat(x: Any) -> Any:
    batch, heads, length, size = x.shape
    return nx.reshape(nx.swapaxes(x, 1, 2), (batch, length, heads * size))


def _bias(
    mask: Any, lengths: Any, shape: tuple[int, int], offset: Any, causal: bool, left: int, right: int
) -> Any:
    """The bias of the scores, which broadcasts against (batch, heads, queries, keys); None if there is none.

    It is static if the mask and the lengths are.
    """
    queries, keys = shape
    position = np.arange(keys)[None, None, None]
    allowed = []
    if lengths is not None:
        lengths = cast(nx.reshape(lengths, (-1, 1, 1, 1)), np.int32)
        allowed.append(position < lengths)
        offset = lengths - queries
    distance = position - np.arange(queries)[None, None, :, None] - offset
    allowed += (
        [distance <= 0] * causal + [distance >= -left] * (left >= 0) + [distance <= right] * (right >= 0)
    )
    if mask is not None:
        missing = [(0, 0)] * (mask.ndim - 1) + [(0, keys - mask.shape[-1])]
        boolean = mask.dtype == np.bool_
        mask = nx.pad(mask, missing, constant_values=False if boolean else -np.inf)
        mask = nx.reshape(mask, (1,) * (4 - mask.ndim) + mask.shape)
        if boolean:
            allowed.append(mask)
            mask = None
    if not allowed:
        return None if mask is None else wide(mask)
    both = functools.reduce(operator.and_, allowed)
    return nx.where(both, np.float32(0) if mask is None else wide(mask), np.float32(-np.inf))


def _with_bias(scores: jax.Array, bias: Any) -> tuple[jax.Array, Any]:
    """Scores plus bias, and the mask of queries that may attend to no key.

    The scores of such queries stay finite, since softmax would give NaN.
    """
    if bias is None:
        return scores, None
    masked = nx.max(bias, axis=-1, keepdims=True) == -np.inf
    if isinstance(masked, np.ndarray) and not masked.any():
        return scores + cast(bias, scores.dtype), None
    return scores + cast(nx.where(masked, np.float32(0), bias), scores.dtype), masked


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x,
    cos_cache,
    sin_cache,
    position_ids=None,
    *,
    interleaved=0,
    num_heads=None,
    rotary_embedding_dim=0,
    in_range,
):
    """Rotate pairs of features by angles that depend on the position.

    https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html
    """
    split = nx.reshape(x, (*x.shape[:2], num_heads, -1)) if x.ndim == 3 else x
    head_axis = 2 if x.ndim == 3 else 1
    if position_ids is not None:
        cos_cache, sin_cache = (
            cache[position_ids]
            if is_static(cache, position_ids)
            else take_by_data(cache, position_ids, 0, functools.partial(in_range, 3))
            for cache in (cos_cache, sin_cache)
        )
    cos, sin = nx.expand_dims(cos_cache, head_axis), nx.expand_dims(sin_cache, head_axis)
    turned, rest = (
        split[..., : rotary_embedding_dim or split.shape[-1]],
        split[..., rotary_embedding_dim or split.shape[-1] :],
    )
    half = turned.shape[-1] // 2
    if cos.shape[-1] != half:
        raise ValueError(f"cos_cache has {cos.shape[-1]} angles for each position, expected {half}")
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    pair = (cos * a - sin * b, sin * a + cos * b)
    turned = (
        nx.reshape(nx.stack(pair, axis=-1), turned.shape) if interleaved else nx.concatenate(pair, axis=-1)
    )
    return nx.reshape(nx.concatenate((turned, rest), axis=-1) if rest.shape[-1] else turned, x.shape)
