"""Products of matrices: Gemm, MatMul, Einsum, Det and the integer forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from .._common import cast, nx, traced
from ..registry import op


@op("Det", since=11)
def det(X):
    """Determinants of the matrices in the last two axes. https://onnx.ai/onnx/operators/onnx__Det.html"""
    wide = X.dtype if X.dtype in (np.float32, np.float64) else np.float32
    return cast(jnp.linalg.det(traced(cast(X, wide))), X.dtype)


@op("Gemm", until=7)
def gemm_with_broadcast(A, B, C, *, alpha=1.0, beta=1.0, transA=0, transB=0, broadcast=0):
    """Before opset 7 Gemm has an attribute `broadcast`; later versions always broadcast `C`.

    https://onnx.ai/onnx/operators/onnx__Gemm.html
    """
    return gemm(A, B, C, alpha=alpha, beta=beta, transA=transA, transB=transB)


@op("Gemm", since=7)
def gemm(A, B, C=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    """`alpha * A @ B + beta * C`; a factor of 0 drops its term, even if that has NaN.

    https://onnx.ai/onnx/operators/onnx__Gemm.html
    """
    product = _scaled(matmul(A.T if transA else A, B.T if transB else B), alpha)
    return product if C is None or beta == 0 else product + _scaled(C, beta)


def _scaled(x, factor):
    if factor == 1:
        return x
    return cast(factor * x, x.dtype) if factor else nx.zeros_like(x)


@op("MatMul")
def matmul(A, B):
    """Product of matrices, stacked as NumPy does. https://onnx.ai/onnx/operators/onnx__MatMul.html"""
    return cast(nx.matmul(A, B), A.dtype)  # NumPy's product of bfloat16 is float32


@op("MatMulInteger", since=10)
def matmul_integer(A, B, a_zero_point=None, b_zero_point=None):
    """Product of 8-bit matrices minus their zero points, in int32.

    https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
    """
    return nx.matmul(_centered(A, _by_row(a_zero_point), np.int32), _centered(B, b_zero_point, np.int32))


@op("QLinearMatMul", since=10)
def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    """Product of quantized matrices, quantized again.

    https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html
    """
    wide = np.int32 if np.issubdtype(a.dtype, np.integer) else np.float32
    product = nx.matmul(_centered(a, _by_row(a_zero_point), wide), _centered(b, b_zero_point, wide))
    scale = cast(_by_row(a_scale), np.float32) * cast(b_scale, np.float32) / cast(y_scale, np.float32)
    scaled = cast(product, np.float32) * scale
    if np.issubdtype(y_zero_point.dtype, np.integer):
        limits = jnp.iinfo(y_zero_point.dtype)
        scaled = nx.rint(scaled) + cast(y_zero_point, np.float32)
    else:
        limits = jnp.finfo(y_zero_point.dtype)
        scaled = scaled + cast(y_zero_point, np.float32)
    return cast(nx.clip(scaled, float(limits.min), float(limits.max)), y_zero_point.dtype)


def _centered(x, zero_point, dtype):
    return cast(x, dtype) if zero_point is None else cast(x, dtype) - cast(zero_point, dtype)


def _by_row(x):
    return nx.reshape(x, (-1, 1)) if x is not None and x.ndim == 1 and x.size > 1 else x
