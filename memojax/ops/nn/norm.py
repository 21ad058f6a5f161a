"""Normalisation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, normalize_axis, nx
from ..registry import op
from .conv import per_channel


def _wide(*values: Any) -> Any:
    """Half-precision values as float32, for statistics."""
    wide = tuple(v if v is None or jnp.finfo(v.dtype).bits >= 32 else cast(v, np.float32) for v in values)
    return wide if len(wide) > 1 else wide[0]


def _moments(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    mean = nx.mean(x, axis=axes, keepdims=True)
    return mean, nx.mean(nx.square(x - mean), axis=axes, keepdims=True)


@op("LayerNormalization", since=17)
def layer_normalization(x, scale, b=None, *, axis=-1, epsilon=1e-5, stash_type=1, n_outputs):
    """Zero mean and unit variance over the axes from `axis`, then scale and shift; statistics in float32 or wider.

    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
    """
    wide, scale, b = _wide(x, scale, b)
    mean, variance = _moments(wide, tuple(range(normalize_axis(axis, x.ndim), x.ndim)))
    inverse = nx.reciprocal(nx.sqrt(variance + epsilon))
    y = _scaled(wide - mean, inverse, scale, b)
    return (cast(y, x.dtype), cast(mean, np.float32), cast(inverse, np.float32))[:n_outputs]


def _scaled(centered: Any, inverse: Any, scale: Any, b: Any) -> Any:
    rank = centered.ndim
    y = centered * inverse * nx.reshape(scale, (1,) * (rank - scale.ndim) + scale.shape)
    return y if b is None else y + nx.reshape(b, (1,) * (rank - b.ndim) + b.shape)


@op("BatchNormalization", since=14)
def batch_normalization(x, scale, b, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    """Normalise each channel by given statistics, or by the batch's own with `training_mode`.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if not training_mode:
        return _normalized(x, scale, b, mean, var, epsilon)
    own_mean, own_var = _batch_moments(x)
    y = _normalized(x, scale, b, own_mean, own_var, epsilon)
    return y, cast(_mixed(mean, own_mean, momentum), mean.dtype), cast(_mixed(var, own_var, momentum), var.dtype)


@op("BatchNormalization", until=14)
def batch_normalization_1(
    x, scale, b, mean, var, *, epsilon=1e-5, momentum=0.9, spatial=1, is_test=0, consumed_inputs=None, n_outputs
):  # fmt: skip
    """As from version 14, but trains where it has more than one output; with `spatial` 0, statistics per element.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if n_outputs == 1 or is_test:
        return _normalized(x, scale, b, mean, var, epsilon, bool(spatial))
    own_mean, own_var = _batch_moments(x, bool(spatial))
    y = _normalized(x, scale, b, own_mean, own_var, epsilon, bool(spatial))
    running = cast(_mixed(mean, own_mean, momentum), x.dtype), cast(_mixed(var, own_var, momentum), x.dtype)
    return y, *running, cast(own_mean, x.dtype), cast(own_var, x.dtype)


def _batch_moments(x: Any, spatial: bool = True) -> tuple[Any, Any]:
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    mean, variance = _moments(_wide(x), axes)
    return nx.squeeze(mean, axes), nx.squeeze(variance, axes)


def _mixed(running: Any, own: Any, momentum: float) -> Any:
    return _wide(running) * momentum + _wide(own) * (1 - momentum)


def _normalized(x: Any, scale: Any, b: Any, mean: Any, var: Any, epsilon: float, spatial: bool = True) -> Any:
    wide, *rest = _wide(x, scale, b, mean, var)
    scale, b, mean, var = (cast(per_channel(v, x.ndim) if spatial else v[None], wide.dtype) for v in rest)
    return cast((wide - mean) * (scale / nx.sqrt(var + epsilon)) + b, x.dtype)
