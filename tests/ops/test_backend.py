"""ONNX's own cases through `memojax.backend`: under jit, dtypes exact, warnings as errors; `backend_xfails.txt` lists what fails and why."""

from __future__ import annotations

import unittest

import onnx
import onnx.backend.test
import pytest

import memojax.backend
from tests.ops import corpus, report

KNOWN_FAILURES = corpus.known_failures()


def _parameter(kind: str, name: str) -> object:
    cause = KNOWN_FAILURES.get(name)
    marks = [pytest.mark.xfail(strict=not cause.startswith("Unstable"), reason=cause)] if cause else []
    return pytest.param(kind, name, id=name, marks=marks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "name"), [_parameter(kind, name) for kind in corpus.KINDS for name in sorted(corpus.cases(kind))])
def test_case(kind: str, name: str) -> None:
    corpus.run_case(corpus.cases(kind)[name])


def test_known_failures_exist() -> None:
    names = [name for kind in corpus.KINDS for name in corpus.cases(kind)]
    assert len(names) == len(set(names))
    assert KNOWN_FAILURES.keys() - set(names) == set()


def test_the_readmes_numbers_are_those_of_this_run() -> None:
    """The cases above pass but for the known failures, and the registry says the rest; `python -m tests.ops.report` writes them."""
    if f"ONNX {onnx.__version__}'s" not in report.written():
        pytest.skip(f"the README counts the cases of another version than onnx {onnx.__version__}")
    assert report.written() == report.block()


def test_known_failures_have_causes() -> None:
    text = "# one cause\n# in two lines\na\nb\n\n# another\nc\n"
    assert corpus.known_failures(text) == {"a": "one cause in two lines", "b": "one cause in two lines", "c": "another"}
    for wrong in ("a", "# cause\na\na"):
        with pytest.raises(ValueError, match="a: listed twice, or without a cause"):
            corpus.known_failures(wrong)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_own_runner() -> None:
    """The runner that ONNX gives to authors of backends; here a handful of its cases, on CPU and CUDA names."""
    runner = onnx.backend.test.BackendTest(memojax.backend.MemojaxBackend, __name__)
    runner.include(r"^test_(relu|gemm_all_attributes|split_equal_parts_1d_opset18|sequence_insert_at_back|Linear|sign_model)_(cpu|cuda)$")
    result = _Result()
    runner.test_suite.run(result)
    assert [*result.errors, *result.failures] == []
    assert result.passed == 6


class _Result(unittest.TestResult):
    """With a count of what passed; whether `testsRun` counts what was skipped differs between versions of Python."""

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed += 1
