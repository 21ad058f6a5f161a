"""The com.microsoft domain, without ONNX cases; 8-bit weights are small, since onnxruntime saturates sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Case

MICROSOFT = "com.microsoft"
F32 = np.float32
RNG = np.random.default_rng(0)
ACTIVATIONS: dict[str, list[float]] = {
    "Relu": [],
    "Tanh": [],
    "Sigmoid": [],
    "LeakyRelu": [0.3],
    "HardSigmoid": [0.3, 0.4],
}


def case(op_type: str, *inputs: np.ndarray | None, n_outputs: int = 1, **attributes: Any) -> Case:
    return Case(op_type, 1, inputs, attributes, MICROSOFT, n_outputs)


def reals(*shape: int, dtype: Any = F32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def integers(dtype: Any, *shape: int) -> np.ndarray:
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


def weights(dtype: Any, *shape: int) -> np.ndarray:
    return RNG.integers(0 if dtype == np.uint8 else -60, 60, shape).astype(dtype)


def scale(*values: float) -> np.ndarray:
    return np.array(values if len(values) != 1 else values[0], F32)


def _products() -> list[Case]:
    cases = []
    for left, right in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 6, 3, 4), (2, 6, 4, 5))):
        a, b = reals(*left), reals(*right)
        for name in ("FusedMatMul", "TransposeMatMul"):
            cases.append(case(name, a, b, alpha=0.5))
            cases.append(case(name, a.swapaxes(-1, -2).copy(), b.swapaxes(-1, -2).copy(), transA=1, transB=1))
    a, b = reals(2, 6, 3, 4), reals(2, 6, 4, 5)
    for turned in (0, 1):
        moved = np.moveaxis(a.swapaxes(-1, -2) if turned else a, -2, 0).copy()
        cases.append(case("FusedMatMul", moved, b, transBatchA=1, transA=turned))
        moved = np.moveaxis(b.swapaxes(-1, -2) if turned else b, -2, 0).copy()
        cases.append(case("FusedMatMul", a, moved, transBatchB=1, transB=turned))
    for name, parameters in {
        **ACTIVATIONS,
        "Elu": [0.3],
        "Softplus": [],
        "Softsign": [],
        "ThresholdedRelu": [0.3],
    }.items():
        named = dict(zip(("activation_alpha", "activation_beta"), parameters, strict=False))
        cases.append(
            case(
                "FusedGemm", reals(3, 4), reals(4, 5), reals(5), activation=name, alpha=0.5, beta=2.0, **named
            )
        )
    for name, parameters in {**ACTIVATIONS, "Clip": [-0.5, 0.7], "HardSwish": []}.items():
        given = {"activation": name, "pads": [1] * 4} | (
            {"activation_params": parameters} if parameters else {}
        )
        cases.append(
            case("FusedConv", reals(1, 3, 6, 6), reals(4, 3, 3, 3), reals(4), reals(1, 4, 6, 6), **given)
        )
    cases += [
        case("FusedConv", reals(1, 3, 6, 6), reals(4, 3, 3, 3)),
        case("Inverse", reals(2, 3, 3)),
        *(case("CDist", reals(4, 3), reals(5, 3), metric=metric) for metric in ("euclidean", "sqeuclidean")),
    ]
    return cases


def _packed() -> list[Case]:
    cases = []
    for bits in (2, 4, 8):
        for k, n, block_size in ((32, 5, 16), (40, 3, 16)):
            blocks = -(-k // block_size)
            b, scales = integers(np.uint8, n, blocks, block_size * bits // 8), np.abs(reals(n, blocks)) / 10
            given = {"K": k, "N": n, "bits": bits, "block_size": block_size}
            zero_points = [None, integers(np.uint8, n, -(-blocks * bits // 8))] + [
                np.abs(reals(n, blocks))
            ] * (bits == 4)
            cases += [
                case("MatMulNBits", reals(3, k), b, scales, zero, None, reals(n), **given)
                for zero in zero_points
            ]
    return cases


def _activations_and_norms() -> list[Case]:
    cases = [
        case("Gelu", reals(3, 4)),
        case("BiasGelu", reals(3, 4), reals(4)),
        case("QuickGelu", reals(3, 4), alpha=1.3),
    ]
    cases += [case("FastGelu", reals(3, 4)), case("FastGelu", reals(3, 4), reals(4))]
    x, skip, row = reals(2, 4, 5), reals(2, 4, 5), reals(5)
    cases += [
        case("SkipLayerNormalization", x, skip, row, row, row, epsilon=1e-5),
        case("SkipLayerNormalization", x, skip[0], row),
        case("SkipLayerNormalization", x, skip[:1], row, row),
        case("SkipSimplifiedLayerNormalization", x, skip, row, row),
    ]
    for opset in (7, 11, 16):
        cases.append(Case("LayerNormalization", opset, (reals(3, 4, 5), reals(5), reals(5)), n_outputs=3))
        cases.append(
            Case(
                "SimplifiedLayerNormalization", opset, (reals(3, 4, 5), reals(4, 5)), {"axis": 1}, n_outputs=2
            )
        )
    return cases


def _quantized() -> list[Case]:
    cases = []
    for dtype in (np.uint8, np.int8):

        def zero(value: int, dtype: Any = dtype) -> np.ndarray:
            return np.array(value if dtype == np.uint8 else value - 128, dtype)

        x = (integers(dtype, 3, 4), scale(0.1013), zero(100))
        wide = (integers(dtype, 3, 40), scale(0.0507), zero(100))
        image = (integers(dtype, 1, 2, 6, 6), scale(0.0507), zero(100))
        back = (np.moveaxis(image[0], 1, -1).copy(), *image[1:])
        cases += [
            case("QLinearAdd", *x, integers(dtype, 4), scale(0.0711), zero(30), scale(0.1297), zero(128)),
            case("QLinearMul", *x, integers(dtype, 4), scale(0.0711), zero(30), scale(0.4999), zero(128)),
            case("QLinearSigmoid", *wide, scale(1 / 256), zero(0)),
            case("QLinearLeakyRelu", *wide, scale(0.0711), zero(60), alpha=0.31),
            *(
                case("QLinearSoftmax", *wide, scale(1 / 256), zero(0), axis=axis, opset=opset)
                for axis, opset in ((-1, 13), (0, 12))
            ),
            case(
                "QLinearConcat",
                scale(0.1013),
                zero(90),
                *x,
                integers(dtype, 2, 4),
                scale(0.1203),
                zero(150),
                axis=0,
            ),
            case(
                "QLinearWhere",
                RNG.random((3, 4)) > 0.5,
                *x,
                integers(dtype, 3, 4),
                scale(0.0711),
                zero(10),
                scale(0.1013),
                zero(120),
            ),
            case("QuantizeLinear", reals(3, 4), scale(0.0507), zero(100)),
            case("QuantizeLinear", reals(3, 4), scale(0.1, 0.2, 0.3), np.zeros(3, dtype), axis=0),
            case("DequantizeLinear", *x),
        ]
        for channels_last, given in ((0, image), (1, back)):
            pool = {"kernel_shape": [3, 3], "channels_last": channels_last}
            cases += [
                case(
                    "QLinearAveragePool", *given, scale(0.043), zero(90), strides=[2, 2], ceil_mode=1, **pool
                ),
                case(
                    "QLinearGlobalAveragePool", *given, scale(0.0407), zero(90), channels_last=channels_last
                ),
                case(
                    "QLinearConv",
                    *given,
                    weights(np.int8, 4, 2, 3, 3),
                    scale(0.01, 0.02, 0.03, 0.04),
                    np.zeros(4, np.int8),
                    scale(0.4999),
                    zero(90),
                    RNG.integers(-100, 100, 4).astype(np.int32),
                    pads=[1] * 4,
                    channels_last=channels_last,
                ),
            ]
        cases += _quantized_products(dtype, zero(100), zero(120))
    cases += [case("QuantizeLinear", reals(3, 4), scale(5e-4), np.array(100, np.uint16))]
    cases += [case("DequantizeLinear", RNG.integers(-1000, 1000, (3, 4)).astype(np.int32), scale(0.0507))]
    return cases


def _quantized_products(dtype: Any, a_zero: np.ndarray, y_zero: np.ndarray) -> list[Case]:
    cases = []
    a, b, bias = integers(dtype, 3, 4), weights(np.int8, 4, 5), RNG.integers(-1000, 1000, 5).astype(np.int32)
    b_zero = RNG.integers(-3, 3, 5).astype(np.int8)
    for b_scale, zero in (
        (scale(0.0203), np.array(3, np.int8)),
        (scale(0.01, 0.02, 0.03, 0.04, 0.05), b_zero),
    ):
        quantized = (b, b_scale, zero)
        cases.append(
            case("QGemm", a, scale(0.0507), a_zero, *quantized, bias, scale(0.7013), y_zero, alpha=1.5)
        )
        cases.append(
            case("QGemm", a.T.copy(), scale(0.0507), a_zero, b.T.copy(), b_scale, zero, transA=1, transB=1)
        )
    w = weights(dtype, 4, 5)
    for b_scale, zero in (
        (scale(0.0203), None),
        (scale(0.0203), np.array(3, dtype)),
        (scale(0.1, 0.2, 0.3, 0.4, 0.5), np.arange(5).astype(dtype)),
    ):
        cases.append(case("MatMulIntegerToFloat", a, w, scale(0.0507), b_scale, a_zero, zero, reals(5)))
        cases.append(case("DynamicQuantizeMatMul", reals(2, 3, 4), w, b_scale, zero, reals(5)))
    return cases


def _lstm(dtype: Any) -> list[Case]:
    cases = []
    for d, direction in ((1, "reverse"), (2, "bidirectional")):
        w, r, state = weights(dtype, d, 3, 16), weights(dtype, d, 4, 16), reals(d, 2, 4)
        scales = [
            value
            for _ in "WR"
            for value in (RNG.uniform(0.005, 0.01, d).astype(F32), integers(dtype, d) // 16)
        ]
        for optional in ((None,) * 5, (reals(d, 32), None, state, state, reals(d, 12))):
            inputs = (reals(5, 2, 3), w, r, *optional, *scales)
            cases.append(
                case("DynamicQuantizeLSTM", *inputs, n_outputs=3, direction=direction, hidden_size=4)
            )
    return cases


def _attention() -> list[Case]:
    cases = []
    masks = {
        "none": None,
        "keys": np.array([[1, 1, 1, 0], [1, 0, 1, 1]]),
        "lengths": np.array([3, 4]),
        "ends": np.array([3, 4, 0, 0]),
    }
    masks["pairs"] = RNG.integers(0, 2, (2, 4, 4)) | np.eye(4, dtype=np.int64)
    x, w, b, past = reals(2, 4, 6), reals(6, 24) / 2, reals(24), reals(2, 2, 2, 3, 4)
    heads: dict[str, Any] = {"num_heads": 2}
    for unidirectional in (0, 1):
        heads["unidirectional"] = unidirectional
        for name, mask in masks.items():
            given = None if mask is None else mask.astype(np.int32)
            cases.append(case("Attention", x, w, b, given, **heads))
            if name in ("none", "keys", "lengths"):
                cases.append(
                    case(
                        "MultiHeadAttention",
                        reals(2, 4, 8),
                        reals(2, 4, 8),
                        reals(2, 4, 12),
                        reals(28),
                        given,
                        **heads,
                    )
                )
        cases += [
            case("Attention", x, w, None, None, None, reals(1, 2, 4, 4), scale=0.3, **heads),
            case("Attention", x, w, b, None, past, n_outputs=2, **heads),
            case("Attention", x, reals(6, 20), reals(20), qkv_hidden_sizes=[8, 8, 4], **heads),
            case(
                "MultiHeadAttention",
                reals(2, 4, 8),
                *[reals(2, 4, 8)] * 2,
                None,
                None,
                None,
                *past,
                n_outputs=3,
                **heads,
            ),
        ]
    crossed = [reals(2, 4, 8), reals(2, 2, 5, 4), reals(2, 2, 5, 4)]
    cases += [
        case(
            "MultiHeadAttention",
            reals(2, 4, 8),
            reals(2, 6, 8),
            reals(2, 6, 12),
            None,
            None,
            reals(1, 2, 4, 6),
            num_heads=2,
            scale=0.3,
        ),
        case("MultiHeadAttention", *crossed, num_heads=2),
    ]
    for interleaved in (0, 1):
        for ids in (np.array([2]), RNG.integers(0, 10, (2, 4))):
            cases += [
                case(
                    "RotaryEmbedding",
                    reals(2, 4, 16),
                    ids,
                    reals(12, 4),
                    reals(12, 4),
                    interleaved=interleaved,
                ),
                case(
                    "RotaryEmbedding",
                    reals(2, 3, 4, 8),
                    ids,
                    reals(12, 4),
                    reals(12, 4),
                    interleaved=interleaved,
                ),
            ]
        partial = {"interleaved": interleaved, "num_heads": 2, "rotary_embedding_dim": 4}
        cases.append(
            case("RotaryEmbedding", reals(2, 4, 16), np.array([0]), reals(12, 2), reals(12, 2), **partial)
        )
    ids, segments = RNG.integers(0, 10, (2, 4)).astype(np.int32), RNG.integers(0, 2, (2, 4)).astype(np.int32)
    tables, row, mask = (
        (reals(10, 6), reals(8, 6)),
        reals(6),
        np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
    )
    cases += [
        case(
            "EmbedLayerNormalization",
            ids,
            segments,
            *tables,
            reals(2, 6),
            row,
            row,
            mask,
            n_outputs=3,
            epsilon=1e-5,
        ),
        case("EmbedLayerNormalization", ids, None, *tables, None, row, row, n_outputs=2, epsilon=1e-5),
        case(
            "EmbedLayerNormalization",
            ids,
            None,
            *tables,
            None,
            row,
            row,
            None,
            ids % 8,
            n_outputs=2,
            epsilon=1e-5,
        ),
    ]
    return cases


def _tensor() -> list[Case]:
    x = reals(2, 3, 4)
    return [
        case("GatherND", x, np.array([[0, 1], [1, 2]])),
        case("Pad", x, np.array([0, 1, 0, 0, -1, 2]), scale(3.0)),
        case("Pad", x, np.array([[0, 1, 0, 0, 0, 2]]), mode="reflect"),
        case("ExpandDims", x, np.array([1], np.int32)),
        case("Range", np.array(1), np.array(5)),
        case("Range", scale(1.0), scale(5.0), scale(0.5)),
        *(case("Trilu", x, k, upper=upper) for k in (None, np.array(1), np.array(-1)) for upper in (0, 1)),
        *(
            case("GridSample", reals(1, 2, 4, 5), reals(1, 3, 3, 2), mode=mode)
            for mode in ("bilinear", "nearest", "bicubic")
        ),
    ]


CASES: list[Case] = (
    _products()
    + _packed()
    + _activations_and_norms()
    + _quantized()
    + _lstm(np.int8)
    + _lstm(np.uint8)
    + _attention()
    + _tensor()
)
