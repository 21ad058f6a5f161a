"""Files that look like a batch of agents and are not quite: rows by ONNX Runtime alone, or a clear no."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import memojax
from memojax.errors import DimensionError, RowsMixError

from .test_batch_evidence import f32, in_file, model_of, op

ort = pytest.importorskip("onnxruntime")


def check_rows(model: Any, policy: Any, n: int, rows: np.ndarray | None = None) -> None:
    """The answers of `policy` are those of ONNX Runtime for each row alone."""
    x = f32(n, 4) if rows is None else rows
    got = policy.infer_arrays({"x": x})
    for row in range(n):
        want = in_file(model, {"x": x[row : row + 1]})
        for name, value in want.items():
            np.testing.assert_allclose(got[name][row].ravel(), value.ravel(), rtol=1e-4, atol=1e-5)


MASK = [op("ReduceSum", "alive_mask first", "count", keepdims=1), op("Add", "x count", "y")]
WHOLE = [
    op("ReduceMax", "k", "most", axes=[0], keepdims=1),
    op("Greater", "most limit", "over"),
    op("Cast", "over", "flag", to=TensorProto.FLOAT),
    op("Add", "x flag", "y"),
]
NAN = [
    op("IsNaN", "x", "bad"),
    op("Cast", "bad", "flags", to=TensorProto.FLOAT),
    op("ReduceMax", "flags", "flag", axes=[0, 1], keepdims=1),
    op("Where", "bad zero x", "clean"),
    op("Add", "clean flag", "y"),
]
LARGE = [
    op("ReduceMax", "x", "most", axes=[0, 1], keepdims=1),
    op("Greater", "most limit", "over"),
    op("Cast", "over", "flag", to=TensorProto.FLOAT),
    op("Add", "x flag", "y"),
]


@pytest.mark.parametrize(
    ("nodes", "second", "constants"),
    [
        (MASK, ("alive_mask", TensorProto.FLOAT), {"first": np.array([0], np.int64)}),
        (WHOLE, ("k", TensorProto.INT64), {"limit": np.array(20, np.int64)}),
        (NAN, None, {"zero": np.zeros((), np.float32)}),
        (LARGE, None, {"limit": np.array(60, np.float32)}),
    ],
    ids=["mask", "whole numbers", "nan", "threshold"],
)
def test_rows_that_mix_by_rare_values_are_never_split(nodes: Any, second: Any, constants: Any) -> None:
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, **constants)
    if second is not None:
        model.graph.input.append(helper.make_tensor_value_info(second[0], second[1], ["batch", 1]))
    policy = memojax.load(model, max_batch_size=2)
    assert policy.mixing_outputs == ("y",)
    rows = {"x": f32(5, 4), **({second[0]: np.ones((5, 1), int)} if second else {})}
    with pytest.raises(RowsMixError, match="in parts"):
        policy.infer_arrays(rows)


RANGE = [
    op("Shape", "x", "s"),
    op("Gather", "s zero", "n", axis=0),
    op("Range", "zero n one", "r"),
    op("Cast", "r", "rf", to=TensorProto.FLOAT),
    op("Unsqueeze", "rf last", "place"),
    op("Add", "x place", "y"),
]
NUMBER = [*RANGE[:2], op("Cast", "n", "nf", to=TensorProto.FLOAT), op("Div", "x nf", "y")]
FIRST = [op("ScatterND", "x i u", "y")]
PLACES = {
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "last": np.array([-1], np.int64),
    "i": np.array([[0]], np.int64),
    "u": np.full((1, 4), 7, np.float32),
}


@pytest.mark.parametrize("nodes", [RANGE, NUMBER, FIRST], ids=["place", "number of rows", "first row"])
def test_rows_whose_place_or_number_matters_run_whole_or_are_refused(nodes: Any) -> None:
    read = {name for node in nodes for name in node.input}
    constants = {name: value for name, value in PLACES.items() if name in read}
    named = model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, **constants)
    x = f32(3, 4)
    policy = memojax.load(named)
    np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], in_file(named, {"x": x})["y"], rtol=1e-6)
    with pytest.raises(RowsMixError, match="padding 3 rows"):
        memojax.load(named, bucketing="pow2").infer_arrays({"x": x})
    unnamed = model_of(nodes, {"x": [None, 4]}, {"y": [None, 4]}, **constants)
    with pytest.raises(DimensionError, match="influence each other"):
        memojax.load(unnamed).infer_arrays({"x": x})


def test_a_row_of_nan_that_spoils_others_does_not_count_as_mixing() -> None:
    # Agents attend to themselves only: 0 * NaN is NaN, and no number of one row reaches another.
    nodes = [
        op("Shape", "x", "s"),
        op("Gather", "s first", "n"),
        op("Concat", "n n", "square", axis=0),
        op("ConstantOfShape", "square", "zeros"),
        op("EyeLike", "zeros", "own"),
        op("MatMul", "own x", "y"),
    ]
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, first=np.array([0], np.int64))
    policy = memojax.load(model)
    check_rows(model, policy, 3)
    assert policy.mixing_outputs == ()


CONCAT = model_of(
    [op("Mul", "x two", "x2"), op("Concat", "x x2", "y", axis=0)],
    {"x": ["batch", 4]},
    {"y": None},
    two=np.array(2, np.float32),
)


@pytest.mark.parametrize("declared", [["twice", 4], None])
@pytest.mark.parametrize("kind", ["Concat", "Tile"])
def test_entries_of_a_row_that_lie_apart_come_together(declared: Any, kind: str) -> None:
    if kind == "Concat":
        nodes = [op("Mul", "x two", "x2"), op("Concat", "x x2", "y", axis=0)]
        constants: dict[str, Any] = {"two": np.float32(2)}
    else:
        nodes, constants = [op("Tile", "x r", "y")], {"r": np.array([2, 1], np.int64)}
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": declared}, **constants)
    policy = memojax.load(model)
    assert policy.output_shapes() == [("y", [2, 4])]
    for n in (1, 3):
        check_rows(model, policy, n)
    assert policy.mixing_outputs == ()
    assert all(check.same for check in memojax.verify(model, [1, 3]))


def test_several_entries_for_each_row_that_mix_are_refused() -> None:
    nodes = [
        op("ReduceMean", "x", "m", axes=[0], keepdims=1),
        op("Sub", "x m", "x2"),
        op("Concat", "x x2", "y", axis=0),
    ]
    with pytest.raises(DimensionError, match=r"'y' has 2 entries for each row on axis 0.*outputs="):
        memojax.load(model_of(nodes, {"x": ["batch", 4]}, {"y": None}))


@pytest.mark.parametrize("first", [0, -8])
def test_an_output_that_loses_rows_at_large_batches_is_refused_there(first: int) -> None:
    last = 16 if first == 0 else 1 << 40
    bounds = {"s": np.array([first], np.int64), "e": np.array([last], np.int64), "a": np.array([0], np.int64)}
    model = model_of([op("Slice", "x s e a", "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]}, **bounds)
    policy = memojax.load(model)
    check_rows(model, policy, 7)
    with pytest.raises(DimensionError, match=r"'y' has shape \[(16|8), 4\] for 33 rows.*max_batch_size="):
        policy.infer_arrays({"x": f32(33, 4)})
    check_rows(model, memojax.load(model, max_batch_size=8), 33)


@pytest.mark.parametrize(
    ("nodes", "declared"),
    [
        ([op("Gather", "x zero", "y", axis=0)], [4]),
        ([op("ReduceMax", "x", "y", axes=[0], keepdims=1)], [1, 4]),
        ([op("Flatten", "x", "f", axis=0), op("ReduceMean", "f", "y", axes=[1], keepdims=1)], [1, 1]),
    ],
    ids=["first row", "largest", "flat"],
)
def test_a_named_batch_that_no_output_has_runs_once_for_each_agent(nodes: Any, declared: Any) -> None:
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": declared}, zero=np.array(0, np.int64))
    policy = memojax.load(model, bucketing="pow2")
    assert policy.input_shapes() == [("x", [4])]
    for n in (1, 3):
        check_rows(model, policy, n)
    single, three = memojax.verify(model, [1, 3])
    assert (single.same, three.same, three.alone) == (True, False, True)
    assert "the file mixes the rows of a batch, and here each row runs by itself" in three.note


@pytest.mark.parametrize("count", ["N", "num_agents"])
@pytest.mark.parametrize("declared", [[4], [1, 4]])
def test_a_count_that_no_output_has_is_a_dimension_of_one_agent(count: str, declared: Any) -> None:
    nodes = [op("ReduceMax", "x", "y", axes=[0], keepdims=len(declared) - 1)]
    policy = memojax.load(model_of(nodes, {"x": [count, 4]}, {"y": declared}))
    assert policy.input_shapes() == [("x", [count, 4])]
    x = f32(3, 6, 4)
    np.testing.assert_array_equal(policy.infer_arrays({"x": x})["y"].reshape(3, 4), x.max(1))


@pytest.mark.parametrize("shape", [["seq_len", "n_envs", 3], [None, None, 3]])
def test_a_doubtful_batch_beside_free_dimensions_is_checked_before_the_first_row(shape: Any) -> None:
    nodes = [op("CumSum", "x axis", "y")]
    model = model_of(nodes, {"x": shape}, {"y": shape}, axis=np.array(0, np.int64))
    policy = memojax.load(model)
    with pytest.raises(DimensionError, match=r"influence each other.*batch_axis="):
        policy.infer_arrays({"x": f32(1, 4, 3)})
    with pytest.raises(DimensionError, match=r"influence each other.*batch_axis="):
        memojax.to_jax(policy)
    x = f32(2, 4, 3)
    got = memojax.load(model, batch_axis=1).infer_arrays({"x": x})["y"]
    np.testing.assert_allclose(got, x.cumsum(1), rtol=1e-5, atol=1e-6)


def test_a_leading_letter_wins_over_another_name_with_batch_in_it() -> None:
    nodes = [op("CumSum", "x axis", "y")]
    shape = ["N", "minibatch_time", 3]
    model = model_of(nodes, {"x": shape}, {"y": shape}, axis=np.array(1, np.int64))
    x = f32(2, 4, 3)
    np.testing.assert_allclose(
        memojax.load(model).infer_arrays({"x": x})["y"], x.cumsum(1), rtol=1e-5, atol=1e-6
    )


def test_the_pure_function_of_rows_takes_a_shared_input_once() -> None:
    model = model_of([op("Add", "x gain", "y")], {"x": ["batch", 4], "gain": [1, 4]}, {"y": ["batch", 4]})
    fn, params = memojax.to_jax(memojax.load(model))
    x, gain = f32(3, 4), f32(1, 4)
    np.testing.assert_allclose(fn(params, {"x": x, "gain": gain})["y"], x + gain, rtol=1e-6)


def test_verify_knows_that_a_squeeze_drops_a_batch_of_one() -> None:
    model = model_of(
        [op("Relu", "x", "r"), op("Squeeze", "r", "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]}
    )
    assert all(check.same for check in memojax.verify(model, [1, 3]))


# New weights from a file: everything but the weights must be the same.


def scaled(w: float, k: float, name: str = "k") -> onnx.ModelProto:
    nodes = [op("Mul", "x w", "h"), op("Mul", f"h {name}", "y")]
    tensors = {"w": np.full(4, w, np.float32), name: np.array(k, np.float32)}
    return model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, **tensors)


def test_a_file_whose_renamed_constant_differs_is_refused() -> None:
    policy, x = memojax.load(scaled(1, 2)), f32(2, 4)
    policy.update_params(scaled(3, 2, "onnx::Mul_17"))
    np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], x * 6, rtol=1e-6)
    with pytest.raises(memojax.errors.IncompatibleModelError, match="constant 'k' differs"):
        policy.update_params(scaled(3, 5, "onnx::Mul_17"))
    np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], x * 6, rtol=1e-6)


def filled(value: float) -> onnx.ModelProto:
    fill = onnx.numpy_helper.from_array(np.array([value], np.float32))
    nodes = [op("Shape", "x", "s"), op("ConstantOfShape", "s", "c", value=fill), op("Add", "x c", "y")]
    return model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]})


def branched(value: float) -> onnx.ModelProto:
    def branch(name: str, constant: float) -> onnx.GraphProto:
        tensor = onnx.numpy_helper.from_array(np.full(4, constant, np.float32), f"{name}_w")
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph([op("Add", f"x {name}_w", f"{name}_y")], name, [], [out], [tensor])

    nodes = [
        op("ReduceMax", "x", "m", keepdims=0),
        op("Greater", "m zero", "c"),
        op("If", "c", "y", then_branch=branch("t", value), else_branch=branch("e", 1)),
    ]
    return model_of(nodes, {"x": [1, 4]}, {"y": [1, 4]}, zero=np.zeros((), np.float32))


def crossed(second: str) -> onnx.ModelProto:
    nodes = [op("Mul", "x w", "h"), op("Sub", "h x" if second == "x" else "x h", "y")]
    return model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, w=np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("one", "other"),
    [(filled(1), filled(2)), (branched(1), branched(2)), (crossed("x"), crossed("h"))],
    ids=["tensor attribute", "branch", "wires"],
)
def test_a_file_of_another_network_is_refused(one: Any, other: Any) -> None:
    policy = memojax.load(one)
    policy.update_params(one)
    with pytest.raises(memojax.errors.IncompatibleModelError, match=r"another network|differs"):
        policy.update_params(other)


def test_a_file_updates_a_policy_with_free_dimensions() -> None:
    def mean(w: float) -> onnx.ModelProto:
        nodes = [op("Mul", "x w", "h"), op("ReduceMean", "h", "y", axes=[1], keepdims=0)]
        return model_of(nodes, {"x": ["batch", "seq", 3]}, {"y": ["batch", 3]}, w=np.full(3, w, np.float32))

    policy, x = memojax.load(mean(1)), f32(2, 5, 3)
    policy.infer_arrays({"x": x})
    policy.update_params(mean(3))
    with memojax.forbid_compile():
        np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], 3 * x.mean(1), rtol=1e-4, atol=1e-5)
    policy.update_params({"w": np.full(3, 2, np.float32)})
    np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], 2 * x.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        policy.infer_arrays({"x": x[:, :2]})["y"], 2 * x[:, :2].mean(1), rtol=1e-4, atol=1e-5
    )


def test_a_default_that_callers_give_stays_an_input_for_verify_and_new_weights() -> None:
    def gained(w: float) -> onnx.ModelProto:
        nodes = [op("Mul", "x w", "h"), op("Mul", "h gain", "y")]
        tensors = {"w": np.full(4, w, np.float32), "gain": np.ones(4, np.float32)}
        return model_of(nodes, {"x": ["batch", 4], "gain": [4]}, {"y": ["batch", 4]}, **tensors)

    policy = memojax.load(gained(1), inputs=["gain"])
    assert all(check.same for check in memojax.verify(policy.typed, [1, 3]))
    policy.update_params(gained(3))
    x, gain = f32(2, 4), f32(4)
    np.testing.assert_allclose(policy.infer_arrays({"x": x, "gain": gain})["y"], 3 * x * gain, rtol=1e-5)


def test_a_leading_symbol_beside_an_input_and_an_output_of_one_row_is_not_the_batch() -> None:
    nodes = [op("Transpose", "q", "t", perm=[1, 0]), op("MatMul", "x t", "y")]
    model = model_of(nodes, {"x": [1, 4], "q": ["targets", 4]}, {"y": [1, "targets"]})
    with pytest.raises(
        DimensionError, match=r"'targets' leads an input, but input 'x' and output 'y' have one"
    ):
        memojax.load(model)
    x, q = f32(2, 1, 4), f32(2, 5, 4)
    got = memojax.load(model, batch_axis=False).infer_arrays({"x": x, "q": q})["y"]
    for row in range(2):
        want = in_file(model, {"x": x[row], "q": q[row]})["y"]
        np.testing.assert_allclose(got[row].ravel(), want.ravel(), rtol=1e-4, atol=1e-5)


def test_a_state_of_one_layer_does_not_contradict_a_leading_symbol() -> None:
    nodes = [
        op("Mul", "obs bias", "b"),
        op("Squeeze", "h_in layer", "h"),
        op("Add", "b h", "act"),
        op("Unsqueeze", "act layer", "h_out"),
    ]
    inputs = {"obs": ["s12", 4], "h_in": [1, "s12", 4], "bias": [1, 4]}
    outputs = {"act": ["s12", 4], "h_out": [1, "s12", 4]}
    policy = memojax.load(model_of(nodes, inputs, outputs, layer=np.array([0], np.int64)))
    obs, h, bias = f32(3, 4), f32(3, 1, 4), f32(1, 4)
    got = policy.infer_arrays({"obs": obs, "h_in": h, "bias": bias})["act"]
    np.testing.assert_allclose(got, obs * bias + h[:, 0], rtol=1e-5, atol=1e-6)


def test_verify_finds_every_planted_fault() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Mul", "h gain", "y")]
    model = model_of(nodes, {"x": ["batch", 4], "gain": [3]}, {"y": ["batch", 3]}, w=f32(4, 3))
    typed = memojax.TypedModel.from_model(model)
    assert all(check.same for check in memojax.verify(typed, [1, 3]))
    weights = typed.with_params({"w": typed.params["w"] + 1})
    assert not any(check.same for check in memojax.verify(weights, [1, 3]))
    entries = memojax.TypedModel.from_model(CONCAT)
    assert not any(check.same for check in memojax.verify(misread(entries, "rows_outermost", True), [3]))
    mean = model_of(
        [op("ReduceMean", "x", "m", axes=[0], keepdims=1), op("Sub", "x m", "y")],
        {"x": ["batch", 4]},
        {"y": ["batch", 4]},
    )
    whole = memojax.TypedModel.from_model(mean)
    fn: Any = whole.fn
    apart = replace(whole, fn=replace(fn, rule=replace(fn.rule, kind="vmap")))
    assert not any(check.same for check in memojax.verify(apart, [3]))
    square = memojax.TypedModel.from_model(
        model_of([op("Softmax", "x", "y", axis=0)], {"x": [4, "batch"]}, {"y": [4, "batch"]})
    )
    assert not any(check.same for check in memojax.verify(misread(square, "axis", 0), [4]))


def misread(typed: Any, field: str, value: Any) -> Any:
    """`typed` with another understanding of its output's rows."""
    rule = typed.fn.rule
    outputs = {name: replace(how, **{field: value}) for name, how in rule.outputs.items()}
    return replace(typed, fn=replace(typed.fn, rule=replace(rule, outputs=outputs)))


def test_the_pure_function_says_that_a_traced_flag_decides_a_branch() -> None:
    def branch(name: str, factor: float) -> onnx.GraphProto:
        tensor = onnx.numpy_helper.from_array(np.array(factor, np.float32), f"{name}_k")
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])
        return helper.make_graph([op("Mul", f"x {name}_k", f"{name}_y")], name, [], [out], [tensor])

    nodes = [op("If", "train", "y", then_branch=branch("t", 2), else_branch=branch("e", 1))]
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]})
    model.graph.input.append(helper.make_tensor_value_info("train", TensorProto.BOOL, []))
    fn, params = memojax.to_jax(memojax.load(model))
    x = f32(3, 4)
    np.testing.assert_allclose(fn(params, {"x": x, "train": np.array(True)})["y"], 2 * x, rtol=1e-6)
    with pytest.raises(memojax.errors.StaticInputError, match="'train' decides"):
        jax.jit(fn)(params, {"x": x, "train": np.array(True)})
