"""Old op-versions, and domains without ONNX cases, against onnxruntime."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
import pytest

from memojax.lowering import oneshot
from tests.ops import version_cases
from tests.ops.version_cases import Case

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(version_cases.__path__)
    for case in importlib.import_module(f"{version_cases.__name__}.{module.name}").CASES
]


def onnxruntime_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session with one thread and without log messages."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def oracle(case: Case) -> list[np.ndarray]:
    """The expected outputs: those of the case, else onnxruntime's."""
    if case.expected is not None:
        return list(case.expected)
    return onnxruntime_session(case.model()).run(None, case.feeds())


def assert_same(
    got: Iterable[np.ndarray], expected: Iterable[np.ndarray], rtol: float = 1e-3, atol: float = 1e-5
) -> None:
    """Compare dtypes, shapes and values; narrow floats are compared as float64."""
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        wide = [value.astype(np.float64) if value.dtype.kind == "V" else value for value in (ours, theirs)]
        np.testing.assert_allclose(*wide, rtol=rtol, atol=atol)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_version(case: Case) -> None:
    expected = oracle(case)
    assert_same(oneshot.run(case.model(), case.feeds()).values(), expected)
    constants = frozenset(index for index, value in enumerate(case.inputs) if index and value is not None)
    if constants:
        first = {name: value for name, value in case.feeds().items() if name == case.names()[0]}
        assert_same(oneshot.run(case.model(constants), first).values(), expected)
