"""`memojax.verify` detects a wrong batch: each row alone, in the file layout, shows the file's meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import memojax
from memojax.lowering.typed_model import TypedModel
from memojax.model import load_model
from memojax.verification import file_layout, runtimes

from ..system.odd_models import endless


def model(graph: str, **weights: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    return made


def running_sum(axis: int, *declared: Any) -> onnx.ModelProto:
    dims = ",".join(map(str, declared))
    return model(
        f"""g (float[{dims}] x) => (float[{dims}] y) <int64 axis = {{{axis}}}> {{ y = CumSum (x, axis) }}"""
    )


def checks(typed: Any) -> list[memojax.verification.Check]:
    return memojax.verify(typed, [1, 3])


@pytest.mark.parametrize(
    ("file", "loading"),
    [
        (running_sum(1, 1, "seq", 5), {"batch_axis": 1}),
        (running_sum(0, "seq", 1, 5), {"batch_axis": 0}),
        (running_sum(1, "batch", "time", 5), {"batch_axis": 1, "dims": {"batch": 2}}),
        (running_sum(0, "batch", 5), {}),
    ],
)
def test_a_time_axis_as_the_batch_is_not_the_same(file: onnx.ModelProto, loading: dict[str, Any]) -> None:
    single, three = checks(TypedModel.from_model(file, **loading))
    assert (single.same, single.alone) == (True, True)
    assert (three.same, three.alone) == (False, False)
    assert three.max_abs == 0, "the other runtime agrees about the batch that memojax gives it"
    assert "a row alone gives other numbers" in three.note


def test_the_right_axis_is_the_same() -> None:
    for file, loading in (
        (running_sum(0, "time", "batch", 5), {"batch_axis": 1, "dims": {"time": 2}}),
        (running_sum(1, "batch", 4), {}),
        (running_sum(0, 4), {}),
    ):
        assert all(check.same and check.alone for check in checks(TypedModel.from_model(file, **loading)))


def test_rows_mixed_by_the_function_are_not_the_same() -> None:
    right = TypedModel.from_model(running_sum(1, "batch", 4))
    mixing = replace(right, fn=_Mixing(right.fn))
    wrong = memojax.verify(mixing, [1, 3], reference=running_sum(1, "batch", 4))
    assert [check.same for check in wrong] == [True, False]
    assert [check.alone for check in wrong] == [True, False]
    assert wrong[1].max_abs > 0


class _Mixing:
    """Every row gets the answer of the first one."""

    def __init__(self, fn: Any):
        self.fn = fn

    def __call__(self, params: Any, rows: Any, key: Any) -> Any:
        return tuple(value[:1].repeat(value.shape[0], axis=0) for value in self.fn(params, rows, key))


def test_a_file_that_mixes_its_batch_is_not_the_same_when_rows_run_by_themselves() -> None:
    mean = model(
        "g (float[batch,4] x) => (float[batch,4] y) { m = ReduceMean <axes = [0]> (x)\n y = Sub (x, m) }"
    )
    single = TypedModel.from_model(
        model("g (float[1,4] x) => (float[1,4] y) { m = ReduceMean <axes = [0]> (x)\n y = Sub (x, m) }")
    )
    mapped = replace(single, model=load_model(mean))
    _, three = checks(mapped)
    assert (three.same, three.alone) == (False, True)
    assert "the file mixes the rows" in three.note


def test_rows_that_the_file_does_not_declare_are_not_the_same() -> None:
    baked = model(
        "g (float[batch,3] x) => (float[batch,3] y) { y = Add (x, std) }", std=np.ones((4, 3), np.float32)
    )
    single = TypedModel.from_model(
        model("g (float[1,3] x) => (float[4,3] y) { y = Add (x, std) }", std=np.ones((4, 3), np.float32))
    )
    one, _ = checks(replace(single, model=load_model(baked)))
    assert (one.same, one.alone) == (False, True)
    assert "declares ['batch', 3], but one row gives [4, 3]" in one.note


def test_a_batch_that_the_other_runtime_cannot_run_is_compared_row_by_row() -> None:
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 5), (1, 8, 2)))
    zero_state = model(
        """g (float[4,batch,5] x) => (float[4,1,batch,2] y) {
            y, h, c = LSTM <hidden_size = 2> (x, w, r, , , h0, h0)
        }""",
        w=w,
        r=r,
        h0=np.zeros((1, 1, 2), np.float32),
    )
    _, three = checks(TypedModel.from_model(zero_state))
    assert (three.same, three.alone) == (True, True)
    assert "compared row by row only: onnxruntime" in three.note


@pytest.mark.parametrize(
    ("declared", "element", "hint", "axis"),
    [
        (("batch", 5), (5,), None, 0),
        ((1, "seq", 5), (3, 5), None, 0),
        (("time", "batch", 5), (3, 5), 1, 1),
        (("time", 1, 5), (1, 5), 0, 0),
        (("time", 1, 5), (3, 5), 0, 1),
        ((2, 1, 5), (2, 5), None, 1),
        ((4,), (4,), None, None),
        ((4, 3), (3,), None, None),
    ],
)
def test_the_axis_that_a_row_lacks(
    declared: tuple, element: tuple, hint: int | None, axis: int | None
) -> None:
    assert file_layout._axis(declared, element, hint) == axis


def narrow_network(kind: int) -> onnx.ModelProto:
    """Three layers in narrow floats give "y"; "z" takes another way, in float32."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((64, 64)).astype(np.float32) / 6 for i in range(3)}
    casts = "\n".join(f"n{i} = Cast <to = {kind}> (w{i})" for i in range(3))
    return model(
        f"""g (float[batch,64] x) => (float[batch,64] y, float[batch,64] z) {{
            {casts}
            c = Cast <to = {kind}> (x)
            m0 = MatMul (c, n0)\n t0 = Tanh (m0)
            m1 = MatMul (t0, n1)\n t1 = Tanh (m1)
            m2 = MatMul (t1, n2)\n y = Cast <to = 1> (m2)
            z = Tanh (x)
        }}""",
        **weights,
    )


