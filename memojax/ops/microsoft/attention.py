"""ONNX Runtime's forms of attention, RotaryEmbedding and EmbedLayerNormalization."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .._common import cast, ints, nx, traced
from ..nn.attention import rotary_embedding
from ..nn.norm import layer_normalization, wide
from ..registry import op
from ..tensor.index import InRange, take_by_data
from ._common import MICROSOFT

FILTER = -10000.0
"""Added to the scores of masked keys unless `mask_filter_value` says otherwise."""


@op("Attention", domain=MICROSOFT)
def attention(
    input: GraphValue,
    weights: GraphValue,
    bias: GraphValue = None,
    mask_index: GraphValue = None,
    past: GraphValue = None,
    attention_bias: GraphValue = None,
    past_sequence_length: GraphValue = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = FILTER,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] = (),
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
    n_outputs: int,
) -> GraphValue:
    """Self-attention, with the projection to queries, keys and values fused in.

    Raises:
        ValueError: the node has rotary embedding or a shared cache buffer, for ONNX Runtime's GPU kernels.
    """
    if do_rotary or past_present_share_buffer:
        raise ValueError(
            "do_rotary and past_present_share_buffer are not supported: export the model for CPU"
        )
    hidden = weights.shape[1]
    sizes = ints(qkv_hidden_sizes) or (hidden // 3,) * 3
    projected = nx.matmul(input, weights) if bias is None else nx.matmul(input, weights) + bias
    q, k, v = (_heads(part, num_heads) for part in nx.split(projected, np.cumsum(sizes)[:2], axis=-1))
    if past is not None:
        k, v = nx.concatenate((past[0], k), axis=2), nx.concatenate((past[1], v), axis=2)
    y = _flat(_attend(q, k, v, mask_index, attention_bias, scale, mask_filter_value, unidirectional)[0])
    return (y, nx.stack((k, v))) if n_outputs > 1 else y


@op("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: GraphValue,
    key: GraphValue = None,
    value: GraphValue = None,
    bias: GraphValue = None,
    key_padding_mask: GraphValue = None,
    attention_bias: GraphValue = None,
    past_key: GraphValue = None,
    past_value: GraphValue = None,
    past_sequence_length: GraphValue = None,
    cache_indirection: GraphValue = None,
    *,
    num_heads: int,
    mask_filter_value: float = FILTER,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[GraphValue, ...]:
    """Attention of projected queries, keys and values, which may be packed into one input, with a cache.

    Raises:
        ValueError: the node has a shared cache buffer, which is for ONNX Runtime's own beam search.
    """
    if past_sequence_length is not None or cache_indirection is not None:
        raise ValueError(
            "past_sequence_length and cache_indirection are not supported: export the model without beam "
            "search"
        )
    if query.ndim == 5:  # (batch, sequence, heads, 3, size)
        query, key, value = (nx.reshape(query[:, :, :, i], (*query.shape[:2], -1)) for i in range(3))
    elif key is not None and key.ndim == 5:  # (batch, sequence, heads, 2, size)
        key, value = (nx.reshape(key[:, :, :, i], (*key.shape[:2], -1)) for i in range(2))
    if bias is not None:
        size = query.shape[-1]
        query = query + bias[:size]
        key, value = (
            x + b if x is not None and x.ndim == 3 else x
            for x, b in ((key, bias[size : 2 * size]), (value, bias[2 * size :]))
        )
    q, k, v = (_heads(x, num_heads) if x is not None and x.ndim == 3 else x for x in (query, key, value))
    if past_key is not None:
        k, v = nx.concatenate((past_key, k), axis=2), nx.concatenate((past_value, v), axis=2)
    y, scores = _attend(q, k, v, key_padding_mask, attention_bias, scale, mask_filter_value, unidirectional)
    return _flat(y), k, v, scores


def _attend(
    q: GraphValue,
    k: GraphValue,
    v: GraphValue,
    mask: GraphValue,
    attention_bias: GraphValue,
    scale: float,
    mask_filter_value: float,
    unidirectional: int,
) -> tuple[GraphValue, GraphValue]:
    """The result, (batch, heads, queries, size), and the scores before softmax."""
    queries, keys = q.shape[2], k.shape[2]
    scores = jnp.einsum("bhqd,bhkd->bhqk", wide(traced(q)), wide(traced(k))) * (
        scale or 1 / math.sqrt(q.shape[-1])
    )
    added = [] if attention_bias is None else [wide(attention_bias)]
    if mask is not None:
        added.append(nx.where(_kept(mask, q.shape[0], keys), np.float32(0), np.float32(mask_filter_value)))
    scores = sum(added[1:], added[0]) + scores if added else scores
    if unidirectional:
        ahead = np.arange(keys)[None] > np.arange(queries)[:, None] + keys - queries
        scores = jnp.where(ahead, np.float32(np.finfo(np.float32).min), scores)
    y = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), wide(traced(v)))
    return cast(y, v.dtype), cast(scores, q.dtype)


def _kept(mask: GraphValue, batch: int, keys: int) -> GraphValue:
    """The keys that a mask keeps, in a shape that broadcasts against (batch, heads, queries, keys).

    A mask is (batch, keys) or (batch, queries, keys) of 0 and 1. Or it holds the length of each row, perhaps
    followed by the start of each row.

    Raises:
        ValueError: the mask has another shape.
    """
    if mask.ndim in (2, 3):
        return nx.reshape(mask, (mask.shape[0], 1, -1, mask.shape[-1])) != 0
    if mask.ndim != 1 or mask.size not in (batch, 2 * batch):
        raise ValueError(f"a mask of shape {list(mask.shape)} is not supported for a batch of {batch}")
    position, bounds = np.arange(keys)[None, None, None], nx.reshape(mask, (-1, batch, 1, 1, 1))
    inside = position < bounds[0]
    return inside if mask.size == batch else inside & (position >= bounds[1])


def _heads(x: GraphValue, num_heads: int) -> GraphValue:
    """(batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    return nx.swapaxes(nx.reshape(x, (*x.shape[:2], num_heads, -1)), 1, 2)


def _flat(x: GraphValue) -> GraphValue:
    return nx.reshape(nx.swapaxes(x, 1, 2), (x.shape[0], x.shape[2], -1))


@op("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_with_offset(
    input: GraphValue,
    position_ids: GraphValue,
    cos_cache: GraphValue,
    sin_cache: GraphValue,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> GraphValue:
    """Rotary embedding; a single position counts from the first token."""
    length = input.shape[2] if input.ndim == 4 else input.shape[1]
    if position_ids.ndim == 1:
        position_ids = nx.broadcast_to(position_ids + np.arange(length), (input.shape[0], length))
    heads = num_heads or (input.shape[-1] // (2 * cos_cache.shape[-1]) if input.ndim == 3 else 0)
    return rotary_embedding(
        input,
        cos_cache,
        sin_cache,
        position_ids,
        interleaved=interleaved,
        num_heads=heads,
        rotary_embedding_dim=rotary_embedding_dim,
        in_range=lambda *_, **__: False,
    )


@op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: GraphValue,
    segment_ids: GraphValue,
    word_embedding: GraphValue,
    position_embedding: GraphValue,
    segment_embedding: GraphValue,
    gamma: GraphValue,
    beta: GraphValue,
    mask: GraphValue = None,
    position_ids: GraphValue = None,
    *,
    epsilon: float = 9.999999960041972e-13,
    mask_index_type: int = 0,
    in_range: InRange,
) -> tuple[GraphValue, GraphValue, GraphValue]:
    """The normalized sum of word, position and segment embeddings, the length of each row, and the sum."""

    def embedded(table: GraphValue, ids: GraphValue, position: int) -> GraphValue:
        return take_by_data(table, ids, 0, functools.partial(in_range, position))

    positions: Any = (
        position_embedding[: input_ids.shape[1]]
        if position_ids is None
        else embedded(position_embedding, position_ids, 8)
    )
    total = embedded(word_embedding, input_ids, 0) + positions
    if segment_ids is not None:
        total = total + embedded(segment_embedding, segment_ids, 1)
    lengths = np.zeros(input_ids.shape[0], np.int32) if mask is None else cast(nx.sum(mask, axis=1), np.int32)
    return layer_normalization(total, gamma, beta, epsilon=epsilon)[0], lengths, total
