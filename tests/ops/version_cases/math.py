"""Versions of the math operators that ONNX's own cases leave out."""

from __future__ import annotations

import numpy as np

from . import Case

_rng = np.random.default_rng(0)
X = _rng.standard_normal((2, 3, 4)).astype(np.float32)
UNIT = _rng.uniform(0.1, 0.9, (3, 4)).astype(np.float32)
INTS = np.array([-7, -1, 0, 5, 8, 100], np.int32)
DIVISORS = np.array([2, 3, -5, -2, 3, 7], np.int32)
INT_IMAGE = _rng.integers(-128, 128, (2, 3), np.int8)
BYTES = _rng.integers(0, 256, (3, 4), np.uint8)
SCORES = _rng.standard_normal((3, 5, 2)).astype(np.float32)
LABELS = _rng.integers(0, 5, (3, 2))
WEIGHTS = _rng.uniform(0.5, 2, 5).astype(np.float32)
INF = np.array([-np.inf, -1, 2, np.inf], np.float32)

ANY_SIGN = {
    7: "Abs Ceil Elu Exp Floor HardSigmoid LeakyRelu Neg Relu Selu Sigmoid Softplus Softsign Tanh Atan Cos "
    "Sin",
    9: "Asinh Cosh Erf Sign Sinh",
    10: "ThresholdedRelu",
    12: "Celu",
    13: "Relu",
    14: "HardSwish",
    18: "Mish",
}
POSITIVE = {7: "Acos Asin Log Reciprocal Sqrt Tan", 9: "Atanh"}
SLOPED = [
    ("Elu", 7, {"alpha": 1.7}),
    ("HardSigmoid", 7, {"alpha": 0.5, "beta": 0.4}),
    ("LeakyRelu", 7, {"alpha": 0.3}),
    ("Celu", 12, {"alpha": 0.4}),
    ("Selu", 7, {"alpha": 1.3, "gamma": 2.0}),
    ("ThresholdedRelu", 10, {"alpha": 0.2}),
]


def _elementwise() -> list[Case]:
    cases = [Case(name, opset, (X,)) for opset, names in ANY_SIGN.items() for name in names.split()]
    cases += [Case(name, opset, (UNIT,)) for opset, names in POSITIVE.items() for name in names.split()]
    cases += [Case(name, opset, (X,), attributes) for name, opset, attributes in SLOPED]
    cases += [Case("Acosh", 9, (UNIT + 1,)), Case("Erf", 13, (X.astype(np.float16).astype(np.float32),))]
    for opset in (7, 13, 14):
        cases += [Case(name, opset, (X, X[0, :, :1])) for name in ("Add", "Sub", "Mul", "Div")]
        cases += [Case(name, opset, (INTS, DIVISORS)) for name in ("Add", "Sub", "Mul", "Div")]
        cases += [Case("Div", opset, (INTS.astype(np.int64), DIVISORS.astype(np.int64)))]
    for opset in (7, 8, 12, 13):
        cases += [
            Case(name, opset, (X, X[::-1].copy(), X[:, ::-1].copy()))
            for name in ("Max", "Min", "Mean", "Sum")
        ]
        cases += [Case(name, opset, (X,)) for name in ("Max", "Min", "Mean", "Sum")]
    for opset in (8, 12, 13):
        cases += [Case(name, opset, (X, X[0], X[0, 0])) for name in ("Max", "Min", "Mean", "Sum")]
    cases += [Case(name, opset, (INTS, DIVISORS)) for name in ("Max", "Min") for opset in (12, 13)]
    cases += [
        Case(name, 12, (BYTES.astype(np.uint64), BYTES[::-1].astype(np.uint64))) for name in ("Max", "Min")
    ]
    cases += [
        Case("Expand", opset, (X[:, :1], np.array(shape)))
        for opset in (8, 13)
        for shape in ([3, 1], [5, 1, 3, 4], [1])
    ]
    return cases


def _pow() -> list[Case]:
    two = np.array(2.0, np.float32)
    cases = [
        Case("Pow", opset, (UNIT, exponent))
        for opset in (7, 12, 13, 15)
        for exponent in (UNIT, two, two[None], np.array(-2.0, np.float32))
    ]
    cases += [Case("Pow", opset, (INTS, np.array([3, 2, 0.5, 1.5, -1, 2], np.float32))) for opset in (12, 15)]
    cases += [Case("Pow", opset, (UNIT, np.array([0, 1, 2, -3], np.int64))) for opset in (12, 15)]
    cases += [Case("Pow", 13, (DIVISORS.astype(np.int64), np.array([3, -1, 2, 0, 4, 20], np.int64)))]
    return cases


