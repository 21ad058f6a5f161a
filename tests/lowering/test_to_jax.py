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
from memojax import errors

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


def test_gradients_equal_finite_differences(policy) -> None:
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
    sharded = jax.shard_map(
        lambda p, x: fn(p, {"obs": x})["logits"],
        mesh=mesh,
        in_specs=(P(), P("agents")),
        out_specs=P("agents"),
    )
    np.testing.assert_allclose(jax.jit(sharded)(params, jnp.asarray(OBS)), expected, rtol=1e-3, atol=1e-5)


def argmax_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["x"], ["action"], axis=1, keepdims=0),
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        ],
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
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [1]),
        ],
        [onnx.ValueInfoProto(name="y")],
    )
    fn, params = memojax.to_jax(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    x = jnp.ones((2, 3))
    assert jax.jit(lambda x: fn(params, {"x": x, "shape": np.array([6])}))(x)["y"].shape == (6,)
    with pytest.raises(memojax.errors.StaticInputError, match="'shape' decides a shape"):
        jax.jit(lambda x, s: fn(params, {"x": x, "shape": s}))(x, jnp.array([6]))


def test_a_state_declared_for_one_row_holds_for_more() -> None:
    """Recurrent exports write `[layers, 1, hidden]`, batch second, beside `[1, features]`."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Squeeze", ["h", "first"], ["flat"]),
        helper.make_node("Add", ["x", "flat"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "state",
        [value("x", TensorProto.FLOAT, [1, 3]), value("h", TensorProto.FLOAT, [1, 1, 3])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(np.array([0]), "first")],
    )
    fn, params = memojax.to_jax(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    assert fn(params, {"x": jnp.ones((5, 3)), "h": jnp.ones((1, 5, 3))})["y"].shape == (5, 3)
    with pytest.raises(
        memojax.errors.InputShapeError, match=r"'h' has shape \[1, 5, 4\], the model takes \[1, 1, 3\]"
    ):
        fn(params, {"x": jnp.ones((5, 3)), "h": jnp.ones((1, 5, 4))})


def test_a_state_with_its_rows_in_the_wrong_place_raises() -> None:
    """Broadcasting would give all agents the state of one; ONNX Runtime refuses these shapes as well."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["h", "first"], ["flat"]),
            helper.make_node("Add", ["x", "flat"], ["y"]),
        ],
        "state",
        [value("x", TensorProto.FLOAT, ["batch", 3]), value("h", TensorProto.FLOAT, [1, "batch", 3])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.array(0), "first")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fn, params = memojax.to_jax(model)
    x, h = np.ones((5, 3), np.float32), np.arange(15, dtype=np.float32).reshape(1, 5, 3)
    np.testing.assert_array_equal(fn(params, {"x": x, "h": h})["y"], x + h[0])
    for run in (fn, jax.jit(fn)):
        with pytest.raises(
            errors.InputShapeError, match=r"'h' has shape \[5, 1, 3\].*'batch' is 5 by input 'x'.*rows"
        ):
            run(params, {"x": x, "h": h.reshape(5, 1, 3)})
    by_rows, params = memojax.to_jax(memojax.load(model))
    rows = by_rows(params, {"x": x, "h": h.reshape(5, 1, 3)})["y"]
    np.testing.assert_array_equal(rows, x + h[0])