def test_narrow_floats_are_judged_by_their_own_steps() -> None:
    found = memojax.verify(TypedModel.from_model(narrow_network(onnx.TensorProto.FLOAT16)), [32])
    narrow, wide = found
    assert (narrow.same, wide.same, wide.note) == (True, True, "")
    assert narrow.rtol == pytest.approx(8 / 1024)
    assert "float16 inside" in narrow.note
    assert (wide.rtol, wide.atol) == (1e-3, 1e-5)


def test_a_wrong_answer_in_narrow_floats_is_not_the_same() -> None:
    file = narrow_network(onnx.TensorProto.FLOAT16)
    wrong = replace(TypedModel.from_model(file), fn=_Mixing(TypedModel.from_model(file).fn))
    assert [check.same for check in memojax.verify(wrong, [3], reference=file)] == [False, False]


def test_narrow_floats_inside_a_subgraph_count() -> None:
    from memojax.verification.tolerance import tolerances

    branch = "(float[batch,4] o) {{ n = Cast <to = {}> (x)\n o = Cast <to = 1> (n) }}"
    file = model(
        f"""g (float[batch,4] x, bool[] c) => (float[batch,4] y) {{
            y = If (c) <then_branch = a () => {branch.format(16)}, else_branch = b () => {branch.format(1)}>
        }}"""
    )
    allowed = tolerances(load_model(file).graph)["y"]
    assert (allowed.floats, allowed.rtol) == ("bfloat16", 8 / 128)


def contradictions(file: onnx.ModelProto, **loading: Any) -> tuple[str, ...]:
    return memojax.verify(TypedModel.from_model(file, **loading), [2]).contradictions


def test_options_that_contradict_the_file_are_told() -> None:
    batched = model("g (float[batch,4] x, float[batch,4] s) => (float[batch,4] y) { y = Mul (x, s) }")
    (line,) = contradictions(batched, batch_axis=False)
    assert "batch_axis=False contradicts the file" in line
    assert "axis 0 of 'x', axis 0 of 's'" in line
    (line,) = contradictions(batched, constants={"s": np.ones((2, 4), np.float32)})
    assert "each agent gives its own 's' (float32[4])" in line
    assert contradictions(batched, batch_axis=0) == ()
    assert contradictions(batched) == ()


def test_options_that_the_file_needs_contradict_nothing() -> None:
    open_batch = model("g (float[a,b,4] x) => (float[a,b,4] y) { y = Tanh (x) }")
    assert contradictions(open_batch, batch_axis=0, dims={"b": 2}) == ()
    default = model(
        "g (float[batch,4] x, float[4] s) => (float[batch,4] y) { y = Mul (x, s) }", s=np.ones(4, "f")
    )
    assert contradictions(default, constants={"s": np.ones(4, np.float32)}) == ()
    (line,) = contradictions(default, constants={"s": np.zeros(4, np.float32)})
    assert "the file's own default" in line


def test_the_file_of_the_reference_tells_the_contradictions() -> None:
    batched = model("g (float[batch,4] x, float[batch,4] s) => (float[batch,4] y) { y = Mul (x, s) }")
    bound = TypedModel.from_model(batched, constants={"s": np.full((2, 4), 3, np.float32)})
    function = TypedModel.from_function(
        lambda _, rows: {"y": 3 * rows["x"]}, {}, {"x": ((4,), np.float32)}, name="y"
    )
    checks = memojax.verify(function, [2], reference=bound)
    assert [check.same for check in checks] == [True]
    (line,) = checks.contradictions
    assert "each agent gives its own 's'" in line
    assert checks.contradictions == memojax.verify(bound, [2]).contradictions


def test_a_loop_that_never_ends_in_the_other_runtime_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_LONGEST_LOOP", 0.2)
    with pytest.raises(runtimes.ContenderError, match=r"end of a Loop within 0\.2 seconds"):
        memojax.verify(endless(None), sizes=[1, 2])