def _clip() -> list[Case]:
    low, high = np.array(-0.5, np.float32), np.array(0.4, np.float32)
    cases = [Case("Clip", opset, (X,), {"min": -0.5, "max": 0.4}) for opset in (7, 10)]
    cases += [
        Case("Clip", 7, (INF,)),
        Case("Clip", 7, (INF,), {"min": 0.0}),
        Case("Clip", 7, (INF,), {"max": 6.0}),
    ]
    for opset in (11, 12, 13):
        cases += [Case("Clip", opset, inputs) for inputs in ((X,), (X, low), (X, low, high), (X, None, high))]
    cases += [Case("Clip", 12, (INTS, np.array(-2, np.int32), np.array(6, np.int32)))]
    cases += [
        Case("Clip", 12, (X, high, low), expected=(np.full_like(X, low),))
    ]  # If min is above max, max wins since opset 13; before there is no rule.
    cases += [
        Case("Clip", 13, (INF, low), expected=(np.array([-0.5, -0.5, 2, np.inf], np.float32),))
    ]  # onnxruntime limits to the largest finite value.
    return cases


def _mod() -> list[Case]:
    floats = (X * 3, np.full((4,), 1.25, np.float32))
    cases = [Case("Mod", opset, (INTS, DIVISORS), {"fmod": fmod}) for opset in (10, 13) for fmod in (0, 1)]
    cases += [Case("Mod", opset, floats, {"fmod": 1}) for opset in (10, 13)]
    return [*cases, Case("Mod", 10, (BYTES, np.array(7, np.uint8)))]


def _along_axis() -> list[Case]:
    k = np.array([2])
    cases = []
    for name in ("Softmax", "LogSoftmax", "Hardmax"):
        cases += [Case(name, opset, (X,), {"axis": axis}) for opset in (7, 11, 13) for axis in (0, 1, 2)]
        cases += [Case(name, opset, (X,), {"axis": axis}) for opset in (11, 13) for axis in (-1, -2)]
        cases += [Case(name, opset, (value,)) for opset in (7, 11, 13) for value in (X, X[0])]
    for exclusive, reverse in ((0, 0), (0, 1), (1, 0), (1, 1)):
        attributes = {"exclusive": exclusive, "reverse": reverse}
        cases += [
            Case("CumSum", opset, (X, np.array(axis)), attributes) for opset in (11, 14) for axis in (0, -1)
        ]
    cases += [Case("CumSum", 11, (INTS, np.array(0)))]
    cases += [
        Case("TopK", opset, (X,), {"k": 2, **given}, n_outputs=2)
        for opset in (7, 9)
        for given in ({}, {"axis": 1})
    ]
    cases += [
        Case("TopK", opset, (X, k), given, n_outputs=2)
        for opset in (10, 11)
        for given in ({}, {"axis": 1}, {"axis": 0})
    ]
    cases += [
        Case("TopK", 11, (X, k), {"largest": 0, "axis": -2}, n_outputs=2),
        Case("TopK", 11, (INTS, k), {"largest": 0}, n_outputs=2),
    ]
    cases += [
        Case(
            "TopK", 11, (np.array([3, 1, 3, 1, 3], np.int64), np.array([4])), {"largest": large}, n_outputs=2
        )
        for large in (0, 1)
    ]
    return cases


