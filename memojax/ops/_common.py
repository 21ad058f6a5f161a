"""Helpers of several operator families: `nx`, casts to exact dtypes, axes and sizes.

A value is *static* (NumPy, known while tracing) or *traced* (JAX). Operators written with `nx` keep static
values static, in exact NumPy arithmetic, so shape computations never reach XLA. Operators that need `jax.lax`
return traced values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._types import Shape
from ..xla.limits import ELEMENTS, FOLDED, for_rows


def is_static(*values: Any) -> bool:
    """Whether none of `values`, or of their items if they are lists or tuples, is a JAX array or tracer."""
    for value in values:  # noqa: SIM110 - not any(): this runs several times for each node
        if type(value) is not np.ndarray and holds_traced(value):
            return False
    return True


def holds_traced(value: Any) -> bool:
    """Whether `value` is a JAX array or tracer, or a list or tuple with one."""
    if isinstance(value, (list, tuple)):
        return not is_static(*value)
    return isinstance(value, jax.Array)


class _Namespace:
    """`numpy` for static arguments, `jax.numpy` for others; each call, such as `nx.where(...)`, decides."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        static, traced = getattr(np, name, None), getattr(jnp, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            use_numpy = static is not None and is_static(args, tuple(kwargs.values()))
            return (static if use_numpy else traced)(*args, **kwargs)  # pyright: ignore[reportOptionalCall]

        call.__name__, call.__qualname__ = name, f"nx.{name}"  # pickle finds the function by it
        setattr(self, name, call)
        return call


nx: Any = _Namespace()


def cast(x: Any, dtype: Any) -> Any:
    """`x` as `dtype`, wrapping or truncating as in C.

    Under the caller's own trace without x64, a 64-bit dtype silently becomes the 32-bit one.
    """
    if is_static(x):
        with np.errstate(all="ignore"):
            return np.asarray(x).astype(dtype)
    return jnp.asarray(x).astype(jax.dtypes.canonicalize_dtype(dtype))


def traced(x: Any) -> jax.Array:
    """`x` as a JAX array, for code that needs `jax.lax` or `.at[]`."""
    return jnp.asarray(x)


def normalize_axis(axis: int, rank: int) -> int:
    """`axis` as a non-negative number.

    Raises:
        ValueError: the axis is out of range.
    """
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def normalize_axes(axes: Iterable[int], rank: int) -> Shape:
    """`axes` as non-negative numbers, in the given order."""
    return tuple(normalize_axis(int(axis), rank) for axis in axes)


def ints(values: Any) -> Shape:
    """A static tensor or sequence as a flat tuple of Python ints."""
    return tuple(int(value) for value in np.asarray(values).ravel())


def scalar(value: Any) -> Any:
    """The one element of a static tensor, as a Python number."""
    return np.asarray(value).reshape(-1)[0].item()


def checked_shape(shape: Sequence[int], computed: int = 0) -> Shape:
    """`shape` as a tuple of ints; symbolic dimensions, which an export has, are left as they are.

    Args:
        shape: dimensions of a value that an operator makes.
        computed: bytes for each element, including temporaries, if the value is computed while tracing.

    Raises:
        ValueError: a dimension is negative.
        LimitError: the value has more elements or bytes than a file may ask for.
    """
    dims = tuple(dim if is_symbolic_dim(dim) else int(dim) for dim in shape)
    known = [dim for dim in dims if isinstance(dim, int)]
    if any(dim < 0 for dim in known):
        raise ValueError(f"shape {list(dims)} has a negative dimension")
    size = math.prod(known)
    ELEMENTS.check(size, f"shape {list(dims)}", for_rows(ELEMENTS))
    if computed * size > 1 << 20:
        FOLDED.check(computed * size, f"shape {list(dims)}", for_rows(FOLDED))
    return dims  # pyright: ignore[reportReturnType]


def flatten_to_2d(x: Any, axis: int) -> Any:
    """`x` as a matrix: the axes before `axis` as rows, the others as columns."""
    axis = axis + x.ndim if axis < 0 else axis
    return nx.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
