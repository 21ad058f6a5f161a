"""Rows over several devices: 4 and 8 devices of the CPU backend, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from onnx import helper, numpy_helper

import memojax as mj
from memojax.errors import DeviceError, DimensionError, RowsMixError

from ..helpers import mostly_slow, scaling

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
    import pickle, sys
    import jax, jax.numpy as jnp, numpy as np
    import memojax as mj
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    devices = jax.devices()
    count = len(devices)
    obs = np.random.default_rng(0).standard_normal((2 * count, 6)).astype(np.float32)
    one = mj.load("acrobot_ppo", device=devices[0])
"""


@pytest.fixture(params=mostly_slow([4], [8]), ids="{}devices".format)
def on_devices(request: pytest.FixtureRequest):
    def run(script: str) -> None:
        flags = f"--xla_force_host_platform_device_count={request.param}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "MEMOJAX_KERNELS": "0"}
        code = textwrap.dedent(SETUP) + textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env
        )
        assert done.returncode == 0, done.stderr

    return run


def test_rows_over_devices(on_devices) -> None:
    on_devices("""
        policy = mj.ShardedInferer.from_model("acrobot_ppo", [count], devices="all")

        # NumPy in, NumPy out, padded to multiples; equal to one device that runs as many rows as each.
        for n in (1, count - 1, count, count + 1, 2 * count):
            answer = policy.infer_arrays({"obs": obs[:n]})["logits"]
            each = policy.padded(n) // count
            rows = np.zeros((policy.padded(n), 6), np.float32)
            rows[:n] = obs[:n]
            wanted = np.concatenate(
                [one.infer_arrays({"obs": part})["logits"] for part in np.split(rows, count)]
            )
            assert type(answer) is np.ndarray and answer.shape == (n, 3), answer
            np.testing.assert_allclose(answer, wanted[:n], rtol=1e-5, atol=1e-6)
            # XLA computes a single row by other code, in another order; JAX 0.8's XLA does so for few rows.
            to_the_bit = each > 1 and not jax.__version__.startswith("0.8.")
            assert not to_the_bit or np.array_equal(answer, wanted[:n]), (n, each)
        assert [plan.size for plan in policy.plans()] == [count, 2 * count]
        info = policy.cache_info()
        assert (info.misses, info.padded_rows) == (1, (count - 1) + 1 + (count - 1)), info
        assert policy.batch_sizes() == {n: 1 for n in (1, count - 1, count, count + 1, 2 * count)}

        # Sharded in, sharded out: nothing is moved, every device works, nothing is compiled.
        mesh = Mesh(np.array(devices).reshape(2, -1), ("x", "y"))
        for spread in (policy.sharding, NamedSharding(mesh, P(("x", "y")))):
            there = mj.ShardedInferer.from_model("acrobot_ppo", [2 * count], sharding=spread, strict=True)
            rows = jax.device_put(obs, spread)
            with jax.transfer_guard("disallow"), mj.forbid_compile():
                answer = there.infer_arrays({"obs": rows})["logits"]
                jax.block_until_ready(answer)
            assert answer.sharding.is_equivalent_to(spread, 2)
            assert answer.devices() == set(devices)
            assert np.array_equal(np.asarray(answer), policy.infer_arrays({"obs": obs})["logits"])
            text = there._cache.peek(2 * count).executable.compiled.as_text()
            assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective"))
            try:
                there.infer_arrays({"obs": jnp.asarray(obs)})
            except mj.errors.DeviceError as error:
                assert "jax.device_put" in str(error)
            else:
                raise AssertionError("strict moves nothing")

        # An array that lies elsewhere comes back to its own device.
        home = devices[1]
        answer = policy.infer_arrays({"obs": jax.device_put(obs[:3], home)})["logits"]
        assert answer.devices() == {home} and answer.shape == (3, 3)
    """)


def test_weights_pickles_wrappers_and_runtime(on_devices) -> None:
    on_devices("""
        policy = mj.ShardedInferer.from_model("acrobot_ppo", [count], devices=devices[: count // 2 * 2])
        before = policy.infer_arrays({"obs": obs[:count]})["logits"]

        copy = pickle.loads(pickle.dumps(policy))
        assert copy.plans() == [] and copy.sharding.is_equivalent_to(policy.sharding, 2)
        assert np.array_equal(copy.infer_arrays({"obs": obs[:count]})["logits"], before)
        assert [plan.size for plan in copy.plans()] == [count]

        with mj.forbid_compile():
            policy.update_params({name: 0 * weight for name, weight in policy.typed.params.items()})
            assert not policy.infer_arrays({"obs": obs[:count]})["logits"].any()
        fn, params = mj.to_jax(policy)
        assert not fn(params, {"obs": obs[:count]})["logits"].any()
        weights = jax.tree.leaves(policy._compiler._now[1])
        assert all(weight.devices() == set(devices) for weight in weights)

        # Hidden state of agents, and a runtime.
        lstm = mj.ShardedInferer.from_model("recurrent_lstm")
        tracker, plain = mj.RecurrentTracker.wrap(lstm), mj.RecurrentTracker.wrap(mj.load("recurrent_lstm"))
        for step in range(3):
            rows = {"obs": np.full((3, 2), step + 1, np.float32)}
            for found, wanted in zip(tracker.infer_arrays(rows).values(), plain.infer_arrays(rows).values()):
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        runtime = mj.Runtime()
        brain = runtime.add_inferer(copy)
        for agent in range(3):
            runtime.push(brain, agent, {"obs": obs[agent]})
        answers = runtime.run()[brain]
        for agent in range(3):
            np.testing.assert_allclose(answers[agent]["logits"], before[agent], rtol=1e-5)
    """)


