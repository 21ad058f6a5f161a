"""`to_jax` gives a pure function: under every transformation, in both x64 settings, without a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from onnx import TensorProto, helper

import memojax

POLICIES = Path(memojax.__file__).parent / "policies"
OBS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def policy() -> tuple:
    return memojax.to_jax(POLICIES / "acrobot_ppo.onnx")


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return onnxruntime.InferenceSession(str(POLICIES / "acrobot_ppo.onnx")).run(None, {"obs": OBS})[0]


@pytest.mark.parametrize("x64", [False, True])
def test_eager_jit_and_vmap_give_the_files_numbers(policy, expected, x64: bool) -> None:
    fn, params = policy
    with jax.enable_x64(x64):
        for run in (fn, jax.jit(fn)):
            logits = run(params, {"obs": OBS})["logits"]
            assert logits.dtype == jnp.float32
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
        rows = jax.vmap(lambda row: fn(params, {"obs": row[None]})["logits"][0])(jnp.asarray(OBS))
        np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_finite_differences(policy) -> None:
    fn, params = policy
    obs = jnp.asarray(OBS)

    def loss(params, obs):
        return jnp.sum(jnp.tanh(fn(params, {"obs": obs})["logits"]))

    to_params, to_obs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, obs)
    assert to_params.keys() == params.keys()
    step = np.zeros_like(OBS)
    step[2, 3] = 1e-2
    slope = (loss(params, obs + step) - loss(params, obs - step)) / 2e-2
    np.testing.assert_allclose(to_obs[2, 3], slope, rtol=2e-2, atol=1e-3)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(to_params))
    assert any(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(to_params))


def test_recurrent_policy_in_a_scan_equals_steps() -> None:
    fn, params = memojax.to_jax(POLICIES / "recurrent_lstm.onnx")
    steps = jnp.asarray(np.random.default_rng(1).standard_normal((7, 3, 2)), jnp.float32)
    state = (jnp.zeros((3, 32)), jnp.zeros((3, 32)))

    def step(state, obs):
        out = fn(params, {"obs": obs, "h_in": state[0], "c_in": state[1]})
        return (out["h_out"], out["c_out"]), out["logits"]

    _, scanned = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(state, steps)
    for index, obs in enumerate(steps):
        state, logits = step(state, obs)
        np.testing.assert_allclose(scanned[index], logits, rtol=1e-4, atol=1e-5)


def test_shard_map(policy, expected) -> None:
    fn, params = policy
    mesh = Mesh(np.array(jax.devices()[:1]), ("agents",))
    sharded = jax.shard_map(lambda p, x: fn(p, {"obs": x})["logits"], mesh=mesh, in_specs=(P(), P("agents")), out_specs=P("agents"))
    np.testing.assert_allclose(jax.jit(sharded)(params, jnp.asarray(OBS)), expected, rtol=1e-3, atol=1e-5)


def argmax_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["action"], axis=1, keepdims=0), helper.make_node("RandomNormalLike", ["x"], ["noise"])],
        "argmax",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [onnx.ValueInfoProto(name="action"), onnx.ValueInfoProto(name="noise")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("x64", [False, True])
def test_integers_follow_the_callers_setting_and_noise_needs_a_key(x64: bool) -> None:
    fn, params = memojax.to_jax(argmax_model())
    with jax.enable_x64(x64):
        out = jax.jit(fn)(params, {"x": jnp.eye(3, dtype=jnp.float32)}, jax.random.key(0))
        assert out["action"].dtype == (jnp.int64 if x64 else jnp.int32)
        assert out["noise"].dtype == jnp.float32
    np.testing.assert_array_equal(out["action"], [0, 1, 2])
    with pytest.raises(memojax.errors.LoweringError, match="PRNG key"):
        fn(params, {"x": jnp.eye(3)})


def test_a_shape_deciding_input_is_closed_over() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]), helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [onnx.ValueInfoProto(name="y")],
    )
    fn, params = memojax.to_jax(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = jnp.ones((2, 3))
    assert jax.jit(lambda x: fn(params, {"x": x, "shape": np.array([6])}))(x)["y"].shape == (6,)
    with pytest.raises(memojax.errors.StaticInputError, match="'shape' decides a shape"):
        jax.jit(lambda x, s: fn(params, {"x": x, "shape": s}))(x, jnp.array([6]))
