"""The axis of the agents in files of every kind: right by ONNX Runtime row by row, or refused with advice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.errors import DimensionError, InputShapeError, RowsMixError

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any] | None],
    **initializers: np.ndarray,
) -> Any:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(list(nodes), "test", infos, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def op(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def in_file(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


MEAN = op("ReduceMean", "x", "m", axes=[0], keepdims=1)
"""The mean over axis 0, on which no agent's answer may depend."""


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_time_behind_a_batch_of_one_is_a_dimension_of_the_element(n: int) -> None:
    nodes = [op("ReduceMean", "x", "m", axes=[1], keepdims=1), op("Sub", "x m", "y")]
    model = model_of(nodes, {"x": [1, "seq", 5]}, {"y": [1, "seq", 5]})
    policy = memojax.load(model)
    assert policy.input_shapes() == [("x", ["seq", 5])]
    assert policy.output_shapes() == [("y", ["seq", 5])]
    x = f32(n, 6, 5)
    got = policy.infer_arrays({"x": x})["y"]
    for row in range(n):
        np.testing.assert_allclose(got[row], in_file(model, {"x": x[row : row + 1]})["y"][0], atol=1e-6)
    assert [(plan.size, dict(plan.dims)) for plan in policy.plans()] == [(n, {"seq": 6})]


def test_height_and_width_are_never_the_batch() -> None:
    nodes = [op("Conv", "x k", "y", pads=[1, 1, 1, 1])]
    model = model_of(
        nodes, {"x": [1, 3, "height", "width"]}, {"y": [1, 2, "height", "width"]}, k=f32(2, 3, 3, 3)
    )
    policy = memojax.load(model)
    assert policy.input_shapes() == [("x", [3, "height", "width"])]
    x = f32(3, 3, 9, 7)
    got = policy.infer_arrays({"x": x})["y"]
    np.testing.assert_allclose(got[1], in_file(model, {"x": x[1:2]})["y"][0], rtol=1e-4, atol=1e-5)
    assert memojax.load(model, dims={"height": 9}).input_shapes() == [("x", [3, 9, "width"])]


def test_a_leading_symbol_without_an_output_is_not_the_batch() -> None:
    nodes = [op("ReduceMax", "x", "y", axes=[0], keepdims=1)]
    policy = memojax.load(model_of(nodes, {"x": ["nodes", 4], "edges": [2, "count"]}, {"y": [1, 4]}))
    assert policy.input_shapes() == [("x", ["nodes", 4]), ("edges", [2, "count"])]
    x = f32(3, 6, 4)
    got = policy.infer_arrays({"x": x, "edges": np.zeros((3, 2, 5), np.float32)})["y"]
    np.testing.assert_array_equal(got.reshape(3, 4), x.max(1))


GRAPH = model_of([op("Relu", "x", "y")], {"x": ["nodes", 4], "edges": [2, "count"]}, {"y": ["nodes", 4]})
TWO_LEAD = model_of(
    [op("MatMul", "q k", "y")],
    {"q": ["queries", 4], "k": [4, "keys"], "v": ["keys", 4]},
    {"y": ["queries", "keys"]},
)


@pytest.mark.parametrize(("model", "symbols"), [(GRAPH, ("nodes", "count")), (TWO_LEAD, ("queries", "keys"))])
def test_too_little_evidence_is_refused_with_every_symbol(model: Any, symbols: tuple[str, ...]) -> None:
    with pytest.raises(DimensionError, match="not clear") as failure:
        memojax.load(model)
    said = str(failure.value)
    assert all(repr(symbol) in said for symbol in symbols)
    assert "batch_axis=" in said
    assert "batch_axis=False" in said
    assert "dims=" in said


def test_the_advice_of_the_refusal_works() -> None:
    x, edges = f32(3, 6, 4), np.zeros((3, 2, 5), np.float32)
    each = memojax.load(GRAPH, batch_axis=False)
    np.testing.assert_array_equal(each.infer_arrays({"x": x, "edges": edges})["y"], np.maximum(x, 0))
    rows = memojax.load(GRAPH, batch_axis="nodes")
    np.testing.assert_array_equal(rows.infer_arrays({"x": x[0], "edges": edges[0]})["y"], np.maximum(x[0], 0))