def test_a_swap_amid_a_call_mixes_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Identity", ["w"], ["c"])]
    values = [helper.make_tensor_value_info(name, 1, ["batch", 3]) for name in "xy"]
    constant = helper.make_tensor_value_info("c", 1, [3])
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = helper.make_graph(nodes, "graph", values[:1], [values[1], constant], [weight])
    policy = mj.ShardedInferer.from_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    )
    rows = {"x": np.ones((2, 3), np.float32)}
    policy.infer_arrays(rows)
    get, calls = policy._cache.get, []

    def swapped_behind(size: int) -> Any:
        plan = get(size)

        def run(given: Any) -> Any:
            results = plan(given)
            calls.append(size)
            if len(calls) == 1:
                policy.update_params({"w": np.full(3, 2, np.float32)})
            return results

        return run

    monkeypatch.setattr(policy._cache, "get", swapped_behind)
    found = policy.infer_arrays(rows)
    assert len(calls) == 2
    assert (found["y"] == 2).all()
    assert (found["c"] == 2).all()


def test_models_whose_rows_belong_together_are_refused() -> None:
    mixing = mj.TypedModel.from_function(
        lambda _, x: {"y": x["obs"] - x["obs"].mean(0)}, (), {"obs": ((3,), "float32")}
    )
    with pytest.raises(RowsMixError, match="'y'.*MemoizingDynamicInferer"):
        mj.ShardedInferer(mixing)
    drawing = mj.TypedModel.from_function(
        lambda _, x, key: {"y": x["obs"] + jax.random.normal(key, x["obs"].shape)},
        (),
        {"obs": ((3,), "float32")},
        random=True,
    )
    with pytest.raises(RowsMixError, match="draws"):
        mj.ShardedInferer(drawing)
    assert issubclass(DimensionError, mj.errors.MemojaxError)


