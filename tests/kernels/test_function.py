"""`to_jax(kernels=True)`: the kernels' answers under JAX's transformations are those of the pure function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from onnx import TensorProto, helper

import memojax
from memojax.kernels.library import TARGET

POLICIES = Path(memojax.__file__).parent / "policies"
OBS = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)), jnp.float32)


pytestmark = pytest.mark.usefixtures("with_kernels")


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any, Any]:
    """The pure function, the one with kernels, and the weights."""
    source = POLICIES / "acrobot_ppo.onnx"
    (pure, params), (ours, _) = memojax.to_jax(source), memojax.to_jax(source, kernels=True)
    return pure, ours, params


def close(ours: Any, theirs: Any) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def calls(function: Any, *given: Any) -> int:
    """Number of calls of the kernels in a function."""
    return jax.jit(function).lower(*given).as_text().count(f"@{TARGET}(")


@pytest.mark.parametrize("x64", [False, True])
def test_plain_and_under_jit(both, x64: bool) -> None:
    pure, ours, params = both
    with jax.enable_x64(x64):
        for run in (ours, jax.jit(ours)):
            close(run(params, {"obs": OBS}), pure(params, {"obs": OBS}))
        assert calls(ours, params, {"obs": OBS}) == 1
        assert calls(pure, params, {"obs": OBS}) == 0


def test_in_a_scan_with_weights_inside_and_as_arguments(both) -> None:
    pure, ours, params = both

    def rollout(fn: Any, params: Any) -> Any:
        def step(obs: Any, _: None) -> Any:
            logits = fn(params, {"obs": obs})["logits"]
            return jnp.tanh(obs + logits.sum(1, keepdims=True) * 0.1), logits

        return jax.lax.scan(step, OBS, length=4)

    close(jax.jit(lambda: rollout(ours, params))(), rollout(pure, params))
    close(jax.jit(lambda params: rollout(ours, params))(params), rollout(pure, params))


def test_vmap_over_agents_and_over_groups_uses_kernels(both) -> None:
    pure, ours, params = both
    alone = jax.vmap(lambda row: ours(params, {"obs": row[None]})["logits"][0])
    close(alone(OBS), pure(params, {"obs": OBS})["logits"])
    assert calls(alone, OBS) == 1
    groups = jnp.stack([OBS, OBS + 1, OBS - 1])
    expected = jnp.stack([pure(params, {"obs": group})["logits"] for group in groups])
    nested = jax.vmap(alone)
    close(nested(groups), expected)
    assert calls(nested, groups) == 1
    close(
        jax.vmap(lambda group: ours(params, {"obs": group})["logits"], 0, 1)(groups).swapaxes(0, 1), expected
    )


def test_vmap_over_weights_is_that_of_the_pure_function(both) -> None:
    pure, ours, params = both
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    close(
        jax.vmap(ours, (0, None))(many, {"obs": OBS}),
        jax.vmap(pure, (0, None))(many, {"obs": OBS}),
    )
    pairs = jnp.stack([OBS, OBS + 1])
    close(jax.vmap(ours)(many, {"obs": pairs}), jax.vmap(pure)(many, {"obs": pairs}))


def test_derivatives_of_any_order_are_those_of_the_pure_function(both) -> None:
    pure, ours, params = both

    def loss(fn: Any) -> Any:
        return lambda params, obs: jnp.sum(jnp.tanh(fn(params, {"obs": obs})["logits"]) ** 2)

    for derive in (lambda f: jax.grad(f, (0, 1)), lambda f: jax.jit(jax.value_and_grad(f))):
        close(derive(loss(ours))(params, OBS), derive(loss(pure))(params, OBS))

    def turned(fn: Any) -> Any:
        return jax.jit(lambda *given: jax.jvp(jax.grad(loss(fn), 1), given, given))(params, OBS)

    def by_row(fn: Any) -> Any:
        def one(row: Any) -> Any:
            return loss(fn)(params, row[None])

        of_the_sum = jax.grad(lambda obs: jax.vmap(one)(obs).sum())
        return jax.jit(lambda obs: (jax.vmap(jax.grad(one))(obs), of_the_sum(obs)))(OBS)

    close(turned(ours), turned(pure))
    close(by_row(ours), by_row(pure))


def test_a_recurrent_policy_in_a_scan() -> None:
    source = POLICIES / "recurrent_lstm.onnx"
    (pure, params), (ours, _) = memojax.to_jax(source), memojax.to_jax(source, kernels=True)
    steps = jnp.asarray(np.random.default_rng(1).standard_normal((7, 3, 2)), jnp.float32)

    def rollout(fn: Any) -> Any:
        def step(state: Any, obs: Any) -> Any:
            out = fn(params, {"obs": obs, "h_in": state[0], "c_in": state[1]})
            return (out["h_out"], out["c_out"]), out["logits"]

        return jax.jit(lambda: jax.lax.scan(step, (jnp.zeros((3, 32)), jnp.zeros((3, 32))), steps))

    assert rollout(ours).lower().as_text().count(f"@{TARGET}(") >= 1
    close(rollout(ours)(), rollout(pure)())


def test_rows_of_an_inferer_with_its_present_weights(both) -> None:
    pure, _, params = both
    policy = memojax.load("acrobot_ppo", weights="argument")
    policy.update_params({name: np.asarray(value) * 0.5 for name, value in policy.params.items()})
    ours, halved = memojax.to_jax(policy, kernels=True)
    assert calls(ours, halved, {"obs": OBS}) == 1
    close(
        ours(halved, {"obs": OBS}),
        pure({n: np.asarray(v) * np.float32(0.5) for n, v in params.items()}, {"obs": OBS}),
    )


def test_random_operators_draw_the_same_numbers() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["y", "noise"], ["action"]),
    ]
    graph = helper.make_graph(
        nodes,
        "noisy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [onnx.ValueInfoProto(name="action")],
        [onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (pure, params), (ours, _) = memojax.to_jax(model), memojax.to_jax(model, kernels=True)
    x, key = jnp.ones((3, 4)), jax.random.key(3)
    close(jax.jit(ours)(params, {"x": x}, key), pure(params, {"x": x}, key))
    keys = jax.random.split(key, 2)
    mapped = jax.vmap(ours, (None, None, 0))(params, {"x": x}, keys)["action"]
    close(mapped[1], pure(params, {"x": x}, keys[1])["action"])


def test_inputs_that_decide_a_shape_may_be_numbers_of_the_caller() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shaped",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [onnx.ValueInfoProto(name="z")],
        [onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours, params = memojax.to_jax(model, kernels=True)
    x = jnp.arange(12.0).reshape(3, 4)
    for shape in ((6, 2), (2, 6)):
        given = np.array(shape)
        made = jax.jit(lambda x, given=given: ours(params, {"x": x, "shape": given})["z"])(x)
        np.testing.assert_array_equal(made, x.reshape(shape))


def test_shard_map(both) -> None:
    pure, ours, params = both
    sharded = jax.shard_map(
        lambda p, x: ours(p, {"obs": x})["logits"],
        mesh=Mesh(np.array(jax.devices()[:1]), ("agents",)),
        in_specs=(P(), P("agents")),
        out_specs=P("agents"),
    )
    close(jax.jit(sharded)(params, OBS), pure(params, {"obs": OBS})["logits"])


def test_without_kernels_it_is_the_pure_function(both, monkeypatch: pytest.MonkeyPatch) -> None:
    pure, _, params = both
    monkeypatch.setattr("memojax.kernels.function.opened", lambda: None)
    ours, _ = memojax.to_jax(POLICIES / "acrobot_ppo.onnx", kernels=True)
    assert calls(ours, params, {"obs": OBS}) == 0
    close(ours(params, {"obs": OBS}), pure(params, {"obs": OBS}))


def test_an_error_in_the_search_for_kernels_leaves_the_pure_function(
    both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a mistake")

    pure, _, params = both
    monkeypatch.setattr("memojax.kernels.function.rewrite", fails)
    ours, _ = memojax.to_jax(POLICIES / "acrobot_ppo.onnx", kernels=True)
    close(ours(params, {"obs": OBS}), pure(params, {"obs": OBS}))
    assert "a mistake" in caplog.text
