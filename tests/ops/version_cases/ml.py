"""The ai.onnx.ml domain, where ONNX has cases for six operators; trees and SVMs are in `test_ml.py`."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from . import Case

ML = "ai.onnx.ml"
F32 = np.float32
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3)).astype(F32)
INTS = np.array([[3, 1, 2], [4, 0, -2]])
HOLES = np.where(RNG.random((5, 3)) < 0.3, np.nan, X).astype(F32)
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


def case(
    op_type: str,
    *inputs: np.ndarray,
    version: int = 1,
    n_outputs: int = 1,
    expected: tuple[np.ndarray, ...] | None = None,
    **attributes: object,
) -> Case:
    return Case(op_type, version, inputs, attributes, ML, n_outputs, expected)


def floats(*shape: int) -> list[float]:
    return RNG.uniform(-0.1, 0.1, shape).astype(F32).ravel().tolist()


def _linear() -> list[Case]:
    cases = []
    for transform in TRANSFORMS:
        for targets in (1, 3):
            shared = {
                "coefficients": floats(targets, 3),
                "intercepts": [0.6] * targets,
                "post_transform": transform,
            }
            cases.append(case("LinearRegressor", X, targets=targets, **shared))
            if (
                targets == 3 or transform != "PROBIT"
            ):  # onnxruntime writes PROBIT of a single score into the wrong rows.
                labels = [4, 7] if targets == 1 else [3, 1, 2]
                cases.append(case("LinearClassifier", X, n_outputs=2, classlabels_ints=labels, **shared))
    cases.append(case("LinearRegressor", X, coefficients=floats(3)))
    cases += [
        case(
            "LinearClassifier",
            x,
            n_outputs=2,
            coefficients=floats(2, 3),
            intercepts=floats(2),
            classlabels_ints=[0, 1],
        )
        for x in (INTS, INTS.astype(np.int32), X.astype(np.float64))
    ]
    return cases


def _features() -> list[Case]:
    cases = [
        case("Normalizer", x, norm=norm)
        for norm in ("MAX", "L1", "L2")
        for x in (X, -np.abs(X), 0 * X, INTS, X.astype(np.float64))
    ]
    cases += [case("Scaler", x, offset=[1.0], scale=[0.5]) for x in (X, INTS, X.astype(np.float64))]
    cases += [
        case("Scaler", X, offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0]),
        case("Binarizer", X, threshold=0.3),
        case("Imputer", HOLES, imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=float("nan")),
        case("Imputer", X.round(), imputed_value_floats=[9.0], replaced_value_float=1.0),
        case("Imputer", INTS, imputed_value_int64s=[7], replaced_value_int64=0),
        case("FeatureVectorizer", X, X[:, :2], X, inputdimensions=[3, 1, 5]),
        case("ArrayFeatureExtractor", X, np.array([[1]])),
        case("ArrayFeatureExtractor", X, np.array([2, 0, 2])),
        case("ArrayFeatureExtractor", INTS[0], np.array([1, 2])),
        case("ZipMap", X, classlabels_int64s=[0, 1, 2], expected=(X,)),
    ]
    return cases


def _lookup() -> list[Case]:
    cases = [
        case("OneHotEncoder", x, cats_int64s=[3, -2, 1])
        for x in (INTS, INTS[0], INTS.astype(np.float64), INTS + F32(0.5))
    ]
    words = np.array(["b", "a", "z"], object)
    cases += [
        case(
            "OneHotEncoder",
            words,
            cats_strings=["a", "b"],
            expected=(np.array([[0, 1], [1, 0], [0, 0]], F32),),
        ),
        case(
            "CategoryMapper",
            words,
            cats_strings=["a", "b"],
            cats_int64s=[5, 6],
            expected=(np.array([6, 5, -1]),),
        ),
        case(
            "LabelEncoder",
            words,
            classes_strings=["a", "b"],
            default_int64=9,
            expected=(np.array([1, 0, 9]),),
        ),
        case(
            "LabelEncoder",
            words,
            version=2,
            keys_strings=["a", "b"],
            values_floats=[0.5, 1.5],
            expected=(np.array([1.5, 0.5, -0.0], F32),),
        ),
        case(
            "LabelEncoder",
            INTS,
            version=2,
            keys_int64s=[3, 1, 3],
            values_floats=[0.5, 1.5, 2.5],
            default_float=9.0,
        ),
        case("LabelEncoder", INTS, version=2, keys_int64s=[2, 1], values_int64s=[1, 2]),
        case(
            "LabelEncoder", HOLES, version=2, keys_floats=[float("nan"), float(X[0, 0])], values_int64s=[1, 2]
        ),
        case(
            "LabelEncoder",
            HOLES,
            version=4,
            keys_floats=[float("nan"), float(X[0, 0])],
            values_int64s=[1, 2],
            default_int64=5,
        ),
    ]
    for dtype, default in ((np.int64, 7), (np.float64, 0.25)):
        keys, values, other = (
            numpy_helper.from_array(np.array(v, dtype)) for v in ([3, 1], [10, 20], [default])
        )
        cases.append(
            case(
                "LabelEncoder",
                INTS.astype(dtype),
                version=4,
                keys_tensor=keys,
                values_tensor=values,
                default_tensor=other,
            )
        )
    return cases


CASES: list[Case] = _linear() + _features() + _lookup()