def _linear() -> list[Case]:
    a, b, c = UNIT[:, :3].copy(), UNIT, UNIT[0]
    cases = []
    for opset in (7, 9, 11, 13):
        cases += [
            Case("Gemm", opset, (a, b, c)),
            Case("Gemm", opset, (a.T.copy(), b.T.copy(), c), {"transA": 1, "transB": 1}),
        ]
        cases += [Case("Gemm", opset, (a, b, np.array([0.5], np.float32)), {"alpha": 0.25, "beta": 0.35})]
        cases += [
            Case("Gemm", opset, (a, b, c), {"alpha": 0.0}),
            Case("Gemm", opset, (a, b, c), {"beta": 0.0}),
        ]
        cases += [
            Case("MatMul", opset, (X, UNIT.T.copy())),
            Case("MatMul", opset, (X, X.transpose(0, 2, 1).copy())),
        ]
    cases += [
        Case("Gemm", 11, (a, b)),
        Case("MatMul", 7, (c, UNIT.T.copy())),
        Case("MatMul", 9, (UNIT, c)),
        Case("MatMul", 7, (c, c)),
    ]
    cases += [Case("MatMul", 9, (INTS.reshape(2, 3), DIVISORS.reshape(3, 2)))]
    cases += [
        Case("MatMulInteger", 10, (BYTES.T.copy(), BYTES, np.array(12, np.uint8), np.array(7, np.uint8)))
    ]
    cases += [
        Case(
            "MatMulInteger",
            10,
            (INT_IMAGE.view(np.uint8), INT_IMAGE.T.copy(), None, np.array([3, -4], np.int8)),
        )
    ]
    scales = [np.array(s, np.float32) for s in (0.0066, 0.00705, 0.0107)]
    zeros = [np.array(z, np.uint8) for z in (113, 114, 118)]
    quantized = (BYTES.T.copy(), scales[0], zeros[0], BYTES, scales[1], zeros[1], scales[2], zeros[2])
    cases += [Case("QLinearMatMul", opset, quantized) for opset in (10, 21)]
    cases += [Case("Det", 11, (X[:, :3, :3].copy(),)), Case("Det", 11, (UNIT[:2, :2].copy(),))]
    equations = {
        "bij, bkj -> bik": (X, X),
        "bij->b": (X,),
        "...i,...i": (X, X),
        "ij,j": (UNIT, c),
        "bii->i": (X[:, :, :3].copy(),),
    }
    return cases + [
        Case("Einsum", 12, operands, {"equation": equation}) for equation, operands in equations.items()
    ]


def _prelu() -> list[Case]:
    return [
        Case("PRelu", opset, (X, slope))
        for opset in (7, 9, 16)
        for slope in (UNIT, UNIT[0], UNIT[:, :1].copy(), UNIT[:1, :1].copy())
    ]


def _losses() -> list[Case]:
    cases = []
    for opset in (12, 13):
        for reduction in ("none", "sum", "mean"):
            for weights in ((), (WEIGHTS,)):
                for ignored in ({}, {"ignore_index": -100}):
                    attributes = {"reduction": reduction, **ignored}
                    labels = np.where(LABELS == 0, ignored.get("ignore_index", 0), LABELS)
                    cases += [
                        Case("NegativeLogLikelihoodLoss", opset, (SCORES, labels, *weights), attributes)
                    ]
                    cases += [
                        Case(
                            "SoftmaxCrossEntropyLoss",
                            opset,
                            (SCORES, labels, *weights),
                            attributes,
                            n_outputs=2,
                        )
                    ]
    return cases


def _signal() -> list[Case]:
    signal = _rng.standard_normal((2, 16, 1)).astype(np.float32)
    complex_signal = _rng.standard_normal((2, 16, 2)).astype(np.float32)
    cases = [Case("DFT", 17, (signal,), {"onesided": onesided}) for onesided in (0, 1)]
    cases += [Case("DFT", 17, (complex_signal,), {"inverse": inverse}) for inverse in (0, 1)]
    cases += [
        Case("DFT", 20, (signal, np.array(length), np.array(1)), {"onesided": 1}) for length in (8, 16, 32)
    ]
    steps = np.array(4), np.array(8)
    cases += [
        Case("STFT", 17, (value, steps[0], None, steps[1]), {"onesided": 0})
        for value in (signal, complex_signal)
    ]
    cases += [
        Case("STFT", 17, (signal, steps[0], _rng.uniform(0, 1, 8).astype(np.float32), length))
        for length in (None, steps[1])
    ]
    for name in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        cases += [Case(name, 17, (np.array(10),), {"periodic": periodic}) for periodic in (0, 1)]
    mel = (
        np.array(8),
        np.array(64),
        np.array(16000),
        np.array(0.0, np.float32),
        np.array(8000.0, np.float32),
    )
    return [*cases, Case("MelWeightMatrix", 17, mel), Case("MelWeightMatrix", 17, (np.array(20), *mel[1:]))]


CASES = [
    *_elementwise(),
    *_pow(),
    *_clip(),
    *_mod(),
    *_along_axis(),
    *_linear(),
    *_prelu(),
    *_losses(),
    *_signal(),
]
