"""`memojax.run` and the ONNX backend: any model, in the file's own layout."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import memojax
from memojax import backend, errors, oneshot


def reshape_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"]), helper.make_node("Size", ["x"], ["n"])],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", 3]), helper.make_tensor_value_info("shape", TensorProto.INT64, ["r"])],
        [onnx.ValueInfoProto(name="y"), onnx.ValueInfoProto(name="n")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_each_shape_and_static_value_has_one_executable() -> None:
    model = oneshot.OneShot(reshape_model())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for shape in ([6], [3, 2], [6], [3, 2], [-1]):
        np.testing.assert_array_equal(model({"x": x, "shape": np.array(shape)})["y"], x.reshape(shape))
    assert len(model._plans) == 3
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
