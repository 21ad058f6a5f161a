"""Old op-versions, and domains without a corpus, against onnxruntime."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import onnxruntime
import pytest

from memojax import oneshot
from tests.ops import version_cases
from tests.ops.version_cases import Case

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(version_cases.__path__)
    for case in importlib.import_module(f"{version_cases.__name__}.{module.name}").CASES
]


def oracle(case: Case) -> list[np.ndarray]:
    if case.expected is not None:
        return list(case.expected)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, case.feeds())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_version(case: Case) -> None:
    expected = oracle(case)
    model = oneshot.OneShot(case.model())
    for got, want in zip(model(case.feeds()).values(), expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            got.astype(np.float64) if got.dtype.kind == "V" else got, want.astype(np.float64) if want.dtype.kind == "V" else want,
            rtol=1e-3, atol=1e-5,
        )  # fmt: skip