@pytest.mark.slow
def test_the_refusal_is_the_same_under_any_hash_seed(tmp_path: Any) -> None:
    onnx.save(GRAPH, tmp_path / "graph.onnx")
    load = "try: memojax.load(sys.argv[1])\nexcept memojax.errors.DimensionError as e: print(e)"
    code = f"import memojax, sys\n{load}"
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "graph.onnx")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "7")
    }
    assert len(said) == 1
    assert "nodes" in said.pop()


def test_rows_that_mix_refute_a_leading_symbol() -> None:
    model = model_of([MEAN, op("Sub", "x m", "y")], {"x": ["steps", 4]}, {"y": ["steps", 4]})
    policy = memojax.load(model)
    policy.infer_arrays({"x": f32(1, 4)})
    with pytest.raises(
        DimensionError, match=r"influence each other in output 'y'.*'steps'.*batch_axis=False"
    ):
        policy.infer_arrays({"x": f32(3, 4)})
    assert [plan.size for plan in policy.plans()] == [1]
    x = f32(2, 5, 4)
    got = memojax.load(model, batch_axis=False).infer_arrays({"x": x})["y"]
    np.testing.assert_allclose(got, x - x.mean(1, keepdims=True), atol=1e-6)


def test_rows_that_mix_run_whole_if_the_file_names_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    policy = memojax.load(model_of([MEAN, op("Sub", "x m", "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]}))
    for n in (3, 5):
        x = f32(n, 4)
        np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], x - x.mean(0), atol=1e-6)
    assert caplog.text.count("influence each other") == 1
    assert policy.plans()[0].mixing == ("y",)
    assert policy.mixing_outputs == ("y",)
    assert "influence" in repr(policy)
    padded = memojax.load(policy.typed, bucketing="pow2")
    with pytest.raises(RowsMixError, match="padding 3 rows"):
        padded.infer_arrays({"x": f32(3, 4)})


def test_an_output_of_pairs_has_rows() -> None:
    nodes = [op("Transpose", "x", "t", perm=[1, 0]), op("MatMul", "x t", "w"), op("Relu", "x", "y")]
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4], "w": ["batch", "batch"]})
    policy = memojax.load(model)
    assert policy.output_shapes() == [("y", [4]), ("w", ["batch"])]
    for n in (1, 3):
        x = f32(n, 4)
        want, got = in_file(model, {"x": x}), policy.infer_arrays({"x": x})
        np.testing.assert_allclose(got["w"], want["w"], atol=1e-5)
    assert memojax.load(model, outputs="y").mixing_outputs == ()


def test_an_output_with_several_entries_for_each_row_is_split() -> None:
    nodes = [op("Reshape", "x s", "y")]
    model = model_of(nodes, {"x": ["batch", 6]}, {"y": [None, 2]}, s=np.array([-1, 2], np.int64))
    policy = memojax.load(model)
    assert policy.output_shapes() == [("y", [3, 2])]
    x = f32(4, 6)
    np.testing.assert_array_equal(policy.infer_arrays({"x": x})["y"], x.reshape(4, 3, 2))
    np.testing.assert_array_equal(
        memojax.load(model, bucketing="pow2").infer_arrays({"x": x[:3]})["y"], x[:3].reshape(3, 3, 2)
    )


def test_an_output_that_does_not_divide_into_rows_is_named() -> None:
    nodes = [op("Concat", "x extra", "y", axis=0), op("Relu", "x", "z")]
    model = model_of(nodes, {"x": ["batch", 4]}, {"y": [None, 4], "z": ["batch", 4]}, extra=f32(1, 4))
    with pytest.raises(DimensionError, match=r"output 'y' .*outputs="):
        memojax.load(model)
    assert memojax.load(model, outputs=["z"]).output_shapes() == [("z", [4])]


def test_a_batch_that_is_declared_as_a_number_is_padded_and_split() -> None:
    w = f32(5, 2)
    model = model_of([op("MatMul", "x w", "y")], {"x": [8, 5]}, {"y": [8, 2]}, w=w)
    policy = memojax.load(model)
    assert policy.input_shapes() == [("x", [5])]
    for n in (1, 3, 8, 11):
        x = f32(n, 5)
        np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], x @ w, rtol=1e-5, atol=1e-5)
    assert [plan.size for plan in policy.plans()] == [8]
    board = model_of([op("MatMul", "w x", "y")], {"x": [5, 5]}, {"y": [5, 5]}, w=f32(5, 5))
    assert memojax.load(board).input_shapes() == [("x", [5, 5])], "rows that mix are no agents"


