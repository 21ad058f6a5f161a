"""`memojax.run` and the ONNX backend: any model, in the file layout."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import memojax
from memojax import backend, errors
from memojax.lowering import oneshot


def reshape_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"]), helper.make_node("Size", ["x"], ["n"])],
        "reshape",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, ["r"]),
        ],
        [onnx.ValueInfoProto(name="y"), onnx.ValueInfoProto(name="n")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_each_shape_and_static_value_has_one_executable() -> None:
    model = oneshot.OneShot(reshape_model())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for shape in ([6], [3, 2], [6], [3, 2], [-1]):
        np.testing.assert_array_equal(model({"x": x, "shape": np.array(shape)})["y"], x.reshape(shape))
    assert model.plans == 3
    assert model({"x": x, "shape": np.array([6])})["n"] == 6


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"x": np.ones((2, 3), np.float32)}, errors.MissingInputError, "'shape'"),
        ({"x": np.ones((2, 3), np.float32), "shape": np.array([6]), "z": 1}, errors.UnknownInputError, "'z'"),
        ({"x": np.ones((2, 4), np.float32), "shape": np.array([6])}, errors.InputShapeError, r"\[2, 4\]"),
        ({"x": np.ones((2, 3), complex), "shape": np.array([6])}, errors.InputDtypeError, "complex128"),
        ({"x": np.ones((2, 3), np.float32), "shape": np.array([7])}, errors.LoweringError, "Reshape"),
    ],
)
def test_bad_inputs_are_named(inputs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        memojax.run(reshape_model(), inputs)


def test_backend_interface() -> None:
    x = np.array([[-1.0, 2.0]], np.float32)
    (y,) = backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [x])
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert backend.supports_device("CPU")
    prepared = backend.prepare(reshape_model())
    np.testing.assert_array_equal(prepared.run([np.ones((2, 3), np.float32), np.array([6])])[0], np.ones(6))


def nonzero_model() -> onnx.ModelProto:
    """relu -> NonZero -> Gather from the output of relu -> sum: two parts around one break."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["where"], name="find"),
        helper.make_node("GatherND", ["r", "index"], ["values"]),
        helper.make_node("Transpose", ["where"], ["index"]),
        helper.make_node("ReduceSum", ["values"], ["total"], keepdims=0),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(
        nodes, "breaks", infos, [onnx.ValueInfoProto(name=n) for n in ("where", "values", "total")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_graph_breaks(caplog: pytest.LogCaptureFixture) -> None:
    model = oneshot.OneShot(nonzero_model())
    assert "1 graph break(s)" in caplog.text
    assert "find (NonZero)" in caplog.text
    for x in (
        np.array([1, -1, 2], np.float32),
        np.array([-3, 4, -5], np.float32),
        np.array([1, 0, 7], np.float32),
    ):
        got = model({"x": x})
        np.testing.assert_array_equal(got["where"], [np.flatnonzero(x > 0)])
        np.testing.assert_array_equal(got["values"], x[x > 0])
        assert got["total"] == x[x > 0].sum()
    assert model.plans == 1 + 2  # The first part once, the second for 2 and for 1 found entries.


def test_strict_refuses_breaks_and_so_do_inferers() -> None:
    with pytest.raises(errors.UnsupportedOpError, match=r"NonZero .*find"):
        oneshot.OneShot(nonzero_model(), strict=True)
    with pytest.raises(errors.UnsupportedOpError, match="find.*runs on the host"):
        memojax.TypedModel.from_model(nonzero_model(), strict=True)
    with pytest.raises(
        errors.DimensionError, match="output 'where' does not have the same dtype and shape for every row"
    ):
        memojax.load(nonzero_model())


def test_host_operators_on_constants_need_no_break() -> None:
    nodes = [
        helper.make_node("NonZero", ["mask"], ["where"]),
        helper.make_node("Gather", ["x", "where"], ["y"], axis=1),
    ]
    mask = onnx.numpy_helper.from_array(np.array([0, 1, 1, 0], np.float32), "mask")
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "constant", infos, [onnx.ValueInfoProto(name="y")], [mask])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert oneshot.OneShot(model, strict=True).breaks == []
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(memojax.load(model).infer_arrays({"x": x})["y"], x[:, None, 1:3])

    nodes = [
        helper.make_node("Cast", ["mask"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Compress", ["x", "keep"], ["y"], axis=1),
    ]
    graph = helper.make_graph(nodes, "compress", infos, [onnx.ValueInfoProto(name="y")], [mask])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    np.testing.assert_array_equal(memojax.load(model).infer_arrays({"x": x})["y"], x[:, 1:3])
