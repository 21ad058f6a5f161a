"""A trace proves that rows keep apart, or trial runs look for rare values; both agree with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import memojax
from memojax.errors import DimensionError, RowsMixError
from memojax.lowering import row_probe

from .test_batch_evidence import f32, in_file, model_of, op

ort = pytest.importorskip("onnxruntime")

ROWS = {"x": ["batch", 4]}
ANSWERS = {"y": ["batch", 4]}
SIZE = [op("Shape", "x", "s"), op("Gather", "s zero", "n", axis=0)]
FLAG = [op("Cast", "on", "flags", to=TensorProto.FLOAT), op("ReduceMax", "flags", "flag", keepdims=0)]
ADDED = op("Add", "x flag", "y")
WHOLE = {
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "two": np.array(2, np.int64),
    "eight": np.array(8, np.int64),
    "limit": np.array(1e5, np.float32),
    "exact": np.array(37, np.float32),
    "low": np.array(-1e5, np.float32),
    "first": np.array([0], np.int64),
    "second": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "end": np.array([1 << 40], np.int64),
    "small": np.array(1e-3, np.float32),
}


def model_with(nodes: Any, inputs: Any = ROWS, outputs: Any = ANSWERS, **more: Any) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    read |= {name for node in nodes for a in node.attribute for inner in a.g.node for name in inner.input}
    return model_of(nodes, inputs, outputs, **{k: v for k, v in WHOLE.items() if k in read}, **more)


def branch(name: str, nodes: Any) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])
    return helper.make_graph(nodes, name, [], [out])


MEAN = branch(
    "mean", [op("ReduceMean", "x", "mean_m", axes=[0], keepdims=1), op("Sub", "x mean_m", "mean_y")]
)
SAME = branch("same", [op("Identity", "x", "same_y")])


def rows_are_those_of(model: Any, policy: Any, n: int, **others: Any) -> None:
    given = {"x": f32(n, 4), **others}
    got = policy.infer_arrays(given)
    for row in range(n):
        want = in_file(model, {name: value[row : row + 1] for name, value in given.items()})
        np.testing.assert_allclose(got["y"][row], want["y"][0], rtol=1e-4, atol=1e-5)


BY_SIZE = {
    "parity": [*SIZE, op("Mod", "n two", "on"), *FLAG, ADDED],
    "over eight": [*SIZE, op("Greater", "n eight", "on"), *FLAG, ADDED],
    "at least eight": [*SIZE, op("Max", "n eight", "on"), *FLAG, ADDED],
    "rows behind the eighth": [
        *SIZE,
        op("Range", "zero n one", "places"),
        op("Greater", "places eight", "on"),
        op("Cast", "on", "flags", to=TensorProto.FLOAT),
        op("Unsqueeze", "flags last", "flag"),
        ADDED,
    ],
    "a branch above eight": [
        *SIZE,
        op("Greater", "n eight", "on"),
        op("If", "on", "y", then_branch=MEAN, else_branch=SAME),
    ],
}


@pytest.mark.parametrize("nodes", BY_SIZE.values(), ids=BY_SIZE)
def test_a_batch_size_that_decides_something_is_never_changed(nodes: Any) -> None:
    model = model_with(nodes)
    policy = memojax.load(model)
    for n in (5, 2, 9, 16):
        x = f32(n, 4)
        np.testing.assert_allclose(
            policy.infer_arrays({"x": x})["y"], in_file(model, {"x": x})["y"], rtol=1e-4, atol=1e-5
        )
    for options in ({"bucketing": "pow2"}, {"max_batch_size": 4}):
        with pytest.raises(RowsMixError):
            memojax.load(model, **options).infer_arrays({"x": f32(9, 4)})


def test_each_plan_is_checked_if_the_size_may_decide_something_far_away() -> None:
    model = model_with(
        [*SIZE, op("Greater", "n many", "on"), op("If", "on", "y", then_branch=MEAN, else_branch=SAME)],
        many=np.array(100, np.int64),
    )
    policy = memojax.load(model, bucketing="pow2")
    rows_are_those_of(model, policy, 3)
    with pytest.raises(RowsMixError, match="padding 65 rows to a plan for 128"):
        policy.infer_arrays({"x": f32(65, 4)})


def test_a_size_that_decides_between_equal_branches_costs_nothing() -> None:
    model = model_with(
        [*SIZE, op("Greater", "n eight", "on"), op("If", "on", "y", then_branch=SAME, else_branch=SAME)]
    )
    policy = memojax.load(model, bucketing="pow2")
    for n in (3, 9):
        rows_are_those_of(model, policy, n)
    assert policy.mixing_outputs == ()


def test_a_mask_of_zeros_for_each_row_holds_no_size() -> None:
    nodes = [
        op("Shape", "x", "s"),
        op("ConstantOfShape", "s", "zeros"),
        op("Greater", "x limit", "on"),
        op("Where", "on x zeros", "y"),
    ]
    typed = memojax.TypedModel.from_model(model_with(nodes))
    assert typed.independent
    assert typed.by_size == ()


RARE = {
    "far above": [op("Greater", "x limit", "on"), *FLAG, ADDED],
    "far below": [op("Less", "x low", "on"), *FLAG, ADDED],
    "one number": [op("Equal", "x exact", "on"), *FLAG, ADDED],
    "infinite": [op("IsInf", "x", "on"), *FLAG, ADDED],
    "a whole row": [
        op("ReduceMin", "x", "least", axes=[1], keepdims=0),
        op("Greater", "least limit", "on"),
        *FLAG,
        ADDED,
    ],
    "a little": [op("ReduceMax", "x", "m", keepdims=0), op("Mul", "m small", "flag"), ADDED],
    "two rows away": [
        op("Slice", "x first last first", "a"),
        op("Slice", "x last end first", "b"),
        op("Concat", "b a", "r", axis=0),
        op("Slice", "r first last first", "a2"),
        op("Slice", "r last end first", "b2"),
        op("Concat", "b2 a2", "r2", axis=0),
        op("Add", "x r2", "y"),
    ],
}


@pytest.mark.parametrize("nodes", RARE.values(), ids=RARE)
def test_rows_that_meet_rarely_are_never_split(nodes: Any) -> None:
    policy = memojax.load(model_with(nodes), max_batch_size=2)
    policy.infer_arrays({"x": f32(2, 4)})
    assert policy.mixing_outputs == ("y",)
    with pytest.raises(RowsMixError, match="in parts"):
        policy.infer_arrays({"x": f32(5, 4)})
    unnamed = model_with(nodes, {"x": [None, 4]}, {"y": [None, 4]})
    with pytest.raises(DimensionError, match="influence each other"):
        memojax.load(unnamed).infer_arrays({"x": f32(2, 4)})


@pytest.mark.parametrize("value", [-1, 120])
def test_whole_numbers_that_are_rare_count_as_well(value: int) -> None:
    nodes = [op("Equal", "k value", "on"), *FLAG, ADDED]
    model = model_with(nodes, value=np.array(value, np.int64))
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, ["batch"]))
    assert memojax.load(model).mixing_outputs == ("y",)


PROVEN: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemm": ([op("Gemm", "x w", "y")], {"w": f32(4, 4)}),
    "softmax": ([op("Softmax", "x", "y", axis=1)], {}),
    "heads": (
        [
            op("Reshape", "x shape", "r"),
            op("Transpose", "r", "t", perm=[0, 2, 1]),
            op("MatMul", "r t", "scores"),
            op("Softmax", "scores", "p", axis=-1),
            op("MatMul", "p r", "z"),
            op("Reshape", "z back", "y"),
        ],
        {"shape": np.array([-1, 2, 2]), "back": np.array([-1, 4])},
    ),
    "merged with time": (
        [
            op("Reshape", "x shape", "r"),
            op("MatMul", "r w", "h"),
            op("Reshape", "h back", "y"),
        ],
        {"shape": np.array([-1, 2]), "back": np.array([-1, 4]), "w": f32(2, 2)},
    ),
    "gru": (
        [
            op("Unsqueeze", "x first", "x3"),
            helper.make_node("GRU", ["x3", "W", "R"], ["all", "h"], hidden_size=4),
            op("Squeeze", "h first", "y"),
        ],
        {"W": f32(1, 12, 4), "R": f32(1, 12, 4), "first": np.array([0])},
    ),
    "convolution": (
        [
            op("Unsqueeze", "x second", "x3"),
            op("Conv", "x3 w", "c", pads=[1, 1]),
            op("Squeeze", "c second", "y"),
        ],
        {"w": f32(1, 1, 3), "second": np.array([1])},
    ),
    "embedding": (
        [
            op("Cast", "x", "k", to=TensorProto.INT64),
            op("Gather", "w k", "g"),
            op("ReduceSum", "g last", "y", keepdims=0),
        ],
        {"w": f32(9, 2), "last": np.array([-1])},
    ),
    "best of each row": (
        [
            helper.make_node("TopK", ["x", "two"], ["v", "i"], axis=1),
            op("GatherElements", "x i", "e", axis=1),
            op("Concat", "v e", "y", axis=1),
        ],
        {"two": np.array([2])},
    ),
}


@pytest.mark.parametrize(("nodes", "constants"), PROVEN.values(), ids=PROVEN)
def test_rows_that_a_trace_proves_apart_need_no_trial(
    nodes: Any, constants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a trial run")

    monkeypatch.setattr("memojax.lowering.typed_model.mixing_rows", never)
    monkeypatch.setattr("memojax.lowering.typed_model.trial_run", never)
    model = model_of(nodes, ROWS, ANSWERS, **constants)
    policy = memojax.load(model, bucketing="pow2")
    assert policy.mixing_outputs == ()
    for n in (1, 3, 5):
        rows_are_those_of(model, policy, n)


def test_rows_without_a_proof_that_keep_apart_are_served_by_trials() -> None:
    nodes = [
        op("NonZero", "x", "places"),
        op("Transpose", "places", "pairs", perm=[1, 0]),
        op("GatherND", "x pairs", "picked"),
        op("ScatterND", "x pairs picked", "y"),
    ]
    model = model_of(nodes, ROWS, ANSWERS)
    policy = memojax.load(model, bucketing="pow2")
    rows_are_those_of(model, policy, 3)


def test_trials_compare_with_the_numbers_of_the_file() -> None:
    seen: list[float] = []

    def run(rows: Any) -> list[np.ndarray]:
        seen.extend(np.unique(rows[0]).tolist())
        return [rows[0] + (rows[0] == 37).any()]

    specs = memojax.TypedModel.from_model(model_with([op("Relu", "x", "y")])).api.inputs
    assert row_probe.mixing_rows(specs, ["y"], 5, run) == ()
    assert row_probe.mixing_rows(specs, ["y"], 5, run, numbers=[37.0]) == ("y",)
    assert {-1.0, 1e6} < set(seen)


def test_features_that_divide_by_the_sizes_of_the_trace_prove_nothing() -> None:
    # For 5 and for 7 rows, each row has whole entries of the turned table. For 3 rows, two rows share one.
    size = [op("Shape", "x", "shape"), op("Slice", "shape first second", "n")]
    shapes = [op("Concat", "width n", "turned", axis=0), op("Concat", "n width", "back", axis=0)]
    turn = [op("Reshape", "x turned", "t"), op("Softmax", "t", "s", axis=1), op("Reshape", "s back", "y")]
    numbers = {
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "width": np.array([35], np.int64),
    }
    model = model_of([*size, *shapes, *turn], {"x": ["batch", 35]}, {"y": ["batch", 35]}, **numbers)
    policy = memojax.load(model)
    x = f32(3, 35)
    whole = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], whole, rtol=1e-5)
    assert policy.mixing_outputs == ("y",)
