"""Operators on 8-bit tensors that have a scale and a zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..._types import GraphValue
from .._common import cast, nx, traced
from ..math.activation import leaky_relu
from ..math.linear import matmul_integer
from ..nn.conv import qlinear_conv
from ..nn.pool import average_pool
from ..quantization import dequantize_linear, dynamic_quantize_linear, quantize_linear
from ..registry import op
from ..rnn import Product, lstm_of
from ._common import MICROSOFT

op("QuantizeLinear", domain=MICROSOFT)(quantize_linear)
op("DequantizeLinear", domain=MICROSOFT)(dequantize_linear)


def _real(x: GraphValue, scale: GraphValue, zero_point: GraphValue) -> GraphValue:
    """`x` dequantized, in float32."""
    return cast(dequantize_linear(x, scale, zero_point), np.float32)


def _elementwise(op_type: str, function: Callable[[Any, Any], Any]) -> None:
    def lower(
        A: GraphValue,
        A_scale: GraphValue,
        A_zero_point: GraphValue,
        B: GraphValue,
        B_scale: GraphValue,
        B_zero_point: GraphValue,
        C_scale: GraphValue,
        C_zero_point: GraphValue = None,
    ) -> GraphValue:
        result = function(_real(A, A_scale, A_zero_point), _real(B, B_scale, B_zero_point))
        return quantize_linear(
            result, C_scale, np.zeros((), A.dtype) if C_zero_point is None else C_zero_point
        )

    op(op_type, domain=MICROSOFT)(lower)


_elementwise("QLinearAdd", lambda a, b: a + b)
_elementwise("QLinearMul", lambda a, b: a * b)


@op("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(
    X: GraphValue,
    X_scale: GraphValue,
    X_zero_point: GraphValue,
    Y_scale: GraphValue,
    Y_zero_point: GraphValue = None,
) -> GraphValue:
    """Sigmoid of a quantized tensor, with a quantized result."""
    return _again(jax.nn.sigmoid(traced(_real(X, X_scale, X_zero_point))), Y_scale, Y_zero_point, X.dtype)


@op("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(
    X: GraphValue,
    X_scale: GraphValue,
    X_zero_point: GraphValue,
    Y_scale: GraphValue,
    Y_zero_point: GraphValue = None,
    *,
    alpha: float = 0.009999999776482582,
) -> GraphValue:
    """LeakyRelu of a quantized tensor, with a quantized result."""
    return _again(leaky_relu(_real(X, X_scale, X_zero_point), alpha=alpha), Y_scale, Y_zero_point, X.dtype)


def _again(y: GraphValue, scale: GraphValue, zero_point: GraphValue, dtype: Any) -> GraphValue:
    return quantize_linear(y, scale, np.zeros((), dtype) if zero_point is None else zero_point)


@op("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(
    X: GraphValue,
    X_scale: GraphValue,
    x_zero_point: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue,
    *,
    opset: int,
    axis: int = -1,
) -> GraphValue:
    """Softmax of a quantized tensor, with a quantized result; before opset 13 over all axes from `axis`."""
    x = traced(_real(X, X_scale, x_zero_point))
    axes: Any = axis if opset >= 13 else tuple(range(axis % x.ndim, x.ndim))
    return quantize_linear(jax.nn.softmax(x, axis=axes), y_scale, y_zero_point)


@op("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(
    Y_scale: GraphValue, Y_zero_point: GraphValue, *inputs: GraphValue, axis: int
) -> GraphValue:
    """Join quantized tensors, each with its scale and zero point, to one quantized tensor."""
    triples = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    return quantize_linear(
        nx.concatenate([_real(*triple) for triple in triples], axis=axis), Y_scale, Y_zero_point
    )


@op("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    condition: GraphValue,
    X: GraphValue,
    x_scale: GraphValue,
    x_zero_point: GraphValue,
    Y: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue,
    z_scale: GraphValue,
    z_zero_point: GraphValue,
) -> GraphValue:
    """Elements of one of two quantized tensors, with a quantized result."""
    return quantize_linear(
        nx.where(condition, _real(X, x_scale, x_zero_point), _real(Y, y_scale, y_zero_point)),
        z_scale,
        z_zero_point,
    )


@op("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    X: GraphValue,
    x_scale: GraphValue,
    x_zero_point: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue = None,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> GraphValue:
    """AveragePool of a quantized tensor, with a quantized result."""
    pooled = average_pool(
        _channels_first(_real(X, x_scale, x_zero_point), channels_last),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return _again(_channels_back(pooled, channels_last), y_scale, y_zero_point, X.dtype)


@op("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    X: GraphValue,
    x_scale: GraphValue,
    x_zero_point: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue,
    *,
    channels_last: int = 0,
) -> GraphValue:
    """GlobalAveragePool of a quantized tensor, with a quantized result."""
    axes = tuple(range(1, X.ndim - 1) if channels_last else range(2, X.ndim))
    return quantize_linear(
        nx.mean(_real(X, x_scale, x_zero_point), axis=axes, keepdims=True), y_scale, y_zero_point
    )


@op("QLinearConv", domain=MICROSOFT)
def qlinear_conv_any_layout(
    x: GraphValue,
    x_scale: GraphValue,
    x_zero_point: GraphValue,
    w: GraphValue,
    w_scale: GraphValue,
    w_zero_point: GraphValue,
    y_scale: GraphValue,
    y_zero_point: GraphValue,
    B: GraphValue = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> GraphValue:
    """Convolution of quantized tensors, whose channels may be last."""
    y = qlinear_conv(
        _channels_first(x, channels_last),
        x_scale,
        x_zero_point,
        w,
        w_scale,
        w_zero_point,
        y_scale,
        y_zero_point,
        B,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return _channels_back(y, channels_last)


def _channels_first(x: GraphValue, channels_last: int) -> GraphValue:
    return nx.moveaxis(x, -1, 1) if channels_last else x


def _channels_back(x: GraphValue, channels_last: int) -> GraphValue:
    return nx.moveaxis(x, 1, -1) if channels_last else x


@op("QGemm", domain=MICROSOFT)
def qgemm(
    A: GraphValue,
    a_scale: GraphValue,
    a_zero_point: GraphValue,
    B: GraphValue,
    b_scale: GraphValue,
    b_zero_point: GraphValue,
    C: GraphValue = None,
    y_scale: GraphValue = None,
    y_zero_point: GraphValue = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> GraphValue:
    """Gemm of quantized matrices with an int32 bias; the result is float32 without `y_scale`."""
    total = matmul_integer(A.T if transA else A, B.T if transB else B, a_zero_point, b_zero_point)
    total = total if C is None else total + C
    scale = alpha * a_scale * b_scale
    if y_scale is None:
        return cast(total, np.float32) * scale
    return _again(cast(total, np.float32) * (scale / y_scale), np.float32(1), y_zero_point, A.dtype)


@op("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    A: GraphValue,
    B: GraphValue,
    a_scale: GraphValue,
    b_scale: GraphValue,
    a_zero_point: GraphValue = None,
    b_zero_point: GraphValue = None,
    bias: GraphValue = None,
) -> GraphValue:
    """Dequantized product of quantized matrices, plus a bias."""
    y = cast(matmul_integer(A, B, a_zero_point, b_zero_point), a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


@op("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    A: GraphValue,
    B: GraphValue,
    b_scale: GraphValue,
    b_zero_point: GraphValue = None,
    bias: GraphValue = None,
) -> GraphValue:
    """Quantize `A` by its own range, and multiply it with a quantized matrix; the result is dequantized."""
    a, a_scale, a_zero_point = dynamic_quantize_linear(A)
    return matmul_integer_to_float(a, B, a_scale, b_scale, a_zero_point, b_zero_point, bias)


@op("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(
    X: GraphValue,
    W: GraphValue,
    R: GraphValue,
    B: GraphValue = None,
    sequence_lens: GraphValue = None,
    initial_h: GraphValue = None,
    initial_c: GraphValue = None,
    P: GraphValue = None,
    W_scale: GraphValue = None,
    W_zero_point: GraphValue = None,
    R_scale: GraphValue = None,
    R_zero_point: GraphValue = None,
    *,
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> GraphValue:
    """LSTM that quantizes input and hidden state by their ranges, for products with quantized `W` and `R`.

    Unlike for LSTM, the input size is the first matrix axis of `W` and `R`.
    """

    def times(weights: GraphValue, scale: GraphValue, zero_point: GraphValue) -> Product:
        return lambda x, d: dynamic_quantize_matmul(x, weights[d], scale[d], zero_point[d])

    return lstm_of(
        X,
        times(W, W_scale, W_zero_point),
        times(R, R_scale, R_zero_point),
        R.shape[:2],
        B,
        sequence_lens,
        initial_h,
        initial_c,
        P,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=input_forget,
        layout=0,
    )
