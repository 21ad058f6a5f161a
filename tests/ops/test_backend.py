"""ONNX's own cases in `memojax.backend`, under jit, with exact dtypes; `backend_xfails.txt` has failures."""

from __future__ import annotations

import unittest

import numpy as np
import onnx
import onnx.backend.test
import pytest

import memojax.backend
from memojax.xla import limits
from tests.ops import corpus, report
from tests.ops.test_versions import onnxruntime_session

pytestmark = pytest.mark.corpus

KNOWN_FAILURES = corpus.known_failures()


def _parameter(kind: str, name: str) -> object:
    cause = KNOWN_FAILURES.get(name)
    marks = [pytest.mark.xfail(strict=not cause.startswith("Unstable"), reason=cause)] if cause else []
    return pytest.param(kind, name, id=name, marks=marks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "name"), [_parameter(kind, name) for kind in corpus.KINDS for name in sorted(corpus.cases(kind))]
)
def test_case(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The light models are large networks whose weights are made by ConstantOfShape: more than a file may ask
    # for in so few bytes.
    for limit in (limits.ELEMENTS, limits.FOLDED, limits.EMBEDDED, limits.MEMORY) if kind == "light" else ():
        monkeypatch.setenv(limit.variable, str(2 << 30))
    corpus.run_case(corpus.cases(kind)[name])


@pytest.mark.parametrize("name", ["test_resnet50", "test_squeezenet"])
def test_the_logits_before_the_last_softmax(name: str) -> None:
    """The softmax of 1,000 equal logits is always the same, so the cases above cannot notice wrong logits."""
    case = corpus.cases("light")[name]
    model = onnx.ModelProto.FromString(corpus.model_of(case).SerializeToString())
    ((inputs, _),) = corpus.data_of(case, model)
    logits = next(node.input[0] for node in model.graph.node if node.op_type == "Softmax")
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=logits))
    session = onnxruntime_session(model)
    (expected,) = session.run(
        None, dict(zip((info.name for info in session.get_inputs()), inputs, strict=True))
    )
    for _ in range(2):
        (given,) = memojax.backend.prepare(model).run(inputs)
        np.testing.assert_allclose(given, expected, rtol=1e-4)


def test_known_failures_exist() -> None:
    names = [name for kind in corpus.KINDS for name in corpus.cases(kind)]
    assert len(names) == len(set(names))
    assert KNOWN_FAILURES.keys() - set(names) == set()


def test_the_tables_of_the_docs_equal_this_runs() -> None:
    """The cases above pass except for known failures; `python -m tests.ops.report` writes the tables."""
    if f"ONNX {onnx.__version__}'s" not in report.written():
        pytest.skip(f"docs/operators.md counts the cases of another version than onnx {onnx.__version__}")
    assert report.written() == report.block()


def test_known_failures_have_causes() -> None:
    text = "# one cause\n# in two lines\na\nb\n\n# another\nc\n"
    assert corpus.known_failures(text) == {
        "a": "one cause in two lines",
        "b": "one cause in two lines",
        "c": "another",
    }
    for wrong in ("a", "# cause\na\na"):
        with pytest.raises(ValueError, match="a: listed twice, or without a cause"):
            corpus.known_failures(wrong)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_own_runner() -> None:
    """ONNX's runner for authors of backends, with a few of its cases, on CPU and CUDA names."""
    runner = onnx.backend.test.BackendTest(memojax.backend.MemojaxBackend, __name__)
    runner.include(
        r"^test_(relu|gemm_all_attributes|split_equal_parts_1d_opset18|sequence_insert_at_back|Linear|sign_model)_(cpu|cuda)$"
    )
    result = _Result()
    runner.test_suite.run(result)
    assert [*result.errors, *result.failures] == []
    assert result.passed == 6


class _Result(unittest.TestResult):
    """Counts the cases that pass, since Python versions differ in whether `testsRun` counts skipped cases."""

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed += 1