@pytest.mark.parametrize("declared", [["batch", 3], None])
def test_a_batch_baked_into_a_constant_is_served_and_named(declared: Any) -> None:
    noise = f32(16, 3)
    model = model_of([op("Mul", "x noise", "y")], {"x": ["batch", 3]}, {"y": declared}, noise=noise)
    policy = memojax.load(model)
    assert "'noise' holds 16 rows" in policy.typed.rule
    for n in (1, 5, 20):
        x = f32(n, 3)
        want = x * np.concatenate([noise, noise])[:n]
        np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], want, rtol=1e-6)


def test_a_baked_batch_whose_rows_mix_is_refused_by_the_constants_name() -> None:
    nodes = [op("Mul", "x noise", "z"), op("ReduceSum", "z", "s", keepdims=1), op("Add", "z s", "y")]
    model = model_of(nodes, {"x": ["batch", 3]}, {"y": ["batch", 3]}, noise=f32(16, 3))
    with pytest.raises(RowsMixError, match="'noise' holds 16 rows"):
        memojax.load(model).infer_arrays({"x": f32(5, 3)})


def test_a_file_for_multiples_of_rows_is_refused() -> None:
    nodes = [op("Reshape", "x s", "r"), op("ReduceMean", "r", "y", axes=[1], keepdims=0)]
    model = model_of(nodes, {"x": ["rows", 6]}, {"y": ["groups", 6]}, s=np.array([-1, 3, 6], np.int64))
    with pytest.raises(DimensionError, match=r"multiples of 3.*memojax\.run or memojax\.to_jax"):
        memojax.load(model)
    x = f32(6, 6)
    np.testing.assert_allclose(
        memojax.run(model, {"x": x})["y"], x.reshape(2, 3, 6).mean(1), rtol=1e-5, atol=1e-6
    )


def test_state_declared_for_one_row_beside_a_batch_is_each_agents_own() -> None:
    nodes = [op("Add", "obs h_in", "h_out"), op("Relu", "h_out", "act")]
    model = model_of(nodes, {"obs": ["batch", 4], "h_in": [1, 4]}, {"act": ["batch", 4], "h_out": [1, 4]})
    policy = memojax.load(model)
    assert policy.input_shapes() == [("obs", [4]), ("h_in", [4])]
    obs, h = f32(3, 4), f32(3, 4)
    np.testing.assert_allclose(policy.infer_arrays({"obs": obs, "h_in": h})["h_out"], obs + h)
    tracker = memojax.RecurrentTracker.wrap(policy)
    for agent in (7, 9):
        tracker.begin_agent(agent)
    tracker.infer_batch({7: {"obs": obs[0]}, 9: {"obs": obs[1]}})
    answers = tracker.infer_batch({7: {"obs": obs[0]}, 9: {"obs": obs[1]}})
    np.testing.assert_allclose(answers[9]["act"], np.maximum(2 * obs[1], 0), rtol=1e-6)


def test_a_declared_shape_that_one_row_does_not_have_is_an_error() -> None:
    nodes = [op("Reshape", "x s", "y")]
    model = model_of(nodes, {"x": [1, 6]}, {"y": [1, 6]}, s=np.array([3, 2], np.int64))
    with pytest.raises(
        DimensionError, match=r"output 'y' has shape \[3, 2\] for one row, but the file declares \[1, 6\]"
    ):
        memojax.load(model)


