"""Both x64 settings over all operators, half-precision models, and the precision of matrix products."""

from __future__ import annotations

import zlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import memojax
from memojax.lowering import oneshot
from memojax.lowering.graph_function import GraphFunction
from memojax.lowering.typed_model import TypedModel
from memojax.model import load_model
from memojax.plans.compiler import PlanCompiler
from tests.ops import corpus
from tests.ops.test_versions import assert_same, onnxruntime_session

pytestmark = pytest.mark.corpus

LEFT_OUT = {
    *corpus.known_failures(),
    "test_bitcast_float64_to_int64",
    "test_bitcast_int64_to_float64",
    "test_bitcast_uint64_to_int64",
}
PER_OPERATOR = 2


def _numbers(values: Any) -> bool:
    return all(isinstance(value, np.ndarray) and value.dtype != object for value in values)


PICKING = {"Compress", "NonZero"}
"""Operators whose output length depends on data, so a pure function cannot return them."""


def sample() -> dict[str, Any]:
    """For each operator of ONNX's node cases, a few numeric cases, picked by a hash of their names."""
    found = defaultdict(list)
    for name, case in sorted(corpus.cases("node").items(), key=lambda item: zlib.crc32(item[0].encode())):
        operators = {node.op_type for node in case.model.graph.node}
        first = "_expanded" not in name and len(operators) == 1 and name not in LEFT_OUT
        first = first and not operators & PICKING
        if (
            first
            and all(len(found[op]) < PER_OPERATOR for op in operators)
            and all(map(_numbers, corpus.data_of(case, case.model)[0]))
        ):
            found[min(operators)].append(case)
    return {case.name: case for op in sorted(found) for case in found[op]}


SAMPLE = sample()


def _fits(value: np.ndarray, dtype: Any) -> bool:
    if dtype.kind not in "iu":
        return True
    return value.size == 0 or (value.min() >= np.iinfo(dtype).min and value.max() <= np.iinfo(dtype).max)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", SAMPLE)
def test_pure_function_follows_the_callers_x64(name: str, x64: bool) -> None:
    """The function gives the file's numbers in the caller's widest dtypes, without a warning."""
    case = SAMPLE[name]
    model = load_model(case.model)
    inputs, expected = corpus.data_of(case, case.model)[0]
    given = {value.name: array for value, array in zip(model.graph.inputs, inputs, strict=False)}
    constants = {key: given.pop(key) for key in GraphFunction(model.graph).static_inputs}
    fn, params = memojax.to_jax(model, constants=constants)
    key = (jax.random.key(0),) if GraphFunction(model.graph).random else ()
    with jax.enable_x64(x64):
        wanted = [jax.dtypes.canonicalize_dtype(value.dtype) for value in expected]
        given = {
            key: value.astype(jax.dtypes.canonicalize_dtype(value.dtype)) for key, value in given.items()
        }
        by_name = jax.jit(fn)(params, given, *key)
        outputs = [np.asarray(by_name[value.name]) for value in model.graph.outputs]
    for got, want, dtype in zip(outputs, expected, wanted, strict=True):
        assert (got.dtype, got.shape) == (dtype, want.shape)
        if not key and _fits(want, dtype):
            assert_same([got], [want.astype(dtype)], rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5))


def test_a_bit_cast_to_64_bits_needs_x64() -> None:
    """Without x64 the caller's arrays have 32 bits, so BitCast would return wrong bits."""
    case = corpus.cases("node")["test_bitcast_int64_to_float64"]
    fn, params = memojax.to_jax(case.model)
    (name,) = [value.name for value in case.model.graph.input]
    with jax.enable_x64(False), pytest.raises(memojax.errors.LoweringError, match="jax_enable_x64"):
        fn(params, {name: np.arange(3, dtype=np.int32)})


