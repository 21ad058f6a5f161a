"""The generator family; random operators with parameters that leave only one possible value."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from . import Case

_empty = np.zeros((2, 3), np.float32)
_tensor = numpy_helper.from_array(np.array([[1.5, -2.0]], np.float32), "value")
_sevens = numpy_helper.from_array(np.array([7]), "value")
_certain = np.array([[-1e30, 0, -1e30], [0, -1e30, -1e30]], np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_constants = [
    *(Case("Constant", opset, (), {"value": _tensor}) for opset in (7, 9, 11, 12, 13, 19, 21)),
    *(
        Case("Constant", opset, (), attributes)
        for opset in (12, 13)
        for attributes in (
            {"value_float": 1.5},
            {"value_floats": [1.0, 2.0]},
            {"value_int": 3},
            {"value_ints": [3, 4]},
        )
    ),
    *(Case("ConstantOfShape", opset, (_i(2, 3),)) for opset in (9, 20, 21)),
    *(Case("ConstantOfShape", opset, (_i(),), {"value": _sevens}) for opset in (9, 21)),
    Case("ConstantOfShape", 9, (_i(0, 2),), {"value": _sevens}),
    *(Case("EyeLike", opset, (_empty,), {"k": k}) for opset in (9, 22) for k in (-1, 0, 2)),
    Case("EyeLike", 9, (_empty.astype(np.int32),), {"dtype": TensorProto.DOUBLE}),
    Case("Range", 11, (np.array(1), np.array(10), np.array(3))),
    Case("Range", 11, (np.array(10, np.int32), np.array(4, np.int32), np.array(-2, np.int32))),
    Case("Range", 11, (np.array(1, np.float32), np.array(0.1, np.float32), np.array(-0.3, np.float32))),
    Case("Range", 11, (np.array(0.0), np.array(1.0), np.array(0.1))),
    Case("Range", 11, (np.array(3), np.array(1), np.array(1))),
]

_random = [
    *(
        Case(
            op_type,
            opset,
            (),
            {"shape": [2, 3], "dtype": dtype, "seed": 3.5, **attributes},
            expected=(np.full((2, 3), 2.5, kind),),
        )
        for op_type, attributes in (
            ("RandomNormal", {"mean": 2.5, "scale": 0.0}),
            ("RandomUniform", {"low": 2.5, "high": 2.5}),
        )
        for opset in (7, 22)
        for dtype, kind in (
            (TensorProto.FLOAT, np.float32),
            (TensorProto.DOUBLE, np.float64),
            (TensorProto.FLOAT16, np.float16),
        )
    ),
    *(
        Case(
            op_type,
            opset,
            (_empty.astype(np.float16),),
            {**attributes, **dtype},
            expected=(np.full((2, 3), 2.5, kind),),
        )
        for op_type, attributes in (
            ("RandomNormalLike", {"mean": 2.5, "scale": 0.0}),
            ("RandomUniformLike", {"low": 2.5, "high": 2.5}),
        )
        for opset in (7, 22)
        for dtype, kind in (({}, np.float16), ({"dtype": TensorProto.FLOAT}, np.float32))
    ),
    *(
        Case(
            "Bernoulli",
            opset,
            (np.array([0.0, 1.0, 1.0]),),
            attributes,
            expected=(np.array([0, 1, 1], kind),),
        )
        for opset in (15, 22)
        for attributes, kind in (
            ({}, np.float64),
            ({"dtype": TensorProto.BOOL}, np.bool_),
            ({"dtype": TensorProto.INT32}, np.int32),
        )
    ),
    *(
        Case(
            "Multinomial",
            opset,
            (_certain.astype(dtype),),
            {"sample_size": 4, "dtype": TensorProto.INT64},
            expected=(_i(*[1] * 4, *[0] * 4).reshape(2, 4),),
        )
        for opset in (7, 22)
        for dtype in (np.float32, np.float64)
    ),
    Case("Multinomial", 7, (_certain,), expected=(np.array([[1], [0]], np.int32),)),
]

CASES: list[Case] = [*_constants, *_random]
