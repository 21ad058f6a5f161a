"""The tensor family: old versions, and options of current ones that ONNX's own cases leave out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto

from memojax.model.tensor import ELEMENT_TYPES

from . import Case

_rng = np.random.default_rng(0)
_MAX, _MIN = np.iinfo(np.int64).max, np.iinfo(np.int64).min


def _f(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(_rng.standard_normal(shape) * 4).astype(dtype)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_x = _f(2, 3, 4)
_image = _f(1, 4, 6, 5)
_special = np.array([1.5, np.nan, np.inf, -np.inf, 0.0, -2.5], np.float32)

_cast = [
    *(
        Case("Cast", opset, (_f(3, 4),), {"to": to})
        for opset in (7, 9, 13, 19)
        for to in (TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL)
    ),
    Case("Cast", 9, (np.array([300, -1, 128, 5]),), {"to": TensorProto.UINT8}),
    Case("Cast", 13, (np.array([300.5, -1.5, 128.0, 5.9], np.float32),), {"to": TensorProto.INT8}),
    Case("Cast", 13, (_special,), {"to": TensorProto.BOOL}),
    Case("Cast", 13, (np.array([2**40 + 1, -(2**33)]),), {"to": TensorProto.INT32}),
    *(
        Case(
            "Cast",
            19,
            (np.array([0.3, 460, 1e9, -np.inf, np.nan], np.float32),),
            {"to": ELEMENT_TYPES[np.dtype(dtype)], "saturate": saturate},
            expected=(np.array(values, dtype),),
        )
        for dtype, saturate, values in (
            (ml_dtypes.float8_e4m3fn, 1, [0.3125, 448, 448, -448, np.nan]),
            (ml_dtypes.float8_e4m3fn, 0, [0.3125, 448, np.nan, np.nan, np.nan]),
            (ml_dtypes.float8_e4m3fnuz, 1, [0.3125, 240, 240, -240, np.nan]),
            (ml_dtypes.float8_e4m3fnuz, 0, [0.3125, np.nan, np.nan, np.nan, np.nan]),
            (ml_dtypes.float8_e5m2, 1, [0.3125, 448, 57344, -57344, np.nan]),
            (ml_dtypes.float8_e5m2, 0, [0.3125, 448, np.inf, -np.inf, np.nan]),
            (ml_dtypes.float8_e5m2fnuz, 1, [0.3125, 448, 57344, -57344, np.nan]),
            (ml_dtypes.float8_e5m2fnuz, 0, [0.3125, 448, np.nan, np.nan, np.nan]),
        )
    ),
    *(
        Case("CastLike", opset, (_f(3, 4), np.zeros(1, dtype)))
        for opset in (15, 19, 21)
        for dtype in (np.float64, np.int32, np.float16)
    ),
    Case("Cast", 13, (np.array(["1.5", "-2", "NaN", "+INF"], object),), {"to": TensorProto.FLOAT}),
    *(
        Case("IsInf", 10, (_special,), attributes)
        for attributes in ({}, {"detect_negative": 0}, {"detect_positive": 0})
    ),
    Case("IsInf", 10, (_special,), {"detect_positive": 0, "detect_negative": 0}),
    *(
        Case("IsNaN", opset, (_special.astype(dtype),))
        for opset in (9, 13)
        for dtype in (np.float32, np.float16)
    ),
]

_shape = [
    *(Case("Identity", opset, (_x,)) for opset in (7, 13, 14, 16, 19, 21)),
    *(Case("Shape", opset, (_x,)) for opset in (7, 13, 15, 19, 21)),
    Case("Shape", 19, (_x,), {"start": -2, "end": 10}),
    *(Case("Size", opset, (_x,)) for opset in (7, 13, 19, 21)),
    *(Case("Reshape", opset, (_x, _i(0, -1, 2))) for opset in (7, 13, 14, 19, 21)),
    Case("Reshape", 14, (np.zeros((0, 3), np.float32), _i(3, 0)), {"allowzero": 1}),
    *(Case("Squeeze", opset, (_f(1, 3, 1, 2),), {"axes": [0, 2]}) for opset in (7, 11)),
    Case("Squeeze", 11, (_f(1, 3, 1, 2),), {"axes": [-2]}),
    Case("Squeeze", 7, (_f(1, 3, 1, 2),)),
    *(Case("Squeeze", opset, (_f(1, 3, 1, 2), _i(0, -2))) for opset in (13, 21)),
    Case("Squeeze", 13, (_f(1, 3, 1, 2),)),
    Case("Unsqueeze", 7, (_x,), {"axes": [0, 2]}),
    Case("Unsqueeze", 11, (_x,), {"axes": [-1, 1]}),
    Case("Unsqueeze", 13, (_x, _i(4, 0))),
    *(
        Case("Transpose", opset, (_x,), attributes)
        for opset in (7, 13, 21)
        for attributes in ({}, {"perm": [1, 2, 0]})
    ),
    *(Case("Concat", opset, (_x, _f(2, 1, 4), _f(2, 0, 4)), {"axis": 1}) for opset in (7, 11, 13)),
    Case("Concat", 11, (_x, _f(2, 3, 1)), {"axis": -1}),
    Case("Split", 7, (_x,), {"axis": 2, "split": [1, 3]}, n_outputs=2),
    Case("Split", 7, (_f(6, 2),), n_outputs=3),
    Case("Split", 11, (_f(6, 2),), {"axis": -2, "split": [4, 0, 2]}, n_outputs=3),
    Case("Split", 13, (_f(6, 2), _i(1, 5)), n_outputs=2),
    Case("Split", 13, (_f(6, 2),), n_outputs=3),
    Case("Split", 18, (_f(7, 2),), {"num_outputs": 3}, n_outputs=3),
    *(Case("Tile", opset, (_x, _i(1, 2, 3))) for opset in (7, 13)),
    Case("DepthToSpace", 7, (_f(1, 8, 2, 3),), {"blocksize": 2}),
    *(
        Case("DepthToSpace", opset, (_f(1, 8, 2, 3),), {"blocksize": 2, "mode": mode})
        for opset in (11, 13)
        for mode in ("DCR", "CRD")
    ),
    *(Case("SpaceToDepth", opset, (_f(2, 3, 4, 6),), {"blocksize": 2}) for opset in (7, 13)),
]

_index = [
    Case("Slice", 7, (_x,), {"starts": [0, -3], "ends": [_MAX, -1], "axes": [0, 2]}),
    Case("Slice", 7, (_x,), {"starts": [1, 1], "ends": [2, 100]}),
    *(Case("Slice", opset, (_x, _i(1, 0), _i(_MAX, -1), _i(1, 2))) for opset in (10, 11, 13)),
    *(Case("Slice", opset, (_x, _i(-1, _MAX), _i(_MIN, -4), _i(1, 2), _i(-1, -2))) for opset in (10, 11, 13)),
    Case("Slice", 11, (_x, _i(3), _i(1), _i(-1))),
    Case("Slice", 13, (_x, np.array([1], np.int32), np.array([3], np.int32), np.array([-2], np.int32))),
    *(Case("Gather", opset, (_x, np.array([[0, 2], [1, 0]])), {"axis": 1}) for opset in (7, 11, 13)),
    Case("Gather", 11, (_x, np.array([-1, 0], np.int32)), {"axis": -1}),
    Case("Gather", 13, (_x, np.array(1))),
    *(Case("GatherElements", opset, (_x, np.array([[[1, -2, 0]]])), {"axis": 2}) for opset in (11, 13)),
    *(Case("GatherND", opset, (_x, np.array([[0, 1], [-1, -1]]))) for opset in (11, 12, 13)),
    Case("GatherND", 12, (_x, np.array([[[1, 0]], [[2, 3]]])), {"batch_dims": 1}),
    *(
        Case(op_type, opset, (_x, np.array([[[2, 0, 1]], [[-1, 3, 3]]]), _f(2, 1, 3)), {"axis": 2})
        for op_type, opset in (
            ("Scatter", 9),
            ("ScatterElements", 11),
            ("ScatterElements", 13),
            ("ScatterElements", 16),
        )
    ),
    *(
        Case(
            "ScatterElements",
            opset,
            (_x, np.array([[[2, 0, 2]], [[-1, 3, 3]]]), _f(2, 1, 3)),
            {"axis": -1, "reduction": reduction},
        )
        for opset, reductions in ((16, ("add", "mul")), (18, ("add", "mul", "min", "max")))
        for reduction in reductions
    ),
    *(Case("ScatterND", opset, (_x, np.array([[0, 1], [1, -1]]), _f(2, 4))) for opset in (11, 13, 16)),
    *(
        Case("ScatterND", opset, (_x, np.array([[0, 1], [1, 2], [0, 1]]), _f(3, 4)), {"reduction": reduction})
        for opset, reductions in ((16, ("add", "mul")), (18, ("add", "mul", "min", "max")))
        for reduction in reductions
    ),
    *(Case("Where", opset, (np.array([[True], [False], [True]]), _f(3, 4), _f(1, 4))) for opset in (9, 16)),
    *(
        Case(
            "OneHot",
            opset,
            (np.array([0, 2, -1, 7, -3]), _i(3), np.array([2.0, 5.0], np.float32)),
            {"axis": axis},
        )
        for opset in (9, 11)
        for axis in (-1, 0)
    ),
    Case(
        "OneHot",
        11,
        (np.array([[0.0, 2.0]], np.float32), np.array(3.0, np.float32), np.array([0, 1], np.float32)),
        {"axis": 1},
    ),
    *(
        Case("Trilu", 14, (_f(2, 4, 5), np.array(k)), {"upper": upper})
        for k in (-2, 1, 9)
        for upper in (0, 1)
    ),
    Case("ReverseSequence", 10, (_f(4, 3, 2), _i(1, 4, 3))),
    Case("ReverseSequence", 10, (_f(3, 4, 2), _i(1, 4, 3)), {"batch_axis": 0, "time_axis": 1}),
]

_repeated = np.array([2.0, 1.0, 1.0, 3.0, 4.0, 3.0], np.float32)
_by_data = [
    *(Case("NonZero", opset, (x,)) for opset in (9, 13) for x in (_x > 0, np.array([[0, 3], [2, 0]]))),
    *(Case("Compress", opset, (_x, np.array([False, True, True])), {"axis": 1}) for opset in (9, 11)),
    Case("Compress", 11, (_x, np.array([False, True, True, False, True]))),
    *(Case("Unique", 11, (_repeated,), {"sorted": order}, n_outputs=4) for order in (0, 1)),
    Case("Unique", 11, (np.array([[1, 0, 0], [1, 0, 0], [2, 3, 4]], np.float32),), {"axis": 0}, n_outputs=4),
]

_pads = _i(0, 1, 2, 0, -1, 1)
_pad = [
    *(
        Case("Pad", 7, (_x,), {"pads": [0, 1, 2, 0, -1, 1], "mode": mode, "value": 1.5})
        for mode in ("constant", "reflect", "edge")
    ),
    *(
        Case(
            "Pad",
            opset,
            (_f(2, 4, 5), _pads, None if opset == 13 else np.array(1.5, np.float32)),
            {"mode": mode},
        )
        for opset in (11, 13, 18, 19, 21, 23)
        for mode in ("constant", "reflect", "edge")
    ),
    *(Case("Pad", 19, (_f(2, 4, 5), _i(7, 1, 3, 12), None, _i(2, -2)), {"mode": "wrap"}) for _ in range(1)),
    Case("Pad", 13, (np.arange(6).reshape(2, 3), _i(1, 0, 0, 2), np.array(7))),
    Case("Pad", 18, (_f(2, 4, 5), _i(-1, 2), np.array(3, np.float32), np.array([-1], np.int32))),
]

_scales = np.array([1, 1, 1.7, 2.5], np.float32)
_shrink = np.array([1, 1, 0.6, 0.4], np.float32)
_none = np.zeros(0, np.float32)
_resize = [
    *(
        Case("Upsample", 7, (_image,), {"mode": mode, "scales": [1.0, 1.0, 2.0, 1.5]})
        for mode in ("nearest", "linear")
    ),
    *(Case("Upsample", 9, (_image, _scales), {"mode": mode}) for mode in ("nearest", "linear")),
    *(
        Case("Resize", 10, (_image, scales), {"mode": mode})
        for mode in ("nearest", "linear")
        for scales in (_scales, _shrink)
    ),
    *(
        Case(
            "Resize",
            opset,
            (_image, _none, scales),
            {"mode": mode, "coordinate_transformation_mode": transform},
        )
        for opset in (11, 13, 18, 19)
        for mode in ("nearest", "linear", "cubic")
        for transform in ("half_pixel", "pytorch_half_pixel", "asymmetric")
        for scales in (_scales, _shrink)
    ),
    *(
        Case(
            "Resize",
            13,
            (_image, None, None, _i(1, 4, *size)),
            {"mode": mode, "coordinate_transformation_mode": "align_corners"},
        )
        for mode in ("nearest", "linear", "cubic")
        for size in ((12, 3), (1, 9))
    ),
    *(
        Case("Resize", 13, (_image, None, scales), {"nearest_mode": mode})
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for scales in (_scales, _shrink)
    ),
    Case("Resize", 11, (_image, _none, _shrink), {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}),
    *(
        Case(
            "Resize",
            13,
            (_image, np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3], np.float32), scales),
            {
                "mode": mode,
                "coordinate_transformation_mode": "tf_crop_and_resize",
                "extrapolation_value": 9.0,
            },
        )
        for mode in ("nearest", "linear", "cubic")
        for scales in (_scales, _shrink)
    ),
    *(
        Case(
            "Resize", 18, (_image, None, _shrink), {"mode": mode, "antialias": 1, "exclude_outside": outside}
        )
        for mode in ("linear", "cubic")
        for outside in (0, 1)
    ),
    *(
        Case(
            "Resize",
            18,
            (_image, None, None, _i(9, 4)),
            {"mode": "linear", "axes": [3, 2], "keep_aspect_ratio_policy": policy},
        )
        for policy in ("stretch", "not_larger", "not_smaller")
    ),
    Case(
        "Resize", 13, (_f(1, 1, 3, 4, 5), None, np.array([1, 1, 2, 1.5, 0.7], np.float32)), {"mode": "linear"}
    ),
    Case("Resize", 13, (_f(2, 1, 70, 80), None, np.array([1, 1, 1.5, 2.5], np.float32)), {"mode": "linear"}),
    *(
        Case(
            "GridSample",
            opset,
            (_image, _f(1, 3, 4, 2) / 4),
            {"mode": mode, "padding_mode": padding, "align_corners": align},
        )
        for opset, modes in ((16, ("bilinear", "nearest", "bicubic")), (20, ("linear", "nearest", "cubic")))
        for mode in modes
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    *(
        Case(
            "GridSample",
            20,
            (_f(2, 2, 3, 4, 5), _f(2, 2, 3, 4, 3) / 4),
            {"mode": mode, "padding_mode": padding},
        )
        for mode in ("linear", "nearest")
        for padding in ("zeros", "border", "reflection")
    ),
    *(Case("AffineGrid", 20, (_f(2, 2, 3), _i(2, 3, 4, 5)), {"align_corners": align}) for align in (0, 1)),
    Case("CenterCropPad", 18, (_f(5, 4, 3), _i(2, 7)), {"axes": [0, 1]}),
    Case("CenterCropPad", 18, (_f(6, 5, 3), _i(3, 8, 3))),
]

_half, _other = (np.array(values, ml_dtypes.bfloat16) for values in ([[1, 2], [3, 4]], [[-1, -2], [-3, -4]]))
_newest = [
    Case("Size", 24, (_x,), expected=(np.array(24),)),
    Case(
        "Where",
        16,
        (np.array([True, False]), _half, _other),
        expected=(np.array([[1, -2], [3, -4]], ml_dtypes.bfloat16),),
    ),
    Case(
        "TensorScatter",
        24,
        (np.zeros((2, 4, 1), np.float32), np.ones((2, 2, 1), np.float32), _i(1, 3)),
        {"mode": "circular"},
        expected=(np.array([[0, 1, 1, 0], [1, 0, 0, 1]], np.float32)[..., None],),
    ),
]

CASES: list[Case] = [*_cast, *_shape, *_index, *_by_data, *_pad, *_resize, *_newest]
