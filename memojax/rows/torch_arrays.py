"""PyTorch tensors in and out without a copy; PyTorch is imported only after a caller gives a tensor."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError


def is_torch(value: Any) -> bool:
    """Whether `value` is a PyTorch tensor."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "requires_grad")


def from_torch(name: str, tensor: Any) -> Any:
    """The tensor's memory as a NumPy array, or as a `jax.Array` if it is on an accelerator.

    Raises:
        InputError: the tensor requires a gradient, which does not flow through an executable.
    """
    if tensor.requires_grad:
        raise InputError(
            f"{name!r} requires a gradient, which does not flow through a compiled policy: give "
            "tensor.detach(), or differentiate the function that memojax.to_jax returns"
        )
    try:
        return tensor.numpy() if tensor.device.type == "cpu" else jnp.from_dlpack(tensor)
    except TypeError:  # bfloat16, which NumPy alone does not know
        return jnp.from_dlpack(tensor.contiguous())


def to_torch(array: Any, copy: bool) -> Any:
    """The array's memory as a tensor, or a copy.

    A tensor is always writable, so an array that others hold as well must be copied.
    """
    import torch  # pyright: ignore[reportMissingImports]

    if isinstance(array, jax.Array):
        return torch.from_dlpack(array).clone() if copy else torch.from_dlpack(array)
    return torch.from_numpy(np.array(array)) if copy else torch.from_dlpack(np.asarray(array))
