"""The batch rule: what is found in files of every kind, with rows that mean the same under each rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.errors import DimensionError, InputError, StaticInputError, UnknownInputError

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 3)).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: tuple[str, ...] = ("y",),
    **initializers: np.ndarray,
) -> Any:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(
        nodes,
        "test",
        infos,
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def matmul() -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", ["x", "w"], ["y"])]


@pytest.mark.parametrize(
    ("shape", "kind", "element"),
    [
        (["batch", 4], "axis", [4]),
        (["unk__12", 4], "axis", [4]),
        ([None, 4], "axis", [4]),
        ([0, 4], "axis", [4]),
        ([1, 4], "vmap", [4]),
        ([4], "vmap", [4]),
    ],
)
def test_one_input(shape: list, kind: str, element: list[int]) -> None:
    inferer = memojax.load(model_of(matmul(), {"x": shape}, w=W))
    assert inferer.typed.rule.startswith(kind)
    assert inferer.input_shapes() == [("x", element)]
    assert inferer.output_shapes() == [("y", [3])]
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(inferer.infer_arrays({"x": x})["y"], x @ W, rtol=1e-5)
    assert inferer.infer_arrays({"x": x[:0]})["y"].shape == (0, 3)


def test_batch_on_another_axis_is_given_as_rows() -> None:
    nodes = [
        helper.make_node("Transpose", ["state"], ["s"], perm=[1, 0, 2]),
        helper.make_node("Add", ["s", "x"], ["y"]),
    ]
    nodes.append(helper.make_node("Identity", ["state"], ["state_out"]))
    inferer = memojax.load(model_of(nodes, {"x": ["B", 2, 4], "state": [2, "B", 4]}, ("y", "state_out")))
    assert inferer.input_shapes() == [("x", [2, 4]), ("state", [2, 4])]
    assert inferer.output_shapes() == [("y", [2, 4]), ("state_out", [2, 4])]
    x, state = (RNG.standard_normal((6, 2, 4)).astype(np.float32) for _ in range(2))
    got = inferer.infer_arrays({"x": x, "state": state})
    np.testing.assert_allclose(got["y"], x + state)
    np.testing.assert_array_equal(got["state_out"], state)


@pytest.mark.parametrize(
    "names",
    [
        ("x_batch", "state_batch"),
        ("batch_size", "batch"),
        ("x_dynamic_axes_1", "state_dynamic_axes_1"),
        ("x_dim_0", "state_dim_1"),
        (None, None),
        ("batch", "unk__7"),
    ],
)
def test_each_input_may_have_its_own_name_for_the_batch(names: tuple[str | None, str | None]) -> None:
    nodes = [helper.make_node("Add", ["x", "state"], ["y"])]
    inferer = memojax.load(model_of(nodes, {"x": [names[0], 4], "state": [2, names[1], 4]}))
    assert inferer.input_shapes() == [("x", [4]), ("state", [2, 4])]
    assert inferer.typed.rule.startswith("axis")
    x, state = (
        RNG.standard_normal((3, 4)).astype(np.float32),
        RNG.standard_normal((3, 2, 4)).astype(np.float32),
    )
    np.testing.assert_allclose(inferer.infer_arrays({"x": x, "state": state})["y"], x[:, None] + state)


def test_batch_baked_into_shape_constants_is_mapped() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["y"], keepdims=0),
    ]
    model = model_of(nodes, {"x": [1, 4]}, shape=np.array([2, 2], np.int64))
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(memojax.load(model).infer_arrays({"x": x})["y"], x.sum(1), rtol=1e-5)


def test_a_declared_batch_that_does_not_hold_is_mapped() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    inferer = memojax.load(model_of(nodes, {"x": ["batch", 4]}, shape=np.array([1, 4], np.int64), w=W))
    assert "does not hold" in inferer.typed.rule
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(inferer.infer_arrays({"x": x})["y"], x @ W, rtol=1e-5)


def test_a_layers_first_state_is_not_the_batch() -> None:
    """`h_in [1, 1, H]` beside `x [1, 4]`: a row is a run, and no axis of a state is the batch."""
    nodes = [
        helper.make_node("Squeeze", ["h_in", "zero"], ["h"]),
        helper.make_node("Add", ["x", "h"], ["h_new"]),
    ]
    nodes.append(helper.make_node("Unsqueeze", ["h_new", "zero"], ["h_out"]))
    inferer = memojax.load(
        model_of(nodes, {"x": [1, 4], "h_in": [1, 1, 4]}, ("h_out",), zero=np.array([0], np.int64))
    )
    x, h = RNG.standard_normal((3, 4)).astype(np.float32), RNG.standard_normal((3, 1, 4)).astype(np.float32)
    np.testing.assert_allclose(inferer.infer_arrays({"x": x, "h_in": h})["h_out"], x[:, None] + h)


def test_other_symbols_stay_free_unless_they_are_bound() -> None:
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": ["batch", "seq", "width"]})
    inferer = memojax.load(model)
    assert inferer.input_shapes() == [("x", ["seq", "width"])]
    assert inferer.output_shapes() == [("y", ["seq", "width"])]
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["y"], x)
    assert memojax.load(model, dims={"seq": 2}).input_shapes() == [("x", [2, "width"])]
    assert memojax.load(model, dims={"seq": 2, "width": 3}).input_shapes() == [("x", [2, 3])]
    with pytest.raises(DimensionError, match="'sequence', which no input declares"):
        memojax.load(model, dims={"seq": 2, "width": 3, "sequence": 4})


def test_unnamed_dimensions_have_their_place_as_a_name() -> None:
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": ["batch", None, 3]})
    assert memojax.load(model).input_shapes() == [("x", ["x.1", 3])]
    assert memojax.load(model, dims={"x.1": 5}).input_shapes() == [("x", [5, 3])]


def test_batch_axis_overrides() -> None:
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": ["time", "agents", 3]})
    inferer = memojax.load(model, batch_axis={"x": 1}, dims={"time": 2})
    x = RNG.standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["y"], x)
    with pytest.raises(DimensionError, match="out of range"):
        memojax.load(model, batch_axis=5)
    with pytest.raises(DimensionError, match="'obs', which is not an input"):
        memojax.load(model, batch_axis={"obs": 0})


def test_input_without_batch_is_shared_by_all_agents() -> None:
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    model = model_of(nodes, {"x": ["batch", 4], "scale": [4]})
    x, scale = RNG.standard_normal((5, 4)).astype(np.float32), RNG.standard_normal(4).astype(np.float32)
    bound = memojax.load(model, constants={"scale": scale})
    np.testing.assert_allclose(bound.infer_arrays({"x": x})["y"], x * scale)
    inferer = memojax.load(model)
    each = np.tile(scale, (5, 1))
    for given in (scale, each):
        np.testing.assert_allclose(inferer.infer_arrays({"x": x, "scale": given})["y"], x * scale)
    answers = inferer.infer_batch({i: {"x": x[i], "scale": scale} for i in range(5)})
    np.testing.assert_allclose(np.stack([answer["y"] for answer in answers.values()]), x * scale)
    each[3] += 1
    with pytest.raises(InputError, match=r"'scale' is shared by all agents.*row 3 differs"):
        inferer.infer_arrays({"x": x, "scale": each})
    with pytest.raises(UnknownInputError, match="'sr'"):
        memojax.load(model, constants={"sr": 1})


def test_input_that_decides_a_shape_must_be_bound() -> None:
    nodes = [
        helper.make_node("Cast", ["shape"], ["s"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["batch", 4], "shape": [3]})
    with pytest.raises(StaticInputError, match="constants="):
        memojax.load(model)
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    inferer = memojax.load(model, constants={"shape": [-1, 2, 2]})
    np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["y"], x.reshape(5, 2, 2))


def test_constant_outputs_are_rows_too() -> None:
    nodes = [*matmul(), helper.make_node("Identity", ["v"], ["version_number"])]
    inferer = memojax.load(
        model_of(nodes, {"x": ["batch", 4]}, ("version_number", "y"), w=W, v=np.array([3.0], np.float32))
    )
    got = inferer.infer_arrays({"x": np.zeros((5, 4), np.float32)})
    assert list(got) == ["version_number", "y"]
    np.testing.assert_array_equal(got["version_number"], np.full((5, 1), 3.0))
    assert inferer.infer_single({"x": np.zeros(4)})["version_number"] == [3.0]


def test_outputs_may_all_be_constant() -> None:
    inferer = memojax.load(
        model_of(
            [helper.make_node("Identity", ["v"], ["y"])], {"x": ["batch", 4]}, v=np.array([3.0], np.float32)
        )
    )
    np.testing.assert_array_equal(
        inferer.infer_arrays({"x": np.zeros((5, 4), np.float32)})["y"], np.full((5, 1), 3.0)
    )


def test_a_squeeze_of_all_unit_axes_keeps_a_batch_of_one() -> None:
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], axes=[1]), helper.make_node("Squeeze", ["m"], ["y"])]
    inferer = memojax.load(model_of(nodes, {"x": ["batch", 4]}))
    assert inferer.mixing_outputs == ()
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    for n in (1, 3):
        np.testing.assert_array_equal(inferer.infer_arrays({"x": x[:n]})["y"], x[:n].max(1))


def test_rows_that_mix_are_found() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    nodes.append(helper.make_node("Relu", ["x"], ["z"]))
    assert memojax.load(model_of(nodes, {"x": ["batch", 4]}, ("y", "z"))).mixing_outputs == ("y",)


def test_int64_and_uint8_keep_their_dtypes() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
            helper.make_node("Add", ["n", "i"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, ["b", 4]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["b"]),
        ],
        [onnx.ValueInfoProto(name="y")],
    )
    inferer = memojax.load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    big = np.array([1 << 40, 2], np.int64)
    got = inferer.infer_arrays({"x": np.array([[0, 9, 1, 1], [7, 0, 0, 0]], np.uint8), "n": big})["y"]
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, big + [1, 0])


def test_random_rows_repeat_and_do_not_depend_on_how_many_follow() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    for shape in (["batch", 4], [1, 4]):
        model, x = model_of(nodes, {"x": shape}), np.zeros((6, 4), np.float32)
        first = memojax.load(model, seed=3).infer_arrays({"x": x})["y"]
        np.testing.assert_array_equal(memojax.load(model, seed=3).infer_arrays({"x": x})["y"], first)
        np.testing.assert_allclose(
            memojax.load(model, seed=3).infer_arrays({"x": x[:2]})["y"], first[:2], rtol=1e-6
        )
        assert not np.array_equal(memojax.load(model, seed=4).infer_arrays({"x": x})["y"], first)
        assert len(np.unique(first.round(4))) == 24
