"""Activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common import nx, traced
from ..inline import is_inlining
from ..registry import elementwise, op


def relu(x):
    """max(x, 0), whose derivative at 0 is 0. https://onnx.ai/onnx/operators/onnx__Relu.html"""
    if not is_inlining():
        return jax.nn.relu(x)
    # A plan needs neither the derivative, which takes ten times as long to trace, nor jnp.maximum's
    # promotion.
    try:
        return lax.max(x, np.zeros((), x.dtype))
    except TypeError:  # the lax of this JAX version does not broadcast scalars
        return jnp.maximum(x, 0)


def softplus(x):
    """log(1 + exp(x)) without overflow. https://onnx.ai/onnx/operators/onnx__Softplus.html"""
    return nx.maximum(x, 0) + nx.log1p(nx.exp(-nx.abs(x)))


def hard_swish(x):
    """x * hard_sigmoid(x), with alpha 1/6 and beta 1/2.

    https://onnx.ai/onnx/operators/onnx__HardSwish.html
    """
    return x * hard_sigmoid(x, alpha=1 / 6)


elementwise(
    {
        "Relu": relu,
        "Sigmoid": jax.nn.sigmoid,
        "Softplus": softplus,
        "Softsign": lambda x: x / (1 + nx.abs(x)),
        "Tanh": nx.tanh,
    }
)
elementwise({"HardSwish": hard_swish}, since=14)
elementwise({"Mish": lambda x: x * nx.tanh(softplus(x))}, since=18)


@op("Celu", since=12)
def celu(X, *, alpha=1.0):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)). https://onnx.ai/onnx/operators/onnx__Celu.html"""
    return jax.nn.celu(traced(X), alpha)


@op("Elu")
def elu(X, *, alpha=1.0):
    """x, or `alpha * (exp(x) - 1)` where x is negative. https://onnx.ai/onnx/operators/onnx__Elu.html"""
    return jax.nn.elu(traced(X), alpha)


@op("Gelu", since=20)
def gelu(X, *, approximate="none"):
    """x times the normal distribution function of x, exact or by tanh.

    https://onnx.ai/onnx/operators/onnx__Gelu.html
    """
    return jax.nn.gelu(traced(X), approximate == "tanh")


@op("HardSigmoid")
def hard_sigmoid(X, *, alpha=0.20000000298023224, beta=0.5):
    """alpha * x + beta, limited to 0..1. https://onnx.ai/onnx/operators/onnx__HardSigmoid.html"""
    return nx.minimum(nx.maximum(alpha * traced(X) + beta, 0), 1)


@op("LeakyRelu")
def leaky_relu(X, *, alpha=0.009999999776482582):
    """x, or `alpha * x` where x is negative. https://onnx.ai/onnx/operators/onnx__LeakyRelu.html"""
    return nx.where(X < 0, alpha * traced(X), X)


@op("PRelu", until=7)
def prelu_by_channel(X, slope):
    """PRelu with one slope, or one for each channel (axis 1).

    https://onnx.ai/onnx/operators/onnx__PRelu.html
    """
    slope = nx.reshape(slope, slope.shape + (1,) * (X.ndim - 2)) if slope.size > 1 else slope
    return nx.where(X < 0, slope * X, X)


@op("Selu", since=6)
def selu(X, *, alpha=1.6732631921768188, gamma=1.0507010221481323):
    """gamma * elu(x). https://onnx.ai/onnx/operators/onnx__Selu.html"""
    return gamma * elu(X, alpha=alpha)


@op("SwiGLU", since=28)
def swiglu(A, B, *, alpha=1.0):
    """swish(A) * B. https://onnx.ai/onnx/operators/onnx__SwiGLU.html"""
    return swish(A, alpha=alpha) * B


@op("Swish", since=24)
def swish(X, *, alpha=1.0):
    """x * sigmoid(alpha * x). https://onnx.ai/onnx/operators/onnx__Swish.html"""
    X = traced(X)
    return X * jax.nn.sigmoid(X if alpha == 1 else alpha * X)


@op("ThresholdedRelu", since=10)
def thresholded_relu(X, *, alpha=1.0):
    """x where it is above alpha, else 0. https://onnx.ai/onnx/operators/onnx__ThresholdedRelu.html"""
    return nx.where(alpha < X, X, nx.zeros_like(X))