def test_free_dimensions_have_plans_of_their_own() -> None:
    nodes = [op("ReduceMean", "x", "y", axes=[1], keepdims=0)]
    model = model_of(nodes, {"x": ["batch", "seq", 3]}, {"y": ["batch", 3]})
    policy = memojax.load(model, preload=[{"batch": 2, "seq": 4}, {"batch": 1, "seq": 9}], maxsize=1)
    with memojax.forbid_compile():
        x = f32(2, 4, 3)
        np.testing.assert_allclose(policy.infer_arrays({"x": x})["y"], x.mean(1), atol=1e-6)
    for seq in (5, 6, 7):
        policy.infer_arrays({"x": f32(3, seq, 3)})
    assert [(plan.size, plan.dims["seq"]) for plan in policy.plans()] == [(2, 4), (1, 9), (3, 7)]
    info = policy.cache_info()
    assert (info.misses, info.evictions, info.currsize) == (3, 2, 3)
    assert policy.batch_sizes() == {2: 1, 3: 3}
    with pytest.raises(DimensionError, match="lacks 'seq'"):
        policy.preload([{"batch": 2}])
    with pytest.raises(DimensionError, match="names 'sequence'"):
        policy.preload([{"batch": 2, "sequence": 3}])


def test_agents_of_one_batch_may_differ_in_a_free_dimension() -> None:
    nodes = [op("ReduceSum", "x axes", "y", keepdims=0)]
    model = model_of(nodes, {"x": ["batch", "seq", 3]}, {"y": ["batch", 3]}, axes=np.array([1], np.int64))
    policy = memojax.load(model)
    states = {agent: {"x": f32(2 + agent % 3, 3)} for agent in (9, 4, 7, 1, 3)}
    answers = policy.infer_batch(states)
    assert list(answers) == list(states)
    for agent, state in states.items():
        np.testing.assert_allclose(answers[agent]["y"], state["x"].sum(0), rtol=1e-5, atol=1e-6)
    batched = policy.into_batched()
    for agent, state in states.items():
        batched.push(agent, state)
    answers = batched.execute()
    assert list(answers) == list(states)
    for agent, state in states.items():
        np.testing.assert_allclose(answers[agent]["y"], state["x"].sum(0), rtol=1e-5, atol=1e-6)


def test_expressions_of_symbols_are_evaluated() -> None:
    nodes = [op("Concat", "past x", "all", axis=1), op("Mul", "all mask", "y")]
    inputs = {"x": ["batch", "seq"], "past": ["batch", "past_seq"], "mask": ["batch", "past_seq + seq"]}
    model = model_of(nodes, inputs, {"y": ["batch", "past_seq + seq"]})
    policy = memojax.load(model)
    x, past, mask = f32(2, 3), f32(2, 4), f32(2, 7)
    got = policy.infer_arrays({"x": x, "past": past, "mask": mask})["y"]
    np.testing.assert_allclose(got, np.concatenate([past, x], 1) * mask, rtol=1e-6)
    with pytest.raises(InputShapeError, match=r"'past_seq \+ seq' is 7"):
        policy.infer_arrays({"x": x, "past": past, "mask": f32(2, 8)})


def test_new_weights_reach_every_binding() -> None:
    nodes = [op("MatMul", "x w", "z"), op("ReduceMean", "z", "y", axes=[1], keepdims=0)]
    w = f32(3, 2)
    policy = memojax.load(model_of(nodes, {"x": ["batch", "seq", 3]}, {"y": ["batch", 2]}, w=w))
    xs = [f32(2, seq, 3) for seq in (2, 5)]
    for x in xs:
        policy.infer_arrays({"x": x})
    policy.update_params({"w": 2 * w})
    with memojax.forbid_compile():
        for x in xs:
            np.testing.assert_allclose(
                policy.infer_arrays({"x": x})["y"], (x @ (2 * w)).mean(1), rtol=1e-4, atol=1e-5
            )


def test_free_models_pickle_with_their_plans() -> None:
    import pickle

    model = model_of([op("Relu", "x", "y")], {"x": ["batch", "seq"]}, {"y": ["batch", "seq"]})
    policy = memojax.load(model, preload=[{"batch": 2, "seq": 4}])
    again = pickle.loads(pickle.dumps(policy))
    assert again.plans() == []
    again.infer_arrays({"x": f32(2, 4)})
    assert [(plan.size, dict(plan.dims)) for plan in again.plans()] == [(2, {"seq": 4})]


