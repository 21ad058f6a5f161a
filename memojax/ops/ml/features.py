"""Operators that prepare features."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .._common import cast, is_static, nx, traced
from ..registry import op
from ..tensor.index import InRange, take_by_data, take_static
from ._scores import ML


@op("Scaler", domain=ML)
def scaler(X: GraphValue, *, offset: tuple[float, ...] = (), scale: tuple[float, ...] = ()) -> GraphValue:
    """(X - offset) * scale, for each feature. https://onnx.ai/onnx/operators/onnx_aionnxml_Scaler.html"""
    return (cast(X, np.float32) - np.asarray(offset, np.float32)) * np.asarray(scale, np.float32)


@op("Normalizer", domain=ML)
def normalizer(X: GraphValue, *, norm: str = "MAX") -> GraphValue:
    """Divide rows by their maximum, L1 norm or L2 norm, unless that is 0.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Normalizer.html
    """
    x = cast(X, np.float32)
    if norm == "MAX":
        size = nx.max(x, axis=-1, keepdims=True)
    elif norm == "L1":
        size = nx.sum(nx.abs(x), axis=-1, keepdims=True)
    else:
        size = nx.sqrt(nx.sum(nx.square(x), axis=-1, keepdims=True))
    return x / nx.where(size == 0, np.float32(1), size)


@op("Binarizer", domain=ML)
def binarizer(X: GraphValue, *, threshold: float = 0.0) -> GraphValue:
    """1 above the threshold, else 0. https://onnx.ai/onnx/operators/onnx_aionnxml_Binarizer.html"""
    return cast(threshold < X, X.dtype)


@op("Imputer", domain=ML)
def imputer(
    X: GraphValue,
    *,
    imputed_value_floats: tuple[float, ...] = (),
    imputed_value_int64s: tuple[int, ...] = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> GraphValue:
    """Replace `replaced_value`, which may be NaN, by one value for all features or one for each.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Imputer.html
    """
    real = np.issubdtype(X.dtype, np.floating)
    replaced = replaced_value_float if real else replaced_value_int64
    values = np.asarray(imputed_value_floats if real else imputed_value_int64s, X.dtype)
    missing = nx.isnan(X) if np.isnan(replaced) else replaced == X
    return cast(nx.where(missing, values if values.size == X.shape[-1] else values[0], X), X.dtype)


@op("FeatureVectorizer", domain=ML)
def feature_vectorizer(*X: GraphValue, inputdimensions: tuple[int, ...] = ()) -> GraphValue:
    """Join inputs as float32 columns, each cut or padded with 0 to its dimension; a vector is one row.

    https://onnx.ai/onnx/operators/onnx_aionnxml_FeatureVectorizer.html
    """
    parts = []
    for x, size in zip(X, inputdimensions or (None,) * len(X), strict=True):
        part = cast(nx.reshape(x, (1, -1) if x.ndim == 1 else (x.shape[0], -1)), np.float32)[:, :size]
        parts.append(nx.pad(part, ((0, 0), (0, size - part.shape[1]))) if size is not None else part)
    return nx.concatenate(parts, axis=1)


@op("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(X: GraphValue, Y: GraphValue, *, in_range: InRange) -> GraphValue:
    """Elements of the last axis; a vector is one row.

    If the elements are strings and the positions depend on data, the result is the positions themselves.

    https://onnx.ai/onnx/operators/onnx_aionnxml_ArrayFeatureExtractor.html
    """
    X, Y = nx.atleast_2d(X), nx.ravel(Y)
    if X.dtype == object and not is_static(Y):
        return cast(jnp.broadcast_to(Y, (*X.shape[:-1], Y.size)), np.int64)
    if is_static(X, Y):
        return np.take(X, Y, axis=-1)
    if is_static(Y) and Y.size and np.array_equal(Y, np.arange(Y[0], Y[0] + Y.size)):
        return X[..., int(Y[0]) : int(Y[0]) + Y.size]
    if is_static(Y):
        return take_static(traced(X), Y, X.ndim - 1)
    return take_by_data(X, Y, X.ndim - 1, functools.partial(in_range, 1))


@op("ZipMap", domain=ML)
def zip_map(
    X: GraphValue, *, classlabels_int64s: tuple[int, ...] = (), classlabels_strings: tuple[str, ...] = ()
) -> GraphValue:
    """The input, with a column for each label; ONNX makes a dictionary for each row.

    https://onnx.ai/onnx/operators/onnx_aionnxml_ZipMap.html
    """
    return X
