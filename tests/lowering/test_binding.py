"""Bound inputs are constants that fold, and inputs with a default can be given, bound or left out."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import memojax
from memojax.errors import (
    InputDtypeError,
    InputShapeError,
    LoweringError,
    UnknownInputError,
    UnsupportedOpError,
)
from memojax.lowering.binding import bind_inputs, with_inputs
from memojax.lowering.graph_function import GraphFunction
from memojax.model import load_model

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def model(graph: str, ir_version: int = 8) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17]> {graph}')


def onnx_runtime(given: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))  # pyright: ignore[reportArgumentType]


BRANCH = model("""g (float[N,4] x, int64 rate) => (float[] y) <int64 k = {16000}> {
    c = Equal (rate, k)
    y = If (c) <then_branch = a () => (float[] t) { t = Neg (x) },
                else_branch = b () => (float[] e) { e = Concat <axis = 1> (x, x) }>
}""")
"""The branches declare no shapes, and return different ones."""
SHAPE = model("""g (float[N,4] x, int64[2] shape) => (float[] y) {
    two = Constant <value_ints = [2]> ()
    all = Concat <axis = 0> (shape, two)
    y = Reshape (x, all)
}""")
COMPRESS = model("""g (float[N,4] x, bool[4] keep) => (float[] y) { y = Compress <axis = 1> (x, keep) }""")
RANGE = model("""g (float[N,4] x, int64 count) => (float[] y) <int64 zero = {0}, int64 one = {1}> {
    steps = Range (zero, count, one)
    y = Gather <axis = 1> (x, steps)
}""")
TOP = model("""g (float[N,4] x, int64[1] k) => (float[] y, int64[] i) { y, i = TopK (x, k) }""")


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        (BRANCH, {"rate": 16000}),
        (BRANCH, {"rate": 8000}),
        (SHAPE, {"shape": [-1, 2]}),
        (COMPRESS, {"keep": [True, False, True, True]}),
        (RANGE, {"count": 3}),
        (TOP, {"k": 2}),
        (TOP, {"k": [3]}),
    ],
)
def test_a_bound_input_folds_like_an_initializer(given: onnx.ModelProto, bound: dict[str, Any]) -> None:
    declared = {value.name: value for value in load_model(given).graph.inputs}
    feeds = {name: np.asarray(value, declared[name].dtype) for name, value in bound.items()}
    shapes = {name: declared[name].shape or () for name in feeds}
    feeds = {
        name: array.reshape([len(array)] if len(shapes[name]) and array.ndim else [1] * len(shapes[name]))
        for name, array in feeds.items()
    }
    expected = onnx_runtime(given, {"x": X, **feeds})
    fn, params = memojax.to_jax(given, constants=bound)
    for answer in (
        memojax.load(given, constants=bound).infer_arrays({"x": X}),
        memojax.run(given, {"x": X}, constants=bound),
        memojax.run(given, {"x": X, **feeds}),
        jax.jit(fn)(params, {"x": X}),
    ):
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(answer[name], value, rtol=1e-6)


def test_a_branch_that_cannot_be_traced_names_the_input_to_bind() -> None:
    fn, params = memojax.to_jax(BRANCH)
    with pytest.raises(LoweringError, match=r"input 'rate': with constants=\{'rate': \.\.\.\} only one"):
        jax.jit(fn)(params, {"x": X, "rate": np.int64(8000)})
    np.testing.assert_array_equal(fn(params, {"x": X, "rate": 16000})["y"], -X)


def test_a_bound_array_is_not_a_weight() -> None:
    gain = model("g (float[N,4] x, float[4] gain) => (float[N,4] y) { y = Mul (x, gain) }")
    _, params = memojax.to_jax(gain, constants={"gain": np.arange(4)})
    assert params == {}
    policy = memojax.load(gain, constants={"gain": np.arange(4)})
    np.testing.assert_array_equal(policy.infer_arrays({"x": X})["y"], X * np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        ({"rates": 1}, UnknownInputError, "'rates'.*'x', 'rate'"),
        ({"rate": 1.5}, InputDtypeError, "is float64, the model takes int64"),
        ({"rate": [1, 2]}, InputShapeError, r"declared with shape \[\].* int64\[2\]"),
    ],
)
def test_every_entry_point_refuses_a_value_that_does_not_fit(bound: Any, error: Any, message: str) -> None:
    for door in (memojax.load, memojax.to_jax, memojax.OneShot):
        with pytest.raises(error, match=message):
            door(BRANCH, constants=bound)


def test_a_whole_number_that_does_not_fit_is_refused() -> None:
    narrow = model(
        "g (float[N,4] x, int8 shift) => (float[N,4] y) { s = Cast <to = 1> (shift)\n y = Add (x, s) }"
    )
    with pytest.raises(InputDtypeError, match="int8, which cannot hold 300"):
        memojax.load(narrow, constants={"shift": 300})
    with pytest.raises(InputDtypeError, match="int8, which cannot hold -129"):
        memojax.run(narrow, {"x": X, "shift": -129})


DEFAULTS = """g (float[N,4] x, float[4] gain = {1.0, 2.0, 3.0, 4.0}, int64[2] shape = {-1, 4})
    => (float[] y) {
    scaled = Mul (x, gain)
    y = Reshape (scaled, shape)
}"""


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gain": np.ones(4, np.float32)},
        {"shape": np.array([-1, 2])},
        {"gain": np.zeros(4, np.float32), "shape": np.array([2, -1])},
    ],
)
def test_a_default_is_left_out_given_or_bound(given: dict[str, Any]) -> None:
    listed = model(DEFAULTS)
    expected = onnx_runtime(listed, {"x": X, **given})["y"]
    fn, params = memojax.to_jax(listed)
    assert params.keys() == {"gain"}
    np.testing.assert_allclose(memojax.run(listed, {"x": X, **given})["y"], expected)
    np.testing.assert_allclose(memojax.run(listed, {"x": X}, constants=given)["y"], expected)
    np.testing.assert_allclose(fn(params, {"x": X, **given})["y"], expected)
    bound, weights = memojax.to_jax(listed, constants=given)
    np.testing.assert_allclose(bound(weights, {"x": X})["y"], expected)
    if expected.shape[0] % 3 == 0:
        rows = memojax.load(listed, constants=given).infer_arrays({"x": X})["y"]
        np.testing.assert_allclose(rows.reshape(expected.shape), expected)


def test_a_gradient_reaches_a_given_default() -> None:
    fn, params = memojax.to_jax(model(DEFAULTS))
    gradient = jax.grad(lambda gain: fn(params, {"x": X, "gain": gain})["y"].sum())(np.ones(4, np.float32))
    np.testing.assert_allclose(gradient, X.sum(0), rtol=1e-5)


def test_old_files_have_no_defaults() -> None:
    old = model(DEFAULTS, ir_version=3)
    assert load_model(old).graph.defaults == {}
    with pytest.raises(UnknownInputError, match="'gain'"):
        memojax.run(old, {"x": X, "gain": np.ones(4, np.float32)})


def test_defaults_become_inputs_by_name() -> None:
    graph = load_model(model(DEFAULTS)).graph
    assert list(graph.defaults) == ["gain", "shape"]
    assert [value.name for value in with_inputs(graph, ["shape", "x"]).inputs] == ["x", "shape"]
    assert GraphFunction(with_inputs(graph, ["shape"])).static_inputs == ("shape",)
    assert bind_inputs(graph, {"gain": np.ones(4)}).bound.keys() == {"gain"}
    with pytest.raises(UnknownInputError, match="'gains'"):
        with_inputs(graph, ["gains"])


STRANGE = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "my.domain": 1]>
g (float[N,4] x, bool flag, int64 level, float[N,4] noise) => (float[N,4] y)
<float[4] w = {1, 2, 3, 4}, int64 two = {2}> {
    y = If (flag) <then_branch = a () => (float[N,4] t) {
            high = Greater (level, two)
            m = Mul (x, w)
            t = If (high) <then_branch = c () => (float[N,4] u) { m2 = Neg (m)
 u = Identity (m2) },
                           else_branch = d () => (float[N,4] u2) { u2 = Add (m, noise) }>
        },
        else_branch = b () => (float[N,4] e) { e = my.domain.Strange (x) }>
}""")
"""One branch has an unknown operator, and in the other an If does not read an input."""


