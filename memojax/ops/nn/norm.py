"""Normalizations; statistics of half-precision inputs are computed in float32."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import cast, normalize_axis, nx, traced
from ..registry import op


def wide(x: Any) -> Any:
    """`x` in float32 if it has half precision, else unchanged."""
    half = x is not None and jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
    return cast(x, np.float32) if half else x


def per_channel(values: Any, rank: int) -> Any:
    """A vector over channels, in a shape that broadcasts against N x C x ..."""
    return nx.reshape(values, (1, -1) + (1,) * (rank - 2))


def _trailing(values: Any, rank: int) -> Any:
    return nx.reshape(values, (1,) * (rank - values.ndim) + values.shape)


def _moments(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    mean = nx.mean(x, axis=axes, keepdims=True)
    return mean, nx.mean(nx.square(x - mean), axis=axes, keepdims=True)


@op("BatchNormalization", since=14)
def batch_normalization(x, scale, b, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    """Normalize each channel by the given statistics, or in `training_mode` by those of the batch.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if not training_mode:
        return _batch_normalized(x, scale, b, mean, var, epsilon)
    own_mean, own_var = _batch_moments(x)
    y = _batch_normalized(x, scale, b, own_mean, own_var, epsilon)
    return y, _moved(mean, own_mean, momentum), _moved(var, own_var, momentum)


@op("BatchNormalization", until=14)
def batch_normalization_1(
    x,
    scale,
    b,
    mean,
    var,
    *,
    epsilon=1e-5,
    momentum=0.9,
    spatial=1,
    is_test=0,
    consumed_inputs=None,
    n_outputs,
):
    """Before opset 14, more than one output means training, and `spatial` 0 statistics for each element.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if n_outputs == 1 or is_test:
        return _batch_normalized(x, scale, b, mean, var, epsilon, bool(spatial))
    own_mean, own_var = _batch_moments(x, bool(spatial))
    y = _batch_normalized(x, scale, b, own_mean, own_var, epsilon, bool(spatial))
    saved = cast(own_mean, x.dtype), cast(own_var, x.dtype)
    return y, _moved(mean, own_mean, momentum), _moved(var, own_var, momentum), *saved


def _batch_moments(x: Any, spatial: bool = True) -> tuple[Any, Any]:
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    mean, variance = _moments(wide(x), axes)
    return nx.squeeze(mean, axes), nx.squeeze(variance, axes)


def _moved(running: Any, own: Any, momentum: float) -> Any:
    return cast(wide(running) * momentum + cast(own, wide(running).dtype) * (1 - momentum), running.dtype)


def _batch_normalized(
    x: Any, scale: Any, b: Any, mean: Any, var: Any, epsilon: float, spatial: bool = True
) -> Any:
    given = wide(x)
    statistics = (
        cast(per_channel(v, x.ndim) if spatial else v[None], given.dtype) for v in (scale, b, mean, var)
    )
    scale, b, mean, var = statistics
    return cast((given - mean) * (scale / nx.sqrt(var + epsilon)) + b, x.dtype)


@op("InstanceNormalization")
def instance_normalization(x, scale, b, *, epsilon=1e-5, consumed_inputs=None):
    """Normalize each channel of each sample.

    https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html
    """
    return _group_normalized(x, x.shape[1], scale, b, epsilon)


@op("GroupNormalization", since=18, until=21)
def group_normalization_18(x, scale, b, *, num_groups, epsilon=1e-5):
    """Before opset 21 scale and bias have one entry for each group.

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    repeats = x.shape[1] // num_groups
    return _group_normalized(x, num_groups, nx.repeat(scale, repeats), nx.repeat(b, repeats), epsilon)


@op("GroupNormalization", since=21)
def group_normalization(x, scale, b, *, num_groups, epsilon=1e-5, stash_type=1):
    """Normalize groups of channels of each sample, then scale and shift each channel.

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    return _group_normalized(x, num_groups, scale, b, epsilon)


def _group_normalized(x: Any, groups: int, scale: Any, b: Any, epsilon: float) -> Any:
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels cannot be divided into {groups} groups")
    grouped = nx.reshape(wide(x), (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    mean, variance = _moments(grouped, (2,))
    y = nx.reshape((grouped - mean) * (1 / nx.sqrt(variance + epsilon)), x.shape)
    return cast(y * per_channel(wide(scale), x.ndim) + per_channel(wide(b), x.ndim), x.dtype)


@op("LayerNormalization", since=17)
def layer_normalization(x, scale, b=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    """Normalize to zero mean and unit variance over the axes from `axis`, then scale and shift.

    The statistics of float64 inputs are computed in float64; the second and third output are float32.

    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
    """
    given = wide(x)
    mean, variance = _moments(given, tuple(range(normalize_axis(axis, x.ndim), x.ndim)))
    inverse = 1 / nx.sqrt(variance + epsilon)
    y = (given - mean) * inverse * _trailing(wide(scale), x.ndim)
    y = y if b is None else y + _trailing(wide(b), x.ndim)
    return cast(y, x.dtype), cast(mean, np.float32), cast(inverse, np.float32)


@op("RMSNormalization", since=23)
def rms_normalization(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    """Normalize to unit root mean square over the axes from `axis`, then scale; `scale` decides the dtype.

    https://onnx.ai/onnx/operators/onnx__RMSNormalization.html
    """
    given = wide(x)
    square = nx.mean(nx.square(given), axis=tuple(range(normalize_axis(axis, x.ndim), x.ndim)), keepdims=True)
    return cast(
        given * (1 / nx.sqrt(square + epsilon)) * cast(_trailing(scale, x.ndim), given.dtype), scale.dtype
    )


@op("LpNormalization")
def lp_normalization(x, *, axis=-1, p=2):
    """Divide by the p-norm along `axis`; zeros stay zeros.

    https://onnx.ai/onnx/operators/onnx__LpNormalization.html
    """
    given = wide(x)
    total = nx.sum(nx.abs(given) if p == 1 else nx.square(given), axis=axis, keepdims=True)
    total = nx.where(total == 0, nx.ones_like(total), total)
    return cast(given / (total if p == 1 else nx.sqrt(total)), x.dtype)


@op("LRN")
def lrn(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    """Divide by a power of the mean square over `size` neighbouring channels.

    https://onnx.ai/onnx/operators/onnx__LRN.html
    """
    square = jnp.square(traced(wide(x)))
    rest = (1,) * (x.ndim - 2)
    pads = ((0, 0), ((size - 1) // 2, size // 2), *((0, 0) for _ in rest))
    total = lax.reduce_window(
        square, np.zeros((), square.dtype), lax.add, (1, size, *rest), (1,) * x.ndim, pads
    )
    return cast(wide(x) / (bias + alpha / size * total) ** beta, x.dtype)
