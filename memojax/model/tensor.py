"""Convert a TensorProto to NumPy; the one table of ONNX, NumPy and JAX dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..errors import ModelLoadError
from ..xla.limits import ELEMENTS

MAX_RANK = 64
"""Axes that an array may have, in NumPy and in JAX."""

DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.UINT64: np.dtype(np.uint64),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.COMPLEX64: np.dtype(np.complex64),
    TensorProto.COMPLEX128: np.dtype(np.complex128),
    TensorProto.STRING: np.dtype(object),
    TensorProto.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    TensorProto.FLOAT8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    TensorProto.INT4: np.dtype(ml_dtypes.int4),
    TensorProto.UINT4: np.dtype(ml_dtypes.uint4),
    TensorProto.FLOAT4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    TensorProto.INT2: np.dtype(ml_dtypes.int2),
    TensorProto.UINT2: np.dtype(ml_dtypes.uint2),
}
"""ONNX element type -> NumPy dtype, which is also the JAX dtype, except for strings."""

ELEMENT_TYPES: dict[np.dtype, int] = {dtype: element_type for element_type, dtype in DTYPES.items()}


def dtype_of(element_type: int) -> np.dtype:
    """The NumPy dtype of an ONNX element type.

    Raises:
        ModelLoadError: the element type is unknown.
    """
    try:
        return DTYPES[element_type]
    except KeyError:
        name = (
            TensorProto.DataType.Name(element_type)
            if element_type in TensorProto.DataType.values()
            else element_type
        )
        raise ModelLoadError(f"tensor element type {name} is not supported") from None


def to_numpy(tensor: onnx.TensorProto) -> np.ndarray:
    """The value of a TensorProto, whose external data must have been put into it.

    Raises:
        ModelLoadError: data are missing, truncated, or do not fit the declared shape.
    """
    dtype = dtype_of(tensor.data_type)
    shape = tuple(tensor.dims)
    if len(shape) > MAX_RANK or any(dim < 0 for dim in shape):
        raise ModelLoadError(
            f"tensor {tensor.name!r} has shape {list(shape)[:80]} of rank {len(shape)}: dimensions must not "
            f"be negative, and the rank may be {MAX_RANK}"
        )
    try:
        array = numpy_helper.to_array(tensor)
        if dtype.kind == "O":
            return np.array([_text(item) for item in array.ravel()], dtype=object).reshape(shape)
        return np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(shape)
    except Exception as cause:
        raise ModelLoadError(
            f"tensor {tensor.name!r} ({dtype}, shape {list(shape)}) cannot be read: {cause}"
        ) from cause


def to_dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The value of a SparseTensorProto as a dense array.

    Raises:
        LimitError: the shape has more elements than one value may have.
        ModelLoadError: the indices do not fit the shape or the values.
    """
    values, indices, shape = to_numpy(sparse.values), to_numpy(sparse.indices), tuple(sparse.dims)
    name = sparse.values.name
    if len(shape) > MAX_RANK or any(dim < 0 for dim in shape):
        raise ModelLoadError(
            f"sparse tensor {name!r} has shape {list(shape)[:80]} of rank {len(shape)}: dimensions must not "
            f"be negative, and the rank may be {MAX_RANK}"
        )
    size = math.prod(shape)
    ELEMENTS.check(size, f"sparse tensor {name!r} of shape {list(shape)}")
    if (
        indices.dtype != np.int64
        or indices.shape not in ((values.size,), (values.size, len(shape)))
        or values.ndim != 1
    ):
        raise ModelLoadError(
            f"sparse tensor {name!r}: indices of shape {list(indices.shape)} and dtype {indices.dtype} do "
            f"not fit values of shape {list(values.shape)} in a tensor of shape {list(shape)}"
        )
    if indices.ndim == 2:
        inside = bool(np.all((indices >= 0) & (indices < np.asarray(shape, np.int64))))
        flat = (
            np.ravel_multi_index(tuple(indices.T), shape)
            if inside and indices.size
            else np.zeros(0, np.int64)
        )
    else:
        inside, flat = bool(np.all((indices >= 0) & (indices < size))), indices
    if not inside:
        raise ModelLoadError(f"sparse tensor {name!r}: an index lies outside its shape {list(shape)}")
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def overflow(array: np.ndarray, dtype: np.dtype) -> int | None:
    """A whole number in `array` that the integer `dtype` cannot hold.

    None if all fit, or if one of the two dtypes is not an integer type.
    """
    if array.dtype.kind not in "iu" or dtype.kind not in "iuV" or np.can_cast(array.dtype, dtype):
        return None
    try:
        limits = ml_dtypes.iinfo(dtype)
    except ValueError:  # a small float type, whose kind is V as well
        return None
    for value in (int(array.min()), int(array.max())) if array.size else ():
        if not limits.min <= value <= limits.max:
            return value
    return None


def _text(item: str | bytes) -> str:
    return item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
