"""The quantization family; float types of 8 and fewer bits are in ONNX's own cases."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto

from . import Case

_rng = np.random.default_rng(0)
_x = (_rng.standard_normal((2, 3, 4)) * 300).astype(np.float32)
_ties = np.array([-0.5, 0.5, 1.5, 2.5, 1e9, -1e9, np.inf], np.float32)
_scale = np.array(2.5, np.float32)
_scales = np.array([0.5, 2.0, 3.5], np.float32)


def _integers(dtype: type, *shape: int) -> np.ndarray:
    return _rng.integers(np.iinfo(dtype).min // 2, np.iinfo(dtype).max // 2, shape, dtype)


_low = np.array([-9, 1, 30], np.int32)
_bytes = (np.int8, np.uint8)
_channels = np.array([3, 0, 9], np.uint8)
_quantize = [
    *(Case("QuantizeLinear", opset, (_x, _scale)) for opset in (10, 13, 19, 21, 23, 24, 25)),
    *(
        Case("QuantizeLinear", opset, (_x, _scale, np.array(3, dtype)))
        for opset in (10, 13, 19, 21, 23)
        for dtype in _bytes
    ),
    *(
        Case("QuantizeLinear", opset, (_ties, np.array(1, np.float32), np.array(1, dtype)))
        for opset in (10, 21)
        for dtype in _bytes
    ),
    *(
        Case("QuantizeLinear", 21, (_x * 200, _scale, np.array(-7 if dtype is np.int16 else 7, dtype)))
        for dtype in (np.int16, np.uint16)
    ),
    *(
        Case("QuantizeLinear", opset, (_x, _scales, _channels), {"axis": axis})
        for opset in (13, 19, 21, 23)
        for axis in (1, -2)
    ),
    Case(
        "QuantizeLinear",
        13,
        (_low, _scale, np.array(3, np.uint8)),
        expected=(np.array([0, 3, 15], np.uint8),),
    ),
    Case("QuantizeLinear", 19, (_x.astype(np.float16), np.array(2.5, np.float16), np.array(3, np.uint8))),
    Case("QuantizeLinear", 21, (_x, _scale), {"output_dtype": TensorProto.INT16}),
    Case(
        "QuantizeLinear",
        21,
        (_x, np.abs(_x[:, :2]) / 50 + 1, np.ones((2, 2, 4), np.int8)),
        {"axis": 1, "block_size": 2},
    ),
    Case(
        "QuantizeLinear",
        21,
        (np.array([-9.0, 0.4, 30.0], np.float32), _scale),
        {"output_dtype": TensorProto.INT4},
        expected=(np.array([-4, 0, 7], ml_dtypes.int4),),
    ),
    Case(
        "QuantizeLinear",
        25,
        (np.array([-9.0, 0.4, 30.0], np.float32), _scale),
        {"output_dtype": TensorProto.UINT2},
        expected=(np.array([0, 0, 3], ml_dtypes.uint2),),
    ),
]

_dequantize = [
    *(
        Case("DequantizeLinear", opset, (_integers(dtype, 2, 3, 4), _scale, np.array(3, dtype)))
        for opset in (10, 13, 19, 21, 23, 24, 25)
        for dtype in _bytes
    ),
    *(Case("DequantizeLinear", opset, (_integers(np.uint8, 2, 3, 4), _scale)) for opset in (10, 13, 19)),
    *(Case("DequantizeLinear", opset, (_integers(np.int32, 2, 3), _scale)) for opset in (10, 19)),
    *(
        Case(
            "DequantizeLinear",
            opset,
            (_integers(np.int8, 2, 3, 4), _scales, np.array([3, 0, 9], np.int8)),
            {"axis": -2},
        )
        for opset in (13, 19, 21, 23)
    ),
    *(
        Case("DequantizeLinear", 21, (_integers(dtype, 2, 3), _scale, np.array(3, dtype)))
        for dtype in (np.int16, np.uint16)
    ),
    Case(
        "DequantizeLinear", 19, (_integers(np.uint8, 2, 3), np.array(0.03, np.float16), np.array(3, np.uint8))
    ),
    Case(
        "DequantizeLinear",
        21,
        (_integers(np.uint8, 2, 3, 4), np.abs(_x[:, :2]), np.ones((2, 2, 4), np.uint8)),
        {"axis": 1, "block_size": 2},
    ),
    Case(
        "DequantizeLinear",
        23,
        (np.array([4, 200], np.uint8), _scale),
        {"output_dtype": TensorProto.FLOAT16},
        expected=(np.array([10, 500], np.float16),),
    ),
]

_dynamic = [
    Case("DynamicQuantizeLinear", 11, (x,), n_outputs=3)
    for x in (_x, np.abs(_x), -np.abs(_x), np.zeros((2, 2), np.float32))
]

CASES: list[Case] = [*_quantize, *_dequantize, *_dynamic]
