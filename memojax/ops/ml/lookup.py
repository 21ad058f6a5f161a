"""Operators that look up keys: numbers by comparison in the executable, strings while tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .._common import cast, is_static, nx, traced
from ..registry import op, unsupported
from ._scores import ML

_STRING_ATTRIBUTES = ("cats_strings", "keys_strings", "classes_strings")


def _takes_strings(node: Any) -> bool:
    """Whether a node may look up strings, so its input must be known while tracing.

    For `classes_strings` and `cats_strings` the input's dtype decides whether strings are looked up or
    returned.
    """
    return any(node.attributes.get(name) for name in _STRING_ATTRIBUTES)


def _position(X: GraphValue, keys: Sequence[Any] | np.ndarray) -> GraphValue:
    """Position of each element among `keys`, the first of equal ones; `len(keys)` for an unknown element."""
    if X.dtype == object:
        known = {key: index for index, key in reversed(list(enumerate(keys)))}
        return np.array([known.get(key, len(keys)) for key in X.ravel()], np.int64).reshape(X.shape)
    table = np.asarray(keys)
    order = np.argsort(table, kind="stable")
    ordered = table[order] if is_static(X) else jnp.asarray(table[order])
    place = nx.minimum(nx.searchsorted(ordered, X), len(table) - 1)
    found = nx.take(ordered, place)
    same = (found == X) | ((found != found) & (X != X))
    return nx.where(same, nx.take(order, place), len(table))


def _looked_up(
    X: GraphValue,
    keys: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    default: Any,
    dtype: Any,
) -> GraphValue:
    """The value for each key in `X`, or `default` for an unknown key.

    Raises:
        ValueError: the values are strings, and the keys depend on data.
    """
    position = _position(X, keys)
    table = np.empty(len(values) + 1, dtype)
    table[:-1], table[-1] = values, default
    if is_static(position):
        return table[position]
    if table.dtype == object:
        raise ValueError(
            "its result would be strings that depend on data, which an executable cannot return: load the "
            "output before this node with outputs=, and look up its labels yourself"
        )
    return traced(table).at[position].get(mode="clip")


@op("LabelEncoder", until=2, domain=ML, static=("X",))
def label_encoder_1(
    X: GraphValue,
    *,
    classes_strings: tuple[str, ...] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> GraphValue:
    """Before version 2, map strings to their positions, or positions to strings.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    if X.dtype == object:
        return _looked_up(X, classes_strings, range(len(classes_strings)), default_int64, np.int64)
    return _looked_up(X, range(len(classes_strings)), classes_strings, default_string, object)


@op("LabelEncoder", since=2, domain=ML, static=("X",), static_if=_takes_strings)
def label_encoder(
    X: GraphValue,
    *,
    keys_floats: tuple[float, ...] = (),
    keys_int64s: tuple[int, ...] = (),
    keys_strings: tuple[str, ...] = (),
    keys_tensor: Any = None,
    values_floats: tuple[float, ...] = (),
    values_int64s: tuple[int, ...] = (),
    values_strings: tuple[str, ...] = (),
    values_tensor: Any = None,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Any = None,
    opset: int,
) -> GraphValue:
    """Map keys to values; since version 4 NaN can be a key.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    keys = next(
        (
            keys
            for keys in (keys_tensor, keys_strings, keys_int64s, keys_floats)
            if keys is not None and len(keys)
        ),
        (),
    )
    if values_tensor is not None:
        own = {"f": default_float, "i": default_int64, "O": default_string}.get(values_tensor.dtype.kind, 0)
        values, default = values_tensor, own if default_tensor is None else np.ravel(default_tensor)[0]
    elif values_strings:
        values, default = np.array(values_strings, object), default_string
    elif values_int64s:
        values, default = np.array(values_int64s, np.int64), default_int64
    else:
        values, default = np.array(values_floats, np.float32), default_float
    if X.dtype != object:
        keys = np.asarray(keys, X.dtype)
        if opset < 4:
            keys, values = keys[keys == keys], values[keys == keys]
    return _looked_up(X, keys, values, default, values.dtype)


@op("CategoryMapper", domain=ML, static=("X",))
def category_mapper(
    X: GraphValue,
    *,
    cats_int64s: tuple[int, ...] = (),
    cats_strings: tuple[str, ...] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> GraphValue:
    """Map strings to numbers, or numbers to strings.

    https://onnx.ai/onnx/operators/onnx_aionnxml_CategoryMapper.html
    """
    if X.dtype == object:
        return _looked_up(X, cats_strings, cats_int64s, default_int64, np.int64)
    return _looked_up(X, cats_int64s, cats_strings, default_string, object)


@op("OneHotEncoder", domain=ML, static=("X",), static_if=_takes_strings)
def one_hot_encoder(
    X: GraphValue, *, cats_int64s: tuple[int, ...] = (), cats_strings: tuple[str, ...] = (), zeros: int = 1
) -> GraphValue:
    """1 at the position of each category along a new last axis, 0 elsewhere.

    An unknown category gives zeros. If `zeros` is 0, it is an error for static input only, since data cannot
    raise an error in an executable.

    https://onnx.ai/onnx/operators/onnx_aionnxml_OneHotEncoder.html
    """
    if X.dtype == object or is_static(X):
        hot = _position(X if X.dtype == object else cast(X, np.int64), cats_strings or cats_int64s)
        count = len(cats_strings or cats_int64s)
        if not zeros and (hot == count).any():
            raise ValueError("its input has an unknown category, which zeros=0 does not allow")
        return np.eye(count + 1, dtype=np.float32)[hot][..., :count]
    return cast(cast(X, np.int64)[..., None] == np.asarray(cats_int64s, np.int64), np.float32)


for _op_type in ("CastMap", "DictVectorizer"):
    unsupported(
        _op_type,
        "its input is a dictionary, which a graph of arrays cannot hold: make a dense array of it before the "
        "model",
        domain=ML,
    )
