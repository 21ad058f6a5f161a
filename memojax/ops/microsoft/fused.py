"""Products, convolutions, activations and normalizations into which other operators are fused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .._common import cast, nx, traced
from ..math.activation import gelu
from ..math.linear import gemm, matmul
from ..nn.conv import conv
from ..nn.norm import layer_normalization, wide
from ..registry import op
from ._common import MICROSOFT, activated


def _operand(x: GraphValue, transposed: int, batch_transposed: int) -> GraphValue:
    """An operand of FusedMatMul, after its transpositions."""
    x = nx.moveaxis(x, 0, -2) if batch_transposed else x
    return nx.swapaxes(x, -1, -2) if transposed and x.ndim > 1 else x


@op("TransposeMatMul", domain=MICROSOFT)
@op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    A: GraphValue,
    B: GraphValue,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> GraphValue:
    """`alpha * A @ B`, after transpositions; `transBatchA` or `B` first moves axis 0 to position -2."""
    product = matmul(_operand(A, transA, transBatchA), _operand(B, transB, transBatchB))
    return product if alpha == 1 else cast(alpha * product, product.dtype)


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    A: GraphValue,
    B: GraphValue,
    C: GraphValue = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> GraphValue:
    """Gemm, then an activation."""
    product = gemm(A, B, C, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(product, activation, (activation_alpha, activation_beta, activation_gamma))


@op("FusedConv", domain=MICROSOFT)
def fused_conv(
    X: GraphValue,
    W: GraphValue,
    B: GraphValue = None,
    Z: GraphValue = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> GraphValue:
    """Conv plus Z, then an activation."""
    y = conv(
        X,
        W,
        B,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return activated(y if Z is None else y + Z, activation, activation_params)


@op("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(
    A: GraphValue,
    B: GraphValue,
    scales: GraphValue,
    zero_points: GraphValue = None,
    g_idx: GraphValue = None,
    bias: GraphValue = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> GraphValue:
    """`A @ B.T`, where `B`, `[N, K]`, has `bits` bits and a scale and zero point for each block along K.

    Raises:
        ValueError: the weights are prepacked for one machine, or the node has the deprecated `g_idx`.
    """
    if weight_prepacked or g_idx is not None:
        raise ValueError("weight_prepacked and g_idx are not supported: export the model without them")
    blocks = -(-K // block_size)
    scales = nx.reshape(scales, (N, blocks, 1))
    if zero_points is None:
        shift: GraphValue = 1 << (bits - 1)
    elif zero_points.dtype == np.uint8:
        shift = _unpacked(nx.reshape(zero_points, (N, -1)), bits)[:, :blocks, None]
    else:
        shift = nx.reshape(zero_points, (N, blocks, 1))
    values = _unpacked(nx.reshape(B, (N, blocks, -1)), bits)[..., :block_size]
    weights = nx.reshape((cast(values, scales.dtype) - cast(shift, scales.dtype)) * scales, (N, -1))[:, :K]
    y = matmul(A, cast(weights, A.dtype).T)
    return y if bias is None else y + bias


def _unpacked(packed: GraphValue, bits: int) -> GraphValue:
    """Numbers of `bits` bits, unpacked from bytes along the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return nx.reshape((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1), (*packed.shape[:-1], -1))


@op("Inverse", domain=MICROSOFT)
def inverse(X: GraphValue) -> GraphValue:
    """Inverses of the matrices in the last two axes."""
    return cast(jnp.linalg.inv(wide(traced(X))), X.dtype)


@op("CDist", domain=MICROSOFT)
def cdist(A: GraphValue, B: GraphValue, *, metric: str = "sqeuclidean") -> GraphValue:
    """Distances between the rows of two matrices."""
    # |a|^2 - 2 a.b + |b|^2 would lose precision where rows are close.
    squares = nx.sum(nx.square(A[:, None, :] - B[None]), axis=-1)
    return nx.sqrt(squares) if metric == "euclidean" else squares


@op("Gelu", domain=MICROSOFT)
def exact_gelu(X: GraphValue) -> GraphValue:
    """x times the normal distribution function of x."""
    return gelu(X)


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(A: GraphValue, B: GraphValue) -> GraphValue:
    """Gelu of A + B."""
    return gelu(A + B)


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(X: GraphValue, bias: GraphValue = None) -> GraphValue:
    """Gelu by tanh."""
    return gelu(X if bias is None else X + bias, approximate="tanh")


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(X: GraphValue, *, alpha: float = 1.7020000219345093) -> GraphValue:
    """x * sigmoid(alpha * x)."""
    return X * jax.nn.sigmoid(alpha * traced(X))


# ONNX Runtime wrote this operator into ai.onnx before ONNX had it.
op("LayerNormalization", since=1, until=17)(layer_normalization)


def _rms(x: GraphValue, scale: GraphValue, epsilon: float, axis: int = -1) -> tuple[GraphValue, GraphValue]:
    """`x`, normalized to unit root mean square over the axes from `axis` and scaled, and the factor."""
    given = wide(x)
    axes = tuple(range(axis % x.ndim, x.ndim))
    factor = 1 / nx.sqrt(nx.mean(nx.square(given), axis=axes, keepdims=True) + epsilon)
    return cast(given * factor * wide(scale), x.dtype), cast(factor, np.float32)


@op("SimplifiedLayerNormalization")
def simplified_layer_normalization(
    X: GraphValue,
    scale: GraphValue,
    *,
    axis: int = -1,
    epsilon: float = 9.999999747378752e-06,
    stash_type: int = 1,
) -> tuple[GraphValue, GraphValue]:
    """Layer normalization without mean and bias, which ONNX Runtime writes into ai.onnx."""
    return _rms(X, scale, epsilon, axis)


@op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    input: GraphValue,
    skip: GraphValue,
    gamma: GraphValue,
    beta: GraphValue = None,
    bias: GraphValue = None,
    *,
    epsilon: float = 9.999999960041972e-13,
) -> tuple[GraphValue, GraphValue, GraphValue, GraphValue]:
    """Layer normalization of `input + skip + bias`, and the sum as fourth output."""
    total = _total(input, skip, bias)
    return *layer_normalization(total, gamma, beta, epsilon=epsilon), total


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    input: GraphValue,
    skip: GraphValue,
    gamma: GraphValue,
    bias: GraphValue = None,
    *,
    epsilon: float = 9.999999960041972e-13,
) -> tuple[GraphValue, None, GraphValue, GraphValue]:
    """SkipLayerNormalization without mean and shift."""
    total = _total(input, skip, bias)
    y, factor = _rms(total, gamma, epsilon)
    return y, None, factor, total


def _total(input: GraphValue, skip: GraphValue, bias: GraphValue) -> GraphValue:
    return input + skip if bias is None else input + skip + bias
