"""Functions of single numbers are right in plans of wide vectors: XLA's arctangent was wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import memojax
from memojax.xla.cpu_client import cpu_device
from memojax.xla.options import VECTOR_WIDTH, compiled, has_sound_arctan

# Within (-1, 1), where all of them are defined.
HERE = ("Acos", "Asin", "Atanh", "Erf", "Log", "Sqrt", "Reciprocal")
ANYWHERE = (
    *("Atan", "Asinh", "Cos", "Sin", "Tan", "Sinh", "Cosh", "Tanh", "Exp", "Sigmoid", "Softplus", "Softsign"),
    *("Elu", "Selu", "Celu", "Mish", "HardSwish", "HardSigmoid", "Relu", "LeakyRelu", "ThresholdedRelu"),
    *("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Gelu"),
)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("op", [*HERE, *ANYWHERE])
def test_functions_of_single_numbers(op: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr("memojax.plans.compiler.opened", lambda: None)
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "function",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 37])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 37])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    low, high = (0.01, 0.99) if op in ("Log", "Sqrt", "Reciprocal") else (-0.99, 0.99)
    low, high = (-5, 5) if op in ANYWHERE else (low, high)
    x = np.linspace(low, high, 9 * 37, dtype=np.float32).reshape(9, 37)
    want = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    given = memojax.load(model, device="cpu").infer_arrays({"x": x})["y"]
    np.testing.assert_allclose(given, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("function", [jnp.arctan, lambda x: 1 + jnp.arctan2(x, jnp.ones_like(x))])
def test_an_arctangent_is_right_under_each_vector_width(function, dtype: type) -> None:
    x = np.linspace(-5, 5, 1000).astype(dtype)
    with jax.enable_x64(True):
        place = jax.sharding.SingleDeviceSharding(cpu_device())
        lowered = jax.jit(function, in_shardings=place).lower(jax.ShapeDtypeStruct(x.shape, x.dtype))
        want = lowered.compile({VECTOR_WIDTH: "256"})(x)
        for options in ({}, {VECTOR_WIDTH: "512"}):
            given = compiled(lowered, cpu_device(), options)(x)
            np.testing.assert_allclose(given, want, rtol=1e-3, atol=1e-5)


def test_wide_vectors_are_kept_where_there_is_no_arctangent() -> None:
    """The trial tells nothing but whether XLA is wrong; other functions keep their vectors."""
    assert has_sound_arctan() in (True, False)
    given = []

    class Lowered:
        def __init__(self, function):
            self._lowered = jax.jit(function).lower(np.ones(8, np.float32))

        def compiler_ir(self, dialect: str):
            return self._lowered.compiler_ir(dialect)

        def compile(self, options):
            given.append(options)

    for function in (jnp.tanh, jnp.arctan):
        compiled(Lowered(function), cpu_device(), {VECTOR_WIDTH: "512"})
    assert given[0][VECTOR_WIDTH] == "512"
    assert (VECTOR_WIDTH in given[1]) == has_sound_arctan()
