"""Names and activations that the com.microsoft operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..._types import GraphValue
from .._common import nx, traced
from ..math.activation import elu, hard_sigmoid, hard_swish, leaky_relu, softplus, thresholded_relu

MICROSOFT = "com.microsoft"

_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "Relu": jax.nn.relu,
    "Tanh": nx.tanh,
    "Sigmoid": lambda x: jax.nn.sigmoid(traced(x)),
    "HardSwish": hard_swish,
    "Softplus": softplus,
    "Softsign": lambda x: x / (1 + nx.abs(x)),
    "LeakyRelu": lambda x, alpha=0.01: leaky_relu(x, alpha=alpha),
    "Elu": lambda x, alpha=1.0: elu(x, alpha=alpha),
    "ThresholdedRelu": lambda x, alpha=1.0: thresholded_relu(x, alpha=alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: hard_sigmoid(x, alpha=alpha, beta=beta),
    "Clip": lambda x, low=-3.4028234663852886e38, high=3.4028234663852886e38: nx.clip(x, low, high),
}


def activated(x: GraphValue, name: str | None, parameters: Sequence[float | None] = ()) -> GraphValue:
    """Apply an activation that was fused into another operator; `parameters` are its attributes in order.

    Raises:
        ValueError: ONNX Runtime does not fuse such an activation.
    """
    if not name:
        return x
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name](x, *(value for value in parameters if value is not None))
