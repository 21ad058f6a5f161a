"""Evaluates common primitives of weights with NumPy, which avoids compiling an executable for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class NotExactError(Exception):
    """NumPy is not known to give XLA's numbers for a step; XLA evaluates it then."""


def fold(name: str, params: dict[str, Any], inputs: Sequence[Any], avals: Sequence[Any]) -> list[np.ndarray]:
    """Outputs of the primitive `name`, as NumPy arrays of the shapes and dtypes in `avals`.

    Raises:
        NotExactError: NumPy cannot evaluate the primitive exactly as XLA does.
    """
    arrays = [np.asarray(value) for value in inputs]
    if name == "split":
        return np.split(arrays[0], np.cumsum(params["sizes"])[:-1], params["axis"])
    known = _MOVES.get(name)
    if known is None:
        exact = _EXACT if name not in _EXACT_WHOLE else (*_EXACT, *_WHOLE)
        if name not in _ARITHMETIC or any(array.dtype not in exact for array in arrays):
            raise NotExactError(name)
        with np.errstate(all="ignore"):
            result = _ARITHMETIC[name](*arrays)
    else:
        result = known(params, avals[0], *arrays)
    if result.shape != avals[0].shape:
        raise NotExactError(f"{name} to {avals[0].shape}")
    return [np.asarray(result, avals[0].dtype)]


_EXACT = (np.dtype(np.float32), np.dtype(np.float64))
"""Dtypes for which NumPy and XLA agree; XLA evaluates others (narrow floats, integer division)."""

_WHOLE = (np.dtype(np.int32), np.dtype(np.int64))
_EXACT_WHOLE = frozenset(("add", "sub", "mul", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"))
"""Arithmetic in which they agree on whole numbers, too: both wrap around."""


def _broadcast(params: dict[str, Any], aval: Any, array: np.ndarray) -> np.ndarray:
    shape = [1] * len(aval.shape)
    for source, target in enumerate(params["broadcast_dimensions"]):
        shape[target] = array.shape[source]
    return np.broadcast_to(array.reshape(shape), aval.shape)


def _along(array: np.ndarray, params: dict[str, Any], aval: Any) -> np.ndarray:
    return array.reshape([-1 if axis == params["dimension"] else 1 for axis in range(len(aval.shape))])


def _slice(params: dict[str, Any], _: Any, array: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * array.ndim
    return array[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _reshape(params: dict[str, Any], aval: Any, array: np.ndarray) -> np.ndarray:
    if params.get("dimensions") is not None:
        raise NotExactError("reshape with dimensions")
    return array.reshape(aval.shape)


def _convert(_: dict[str, Any], aval: Any, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and aval.dtype.kind in "iu":
        raise NotExactError("a float too large for the integer is undefined in NumPy")
    return array.astype(aval.dtype)


def _pad(params: dict[str, Any], _: Any, array: np.ndarray, fill: np.ndarray) -> np.ndarray:
    config = params["padding_config"]
    if any(before < 0 or after < 0 or between for before, after, between in config):
        raise NotExactError("a pad that cuts off or spreads")
    return np.pad(array, [pair[:2] for pair in config], constant_values=fill)


_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "transpose": lambda params, _, array: array.transpose(params["permutation"]),
    "reshape": _reshape,
    "squeeze": lambda _, aval, array: array.reshape(aval.shape),
    "expand_dims": lambda _, aval, array: array.reshape(aval.shape),
    "broadcast_in_dim": _broadcast,
    "iota": lambda params, aval: np.broadcast_to(
        _along(np.arange(aval.shape[params["dimension"]]), params, aval), aval.shape
    ),
    "slice": _slice,
    "concatenate": lambda params, _, *arrays: np.concatenate(arrays, params["dimension"]),
    "stack": lambda params, _, *arrays: np.stack(arrays, params["axis"]),
    "rev": lambda params, _, array: np.flip(array, params["dimensions"]),
    "convert_element_type": _convert,
    "select_n": lambda _, __, which, *cases: np.choose(which.astype(np.intp), cases),
    "pad": _pad,
    "copy": lambda _, __, array: array,
    "stop_gradient": lambda _, __, array: array,
}

_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda array: 1 / np.sqrt(array),
    "exp": np.exp,
    "square": np.square,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