def test_a_file_for_one_row_that_does_not_run_for_more_says_how_to_go_on() -> None:
    """PyTorch's exporter, without `dynamic_shapes`, writes the example's batch into every `Reshape`."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "flatten",
        [value("x", TensorProto.FLOAT, [1, 2, 3])],
        [value("y", TensorProto.FLOAT, [1, 6])],
        [onnx.numpy_helper.from_array(np.array([1, 6]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fn, params = memojax.to_jax(model)
    x = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    assert fn(params, {"x": x[:1]})["y"].shape == (1, 6)
    advice = r"cannot reshape.*'x' has shape \[5, 2, 3\].*exported for \[1, 2, 3\]: to_jax of a loaded policy"
    with pytest.raises(errors.LoweringError, match=advice):
        fn(params, {"x": x})
    fn, params = memojax.to_jax(memojax.load(model))
    np.testing.assert_array_equal(fn(params, {"x": x})["y"], x.reshape(5, 6))


def test_a_file_for_one_row_that_makes_one_row_of_more_raises() -> None:
    """PyTorch's exporter writes the example's batch into the sizes of `Resize`; constant outputs may stay."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Resize", ["x", "", "", "sizes"], ["small"], mode="linear"),
            helper.make_node("Neg", ["small"], ["y"]),
            helper.make_node("Neg", ["one"], ["version"]),
        ],
        "resize",
        [value("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [value("y", TensorProto.FLOAT, [1, 1, 2, 2]), value("version", TensorProto.FLOAT, [1])],
        [
            onnx.numpy_helper.from_array(np.array([1, 1, 2, 2]), "sizes"),
            onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fn, params = memojax.to_jax(model)
    x = np.random.default_rng(2).standard_normal((5, 1, 4, 4)).astype(np.float32)
    assert fn(params, {"x": x[:1]})["y"].shape == (1, 1, 2, 2)
    for run in (fn, jax.jit(fn)):
        with pytest.raises(
            errors.LoweringError, match=r"'y' has the shape .* one row; input 'x' .*loaded policy"
        ):
            run(params, {"x": x})
    by_rows, weights = memojax.to_jax(memojax.load(model))
    rows = by_rows(weights, {"x": x})["y"]
    for row, given in zip(rows, x, strict=True):
        np.testing.assert_allclose(row, fn(params, {"x": given[None]})["y"][0], rtol=1e-5)


def test_a_file_for_one_step_runs_for_more_though_its_last_state_keeps_its_shape() -> None:
    value = helper.make_tensor_value_info
    weights = np.random.default_rng(4).standard_normal((1, 4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("RNN", ["x", "w", "r"], ["y", "h"], hidden_size=4)],
        "steps",
        [value("x", TensorProto.FLOAT, [1, 1, 3])],
        [value("y", TensorProto.FLOAT, [1, 1, 1, 4]), value("h", TensorProto.FLOAT, [1, 1, 4])],
        [
            onnx.numpy_helper.from_array(weights, "w"),
            onnx.numpy_helper.from_array(np.ones((1, 4, 4), np.float32), "r"),
        ],
    )
    fn, params = memojax.to_jax(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    out = fn(params, {"x": np.ones((5, 1, 3), np.float32)})
    assert out["y"].shape == (5, 1, 1, 4)
    np.testing.assert_array_equal(out["h"], out["y"][-1])


@pytest.mark.parametrize("x64", [False, True])
def test_an_inferer_gives_the_function_of_its_rows(x64: bool) -> None:
    """The file may be fixed to one row, and the inferer's bound inputs stay bound."""
    typed = memojax.TypedModel.from_model(fixed_to_one_row())
    fn, params = memojax.to_jax(memojax.BasicInferer(typed))
    rows = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
    expected = memojax.load(typed).infer_arrays({"x": rows})
    with jax.enable_x64(x64):
        out = jax.jit(fn)(params, {"x": rows})
        assert out.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(out[name], value, rtol=1e-5)
        slope = jax.grad(lambda p: fn(p, {"x": rows})["y"].sum())(params)
        np.testing.assert_allclose(slope["w"], rows.sum(0), rtol=1e-4, atol=1e-5)
        deep = jax.vmap(lambda x: fn(params, {"x": x})["y"])(jnp.asarray(rows).reshape(2, 2, 3))
        np.testing.assert_allclose(deep.reshape(4, 3), expected["y"], rtol=1e-5)


def fixed_to_one_row() -> onnx.ModelProto:
    """y = w * x with the shape baked in, and an output that depends on no input."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
        helper.make_node("Identity", ["version"], ["v"]),
    ]
    constants = {
        "w": np.array([1, 2, 3], np.float32),
        "shape": np.array([1, 3]),
        "version": np.array([7, 8], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [2]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_inferer_gives_its_present_weights() -> None:
    policy = memojax.load(POLICIES / "acrobot_ppo.onnx")
    fn, params = memojax.to_jax(policy)
    policy.update_params({name: value * 0.5 for name, value in params.items()})
    fn, newer = memojax.to_jax(policy)
    np.testing.assert_allclose(
        fn(newer, {"obs": OBS})["logits"], policy.infer_arrays({"obs": OBS})["logits"], rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(fn(newer, {"obs": OBS})["logits"], fn(params, {"obs": OBS})["logits"])


def test_an_exported_program_is_a_function_too(policy, expected) -> None:
    fn, params = memojax.to_jax(
        memojax.load(memojax.to_stablehlo(POLICIES / "acrobot_ppo.onnx", platforms=["cpu"]))
    )
    scan = jax.jit(
        lambda p, x: jax.lax.scan(lambda carry, _: (carry, fn(p, {"obs": carry})["logits"]), x, length=2)[1]
    )
    np.testing.assert_allclose(scan(params, jnp.asarray(OBS))[1], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_an_input_that_does_not_fit_is_named(policy, jit: bool, loaded: bool) -> None:
    """Without the checks, such shapes would broadcast, and such inputs would be ignored."""
    fn, params = memojax.to_jax(memojax.load(POLICIES / "acrobot_ppo.onnx")) if loaded else policy
    call = jax.jit(fn) if jit else fn
    for inputs, error, message in (
        ({}, errors.MissingInputError, "missing input 'obs'"),
        ({"obs": OBS, "mask": OBS}, errors.UnknownInputError, "unknown input 'mask'"),
        ({"obs": OBS[:, :1]}, errors.InputShapeError, r"\[5, 1\], the model takes \['(batch|n)', 6\]"),
        ({"obs": OBS[0]}, errors.InputShapeError, r"\[6\], the model takes"),
        ({"obs": OBS.astype(np.complex64)}, errors.InputDtypeError, "complex64, the model takes float32"),
    ):
        with pytest.raises(error, match=message):
            call(params, inputs)
    np.testing.assert_array_equal(
        fn(params, {"obs": OBS.tolist()})["logits"], fn(params, {"obs": OBS})["logits"]
    )


def test_weights_that_do_not_fit_are_named(policy) -> None:
    fn, params = policy
    name = next(iter(params))
    with pytest.raises(errors.IncompatibleModelError, match=f"weight '{name}' is missing"):
        fn({key: value for key, value in params.items() if key != name}, {"obs": OBS})
    with pytest.raises(
        errors.IncompatibleModelError, match=rf"weight '{name}' has shape \[1\], the model has \[6\]"
    ):
        fn({**params, name: np.zeros(1, np.float32)}, {"obs": OBS})


def test_options_and_wrappers_without_effect_are_refused() -> None:
    policy = memojax.load(POLICIES / "pendulum_ppo.onnx")
    with pytest.raises(errors.InputError, match="loaded already"):
        memojax.to_jax(policy, constants={"epsilon": 0})
    with pytest.raises(errors.IncompatibleModelError, match="pass the inferer inside"):
        memojax.to_jax(policy.with_default_epsilon("epsilon"))
    with pytest.raises(errors.UnknownInputError, match="unknown input 'eps'"):
        memojax.to_jax(POLICIES / "pendulum_ppo.onnx", constants={"eps": 0})