def _model(
    nodes: list[onnx.NodeProto], x: np.ndarray, weights: dict[str, np.ndarray], opset: int = 17
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("x", element, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _random(dtype: Any, *shape: int, scale: float = 0.3, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(dtype)


def mlp(dtype: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["a"], transB=1),
        helper.make_node("LayerNormalization", ["a", "scale", "b0"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w1"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"]),
    ]
    weights = {
        "w0": _random(dtype, 16, 8),
        "b0": _random(dtype, 16),
        "scale": _random(dtype, 16, seed=1),
        "w1": _random(dtype, 16, 4),
    }
    x = _random(dtype, 5, 8, scale=1.0)
    return _model(nodes, x, weights), x


def conv(dtype: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "scale", "b0", "b0", "var"], ["b"]),
        helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.1),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("Flatten", ["e"], ["y"]),
    ]
    weights = {
        "w0": _random(dtype, 4, 3, 3, 3),
        "b0": _random(dtype, 4),
        "scale": _random(dtype, 4, seed=1),
        "var": np.ones(4, dtype),
    }
    x = _random(dtype, 2, 3, 8, 8, scale=1.0)
    return _model(nodes, x, weights), x


def lstm(dtype: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["", "h"], hidden_size=8),
        helper.make_node("Squeeze", ["h", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "out"], ["y"]),
    ]
    weights = {
        "w": _random(dtype, 1, 32, 6),
        "r": _random(dtype, 1, 32, 8),
        "b": _random(dtype, 1, 64),
        "out": _random(dtype, 8, 3),
    }
    x = _random(dtype, 4, 7, 6, scale=1.0)
    return _model(nodes, x, {**weights, "axis": np.array([0])}), x


POLICIES = (mlp, conv, lstm)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("policy", POLICIES)
def test_float16_models_give_onnxruntimes_numbers(policy: Any) -> None:
    model, x = policy(np.float16)
    expected = onnxruntime_session(model).run(None, {"x": x})
    assert_same(oneshot.run(model, {"x": x}).values(), expected, rtol=1e-2, atol=2e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_models_are_close_to_float32(policy: Any) -> None:
    """onnxruntime has no bfloat16 on CPU, so the same weights, rounded to bfloat16, run there in float32."""
    model, x = policy(ml_dtypes.bfloat16)
    (got,) = oneshot.run(model, {"x": x}).values()
    assert got.dtype == ml_dtypes.bfloat16
    wide, _ = policy(np.float32)
    narrow = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = numpy_helper.to_array(narrow[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    (expected,) = onnxruntime_session(wide).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=3e-2, atol=2e-2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("platform", "asked", "found"),
    [("gpu", "highest", "HIGHEST"), ("gpu", "default", "DEFAULT"), ("cpu", "highest", None)],
)
def test_precision_of_matrix_products(policy: Any, platform: str, asked: str, found: str | None) -> None:
    """Full float32 is the default on accelerators, where the user may ask for less; a CPU always has it."""
    model, x = policy(np.float32)
    typed = TypedModel.from_model(model)
    device: Any = SimpleNamespace(platform=platform)
    for planner in [PlanCompiler(typed, device, "argument", asked)] + (
        [PlanCompiler(typed, device, "argument")] if asked == "highest" else []
    ):
        residual = planner.trace(x.shape[0])
        products = [
            step for step in residual.steps if step.primitive.name in ("dot_general", "conv_general_dilated")
        ]
        bodies = [step.params["jaxpr"] for step in residual.steps if step.primitive.name == "scan"]
        equations = [
            *products,
            *(eqn for body in bodies for eqn in body.eqns if eqn.primitive.name == "dot_general"),
        ]
        assert equations
        for equation in equations:
            wanted = getattr(jax.lax.Precision, found) if found else None
            assert equation.params["precision"] in ((wanted, wanted), wanted)


def test_precision_reaches_the_compiler() -> None:
    model, x = mlp(np.float32)
    typed = TypedModel.from_model(model)
    planner = PlanCompiler(typed, SimpleNamespace(platform="gpu"), "argument")  # pyright: ignore[reportArgumentType]
    residual = planner.trace(x.shape[0])
    leaves = [jnp.asarray(node_value) for node_value in planner._hoister.values(residual.nodes)]
    text = jax.jit(lambda *given: residual(given[:-1], given[-1:])).lower(*leaves, x).as_text()
    assert text.count("precision = [HIGHEST, HIGHEST]") == 2