def test_a_default_of_the_file_can_be_left_out_given_or_bound() -> None:
    nodes = [op("Mul", "x gain", "y")]
    model = model_of(
        nodes, {"x": ["batch", 3], "gain": [1]}, {"y": ["batch", 3]}, gain=np.array([2], np.float32)
    )
    x = f32(2, 3)
    np.testing.assert_array_equal(memojax.load(model).infer_arrays({"x": x})["y"], 2 * x)
    np.testing.assert_array_equal(
        memojax.load(model, constants={"gain": 5}).infer_arrays({"x": x})["y"], 5 * x
    )
    given = memojax.load(model, inputs="gain").infer_arrays({"x": x, "gain": np.array([3], np.float32)})
    np.testing.assert_array_equal(given["y"], 3 * x)


def test_checked_names_the_agent_of_an_index_out_of_range() -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"], name="look_up")],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(f32(4, 3), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    policy = memojax.load(model, checked=True)
    policy.infer_arrays({"i": np.array([1, 3])})
    with pytest.raises(memojax.errors.IndexRangeError, match=r"'look_up'.*index 9 .*agent 8"):
        policy.infer_batch({5: {"i": 1}, 8: {"i": 9}})
    assert np.isnan(memojax.load(model).infer_arrays({"i": np.array([1, 9])})["y"][1]).all()


def test_a_number_that_decides_a_branch_is_part_of_the_key() -> None:
    branches = {
        "then_branch": helper.make_graph(
            [op("Identity", "x", "t")], "t", [], [onnx.ValueInfoProto(name="t")]
        ),
        "else_branch": helper.make_graph(
            [op("Concat", "x x", "e", axis=1)], "e", [], [onnx.ValueInfoProto(name="e")]
        ),
    }
    graph = helper.make_graph(
        [op("Equal", "sr k", "c"), op("If", "c", "y", **branches)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.array(16000, np.int64), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    policy, x = memojax.load(model), f32(2, 3)
    np.testing.assert_array_equal(policy.infer_arrays({"x": x, "sr": 16000})["y"], x)
    np.testing.assert_array_equal(policy.infer_arrays({"x": x, "sr": 8000})["y"], np.concatenate([x, x], 1))
    answers = policy.infer_batch({1: {"x": x[0], "sr": 8000}, 2: {"x": x[1], "sr": 16000}})
    assert [answer["y"].shape for answer in answers.values()] == [(6,), (3,)]
    assert sorted(plan.dims["sr"] for plan in policy.plans()) == [8000, 8000, 16000, 16000]


def test_the_command_line_binds_free_dimensions(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from memojax.cli.main import cli

    nodes = [op("ReduceMean", "x", "y", axes=[1], keepdims=0)]
    path = tmp_path / "mean.onnx"
    onnx.save(model_of(nodes, {"x": ["batch", "seq", 3]}, {"y": ["batch", 3]}), path)
    open_run = CliRunner().invoke(cli, ["run", str(path), "-b", "8"])
    assert open_run.exit_code == 1
    assert "--dim seq=16" in open_run.stderr
    bound = CliRunner().invoke(cli, ["run", str(path), "-b", "8", "--dim", "seq=16"])
    assert bound.exit_code == 0, bound.output
    shown = CliRunner().invoke(cli, ["api", str(path)])
    assert "seq" in shown.output
    onnx.save(GRAPH, path)
    assert CliRunner().invoke(cli, ["api", str(path)]).exit_code == 1
    assert CliRunner().invoke(cli, ["api", str(path), "--batch-axis", "none"]).exit_code == 0


def test_the_axes_that_an_error_proposes_settle_the_question() -> None:
    nodes = [op("Squeeze", "h0 first", "h"), op("Add", "x h", "y"), op("Unsqueeze", "y first", "hn")]
    inputs = {"x": ["b0", 4], "h0": [1, "b1", 4]}
    model = model_of(nodes, inputs, {"y": ["b0", 4], "hn": [1, "b1", 4]}, first=np.array([0], np.int64))
    with pytest.raises(DimensionError, match=r"batch_axis=\{'x': 0, 'h0': 1\}"):
        memojax.load(model)
    policy = memojax.load(model, batch_axis={"x": 0, "h0": 1})
    x, h = f32(3, 4), f32(3, 1, 4)
    np.testing.assert_allclose(policy.infer_arrays({"x": x, "h0": h})["y"], x + h[:, 0], rtol=1e-6)