def test_devices_and_shardings_of_another_kind_are_refused() -> None:
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh([jax.devices()[0]], ("batch",))
    for given in (
        {"devices": "gpu"},
        {"devices": []},
        {"devices": ["gpu:7"]},
        {"devices": [jax.devices()[0]] * 2},
        {"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0])},
        {"sharding": NamedSharding(mesh, PartitionSpec())},
        {"sharding": NamedSharding(mesh, PartitionSpec(None, "batch"))},
    ):
        with pytest.raises(DeviceError, match="device|sharding"):
            mj.ShardedInferer(scaling(), **given)


@pytest.mark.slow
def test_options_hold_over_devices(on_devices, tmp_path: Path) -> None:
    on_devices(f"""
        folder = {str(tmp_path / "plans")!r}
        from memojax.errors import CompileForbiddenError, OptionError, DeviceError
        obs = np.random.default_rng(0).standard_normal((16 * count, 6)).astype(np.float32)
        wanted = one.infer_arrays({{"obs": obs}})["logits"]
        def right(found, n):
            np.testing.assert_allclose(found, wanted[:n], rtol=1e-5, atol=1e-6)

        # Bucketing pads to multiples of the number of devices, and max_batch_size splits.
        sizes = [1, 4 * count, 8 * count]
        policy = mj.load(
            "acrobot_ppo", devices="all", bucketing="pow2", max_batch_size=8 * count, preload=sizes)
        assert isinstance(policy, mj.ShardedInferer)
        with mj.forbid_compile():
            for n in (1, count, 4 * count, 4 * count + 1, 8 * count, 12 * count, 16 * count - 3):
                right(policy.infer_arrays({{"obs": obs[:n]}})["logits"], n)
        assert [plan.size for plan in policy.plans()] == [count, 4 * count, 8 * count]
        assert policy.is_ready(3 * count) and not policy.is_ready(2 * count)
        policy.prepare(2 * count).result(60)
        assert policy.is_ready(2 * count)
        policy.preload([2 * count], background=True).wait(60)

        # Sharded rows are padded, split, cast and cut by each device.
        for n in (count, 3 * count, 5 * count, 9 * count, 16 * count):
            for dtype in (np.float32, np.float16):
                given = jax.device_put(obs[:n].astype(dtype), policy.sharding)
                with jax.transfer_guard_device_to_device("disallow"):
                    answer = policy.infer_arrays({{"obs": given}})["logits"]
                assert answer.sharding.is_equivalent_to(policy.sharding, 2) and answer.shape == (n, 3)
                assert len(answer.addressable_shards) == count
                near = 1e-6 if dtype == np.float32 else 0.05
                np.testing.assert_allclose(np.asarray(answer), wanted[:n], rtol=1e-5, atol=near)
        executables = lambda: len(devices[0].client.live_executables())
        for sweep in range(2):
            before = executables()
            for n in range(count, 16 * count, count):
                policy.infer_arrays({{"obs": jax.device_put(obs[:n], policy.sharding)}})
        assert executables() == before, "nothing is compiled for a number of rows"
        nobody = jax.device_put(obs[:0], policy.sharding)
        assert policy.infer_arrays({{"obs": nobody}})["logits"].shape == (0, 3)

        # on_miss.
        refusing = mj.load("acrobot_ppo", devices=devices, on_miss="error", preload=[count])
        right(refusing.infer_arrays({{"obs": obs[:2]}})["logits"], 2)
        for given in (obs[: 2 * count], jax.device_put(obs[: 2 * count], refusing.sharding)):
            try:
                refusing.infer_arrays({{"obs": given}})
            except CompileForbiddenError:
                pass
            else:
                raise AssertionError("compiled")
        padding = mj.load("acrobot_ppo", devices=devices, on_miss="pad", preload=[4 * count])
        with mj.forbid_compile():
            right(padding.infer_arrays({{"obs": obs[: 2 * count]}})["logits"], 2 * count)
        assert padding.cache_info().padded_rows == 2 * count

        # Plans on disk, and in an artifact that goes along with the policy.
        first = mj.load("acrobot_ppo", devices="all", cache_dir=folder, preload=[count])
        again = mj.load("acrobot_ppo", devices="all", cache_dir=folder, preload=[count])
        fewer = mj.load("acrobot_ppo", devices=devices[:2], cache_dir=folder, preload=[count])
        assert [policy.cache_info().disk_hits for policy in (first, again, fewer)] == [0, 1, 0]
        rows = {{"obs": obs[:count]}}
        assert np.array_equal(first.infer_arrays(rows)["logits"], again.infer_arrays(rows)["logits"])
        again.update_params({{name: 0 * weight for name, weight in again.params.items()}})
        assert not again.infer_arrays({{"obs": obs[:count]}})["logits"].any()
        packed = mj.load("acrobot_ppo", devices="all", cache_dir=mj.PlanArtifact(), preload=[count])
        copy = pickle.loads(pickle.dumps(packed))
        right(copy.infer_arrays({{"obs": obs[:count]}})["logits"], count)
        assert copy.cache_info().disk_hits == 1

        # Weights, in the background too; the card; what does not go together.
        zeros = {{name: 0 * weight for name, weight in policy.params.items()}}
        policy.update_params(zeros, background=True).result(60)
        assert not policy.infer_arrays({{"obs": obs[:count]}})["logits"].any()
        assert f"{{count}} devices (cpu:0" in repr(policy) and "acrobot_ppo" in repr(policy), repr(policy)
        for wrong in ({{"device": "cpu"}}, {{"weights": "constant"}}, {{"checked": True}}, {{"seed": 1}}):
            try:
                mj.load("acrobot_ppo", devices="all", **wrong)
            except OptionError as error:
                assert "one device" in str(error)
            else:
                raise AssertionError(wrong)
    """)


@pytest.mark.slow
def test_evaluate_and_wrappers_run_over_devices(on_devices) -> None:
    on_devices("""
        spread = mj.evaluate("acrobot_ppo", "Acrobot-v1", episodes=4, num_envs=4, max_steps=40, devices="all")
        alone = mj.evaluate("acrobot_ppo", "Acrobot-v1", episodes=4, num_envs=4, max_steps=40)
        assert list(spread.returns) == list(alone.returns) and spread.plans
        loaded = mj.load("acrobot_ppo", sharding=NamedSharding(Mesh(devices, ("rows",)), P("rows")))
        again = mj.evaluate(loaded, "Acrobot-v1", episodes=4, num_envs=4, max_steps=40)
        assert list(again.returns) == list(alone.returns)
        noisy = mj.load("pendulum_ppo", devices="all").with_epsilon(mj.ConstantGenerator.zeros(), "epsilon")
        plain = mj.load("pendulum_ppo").with_epsilon(mj.ConstantGenerator.zeros(), "epsilon")
        rows = {"obs": obs[:5, :3]}
        found, wanted = (policy.infer_arrays(rows)["action"] for policy in (noisy, plain))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        batched = mj.load("acrobot_ppo", devices="all").into_batched()
        for agent in range(5):
            batched.push(agent, {"obs": obs[agent]})
        answers = batched.execute()
        wanted = one.infer_arrays({"obs": obs[:5]})["logits"]
        for agent in range(5):
            np.testing.assert_allclose(answers[agent]["logits"], wanted[agent], rtol=1e-5, atol=1e-6)

        # Sharded rows through a wrapper that keeps state.
        model = mj.TypedModel.from_function(
            lambda _, x: {"sum": x["a"] + x["h_in"], "h_out": x["h_in"] + x["a"]}, (),
            {"a": ((3,), np.float32), "h_in": ((3,), np.float32)})
        several = mj.ShardedInferer(model, strict=True)
        a, h = obs[: 2 * count, :3], np.ones((2 * count, 3), np.float32)
        for given in ({"a": jax.device_put(a, several.sharding), "h_in": h},
                      {"a": jax.device_put(a, several.sharding), "h_in": h.tolist()}):
            found = several.infer_arrays(given)["sum"]
            assert found.sharding.is_equivalent_to(several.sharding, 2), "NumPy rows go to sharded ones"
            assert np.array_equal(np.asarray(found), a + h)
        for wrong in (h[:-1], h[:, :2]):
            try:
                several.infer_arrays({"a": jax.device_put(a, several.sharding), "h_in": wrong})
            except mj.errors.InputShapeError:
                pass
            else:
                raise AssertionError(wrong.shape)
        tracker = mj.RecurrentTracker.wrap(mj.ShardedInferer(model))
        for step in range(3):
            found = tracker.infer_arrays({"a": np.full((count + 1, 3), 1, np.float32)})["sum"]
            assert (found == step + 1).all()
    """)


@pytest.mark.parametrize(
    "kernels", mostly_slow(["1"], ["0"]), ids={"0": "without kernels", "1": "with kernels"}.get
)
def test_one_device_and_several_agree_with_kernels_or_without(kernels: str) -> None:
    """A sharded plan is XLA's own code; beside it, policies on one device run on the kernels."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "MEMOJAX_KERNELS": kernels,
    }
    script = textwrap.dedent(SETUP) + textwrap.dedent("""
        for name in ("acrobot_ppo", "pendulum_ppo", "recurrent_lstm"):
            here, there = mj.load(name), mj.load(name, devices="all")
            rng = np.random.default_rng(0)
            rows = {
                spec.name: rng.standard_normal((13, *spec.shape)).astype(spec.dtype)
                for spec in here.api.inputs
            }
            found, wanted = there.infer_arrays(rows), here.infer_arrays(rows)
            assert list(found) == list(wanted)
            for output in wanted:
                np.testing.assert_allclose(found[output], wanted[output], rtol=2e-5, atol=2e-6)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sizes_are_recommended_and_drawn_over_devices(on_devices) -> None:
    pytest.importorskip("matplotlib")
    on_devices("""
        policy = mj.load("acrobot_ppo", devices="all")
        try:
            policy.recommend_sizes(2)
        except mj.errors.BatchSizeError:
            pass
        else:
            raise AssertionError("nothing has run")
        for n in (1, 2, count + 1, 2 * count, 2 * count):
            for _ in range(3):
                policy.infer_arrays({"obs": obs[:n]})
        assert policy.recommend_sizes(max_plans=1).sizes == [2 * count]
        assert set(policy.recommend_sizes(max_plans=3).sizes) <= {count, 2 * count}
        line = policy.plot().axes[0].get_lines()[0]
        assert list(line.get_xdata()) == [count, 2 * count], line.get_xdata()
    """)


@pytest.mark.slow
def test_the_commands_spread_rows_over_devices(on_devices) -> None:
    on_devices("""
        import contextlib, io, json, tempfile
        from memojax.cli.main import main

        def returns(*options):
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                command = ["evaluate", "acrobot_ppo", "--env", "Acrobot-v1", "--episodes", "6", "--num-envs",
                           "6", "--max-steps", "20", "--json", file.name, *options]
                try:
                    main(command)
                except SystemExit as end:
                    assert not end.code
                return json.load(file)["evaluations"][0]

        alone, spread = returns(), returns("--devices", "all")
        two = returns("--devices", "cpu:0,cpu:1")
        for found in (spread, two):
            assert found["returns"] == alone["returns"] and found["lengths"] == alone["lengths"]
        # Batches are padded to multiples of the number of devices.
        assert all(plan["size"] % count == 0 for plan in spread["plans"]), spread["plans"]
        assert all(plan["size"] % 2 == 0 for plan in two["plans"]), two["plans"]
    """)