def test_a_bound_condition_drops_the_branch_that_is_not_taken() -> None:
    bound = {"flag": True, "level": 3}
    graph = bind_inputs(load_model(STRANGE).graph, bound)
    assert not any(node.op_type == "If" for node in graph.nodes)
    weights = np.array([1, 2, 3, 4], np.float32)
    noise = np.ones_like(X)
    given = {"x": X, "noise": noise}
    np.testing.assert_array_equal(memojax.run(STRANGE, given, constants=bound)["y"], -(X * weights))
    np.testing.assert_array_equal(
        memojax.load(STRANGE, constants=bound).infer_arrays(given)["y"], -(X * weights)
    )
    low = memojax.load(STRANGE, constants={"flag": True, "level": 1})
    np.testing.assert_array_equal(low.infer_arrays(given)["y"], X * weights + noise)
    with pytest.raises(UnsupportedOpError, match="Strange"):
        memojax.load(STRANGE, constants={"flag": False})
    with pytest.raises(UnsupportedOpError, match="Strange"):
        memojax.run(STRANGE, {**given, "flag": True, "level": 3})


def test_new_weights_reach_a_policy_whose_branch_was_taken() -> None:
    bound = {"flag": True, "level": 3}
    policy = memojax.load(STRANGE, constants=bound)
    other = onnx.ModelProto()
    other.CopyFrom(STRANGE)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(4, 5, np.float32), "w"))
    policy.update_params(other).result()
    np.testing.assert_array_equal(policy.infer_arrays({"x": X, "noise": X})["y"], -5 * X)
