"""The devices of calls, with several CPU devices, in a process of its own: found, moved to, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax as mj
from memojax.errors import DeviceError, InputError
from memojax.rows.device_choice import DeviceChoice, is_committed

from ..helpers import scaling

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
    import logging, pickle, sys
    import jax, jax.numpy as jnp, numpy as np
    import memojax as mj
    from memojax.errors import DeviceError
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    first, second = jax.devices()
    typed = mj.TypedModel.from_function(
        lambda _, x: {"sum": x["a"] + x["b"], "h_out": x["h_in"] + x["a"]}, (),
        {"a": ((2,), np.float32), "b": ((2,), np.float32), "h_in": ((2,), np.float32)})
    on = lambda device, value: jax.device_put(jnp.full((4, 2), value, jnp.float32), device)
    def batch(*devices):
        rows = [on(device, value) if device else np.full((4, 2), value, np.float32)
                for device, value in zip(devices, (1, 2, 3))]
        return dict(zip(("a", "b", "h_in"), rows))
"""


def two_devices(script: str) -> str:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    code = textwrap.dedent(SETUP) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inputs_on_several_devices_are_moved_with_one_warning() -> None:
    out = two_devices("""
        policy = mj.MemoizingDynamicInferer(typed)
        for _ in range(3):
            answers = policy.infer_arrays(batch(second, first, second))
            assert answers["sum"].devices() == {second}
            assert np.asarray(answers["sum"]).tolist() == [[3, 3]] * 4
        mj.MemoizingDynamicInferer(typed).infer_arrays(batch(first, second, second))
    """)
    lines = [line for line in out.splitlines() if line.startswith("WARNING inputs are on several devices")]
    assert len(lines) == 2, "one per inferer"
    assert "'b' on cpu:0; every call moves them to cpu:1" in lines[0]
    assert "'b' on cpu:1, 'h_in' on cpu:1; every call moves them to cpu:0" in lines[1]


def test_arrays_on_one_device_run_there_with_numpy_arrays() -> None:
    out = two_devices("""
        policy = mj.MemoizingDynamicInferer(typed, strict=True)
        for device in (first, second):
            for given in (batch(device, device, device), batch(None, device, None)):
                answers = policy.infer_arrays(given)
                assert answers["sum"].devices() == {device}
                assert np.asarray(answers["sum"]).tolist() == [[3, 3]] * 4
        free = jnp.full((4, 2), 1, jnp.float32)
        assert not free.committed
        assert policy.infer_arrays({**batch(second, second, second), "a": free})["sum"].devices() == {second}
        assert isinstance(policy.infer_arrays(batch(None, None, None))["sum"], np.ndarray)
    """)
    assert "WARNING" not in out


def test_strict_refuses_and_stays_strict_in_a_pickle() -> None:
    out = two_devices("""
        policy = mj.load("memojax/policies/acrobot_ppo.onnx", strict=True)
        assert pickle.loads(pickle.dumps(policy)).placement.strict
        policy = mj.MemoizingDynamicInferer(typed, strict=True)
        tracker = mj.RecurrentTracker.wrap(policy)
        rows = batch(first, second, first)
        for inferer, given in ((policy, rows), (tracker, {name: rows[name] for name in "ab"})):
            try:
                inferer.infer_arrays(given)
            except DeviceError as error:
                print(error)
        there = mj.MemoizingDynamicInferer(typed, strict=True, device=second)
        assert there.infer_arrays(batch(second, second, second))["sum"].devices() == {second}
        try:
            there.infer_arrays(batch(first, first, first))
        except DeviceError as error:
            print(error)
    """)
    together, tracked, elsewhere = out.splitlines()
    assert together == tracked
    assert together.startswith(
        "the inputs of a call must be on one device: this call runs on cpu:0, but 'b' on cpu:1"
    )
    assert "jax.device_put" in together
    assert elsewhere.startswith("input 'a' is on cpu:0, but this inferer was made for cpu:1")


def test_sharded_inputs_are_gathered_or_refused() -> None:
    out = two_devices("""
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("n",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("n"))
        split = jax.device_put(np.ones((4, 2), np.float32), sharding)
        answers = mj.MemoizingDynamicInferer(typed).infer_arrays({name: split for name in ("a", "b", "h_in")})
        assert answers["sum"].devices() == {first}
        assert np.asarray(answers["sum"]).tolist() == [[2, 2]] * 4
        try:
            inputs = {name: split for name in ("a", "b", "h_in")}
            mj.MemoizingDynamicInferer(typed, strict=True).infer_arrays(inputs)
        except DeviceError as error:
            print("refused:", error)
    """)
    assert "'a' on cpu:0, cpu:1" in out
    assert "refused: the inputs of a call must be on one device" in out


def test_hidden_state_follows_and_wrappers_warn_once() -> None:
    out = two_devices("""
        tracker = mj.RecurrentTracker.wrap(mj.MemoizingDynamicInferer(typed))
        for devices in ((first, first), (second, second), (second, first), (second, first)):
            rows = batch(*devices, None)
            answers = tracker.infer_arrays({name: rows[name] for name in "ab"})
            assert answers["sum"].devices() == {devices[0]}
        assert tracker.states(0)["h_in"].tolist() == [4, 4]
    """)
    assert out.count("WARNING") == 1


def test_inferers_work_on_a_device_that_numpy_cannot_read() -> None:
    """The second device is JAX's own, and stands for an accelerator whose memory NumPy cannot read."""
    out = two_devices("""
        import gc
        from memojax.errors import CompileForbiddenError
        from memojax.inferer import compiled_rows
        compiled_rows.share_host_memory = lambda device, other: False
        OBS = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
        fn = lambda w, x: {"out": w * x["obs"]}
        model = mj.TypedModel.from_function(fn, np.float32(2), {"obs": ((3,), np.float32)})
        def check(policy, n, dtype=np.float32):
            answer = policy.infer_arrays({"obs": jax.device_put(OBS[:n].astype(dtype), second)})["out"]
            assert answer.devices() == {second} and answer.shape == (n, 3)
            np.testing.assert_array_equal(answer, 2 * OBS[:n].astype(dtype).astype(np.float32))
        def executables():
            gc.collect()
            return len(second.client.live_executables())
        policy = mj.load(model, bucketing="pow2", max_batch_size=64)
        for n in (32, 64):
            check(policy, n)
        before = executables()
        with mj.forbid_compile():
            for n in [*range(17, 33), *range(81, 97), *range(161, 193)]:
                check(policy, n)
            for n in range(17, 33):
                check(policy, n, np.float16)
        assert executables() == before, (before, executables())
        sizes = policy.batch_sizes()
        assert (sizes[17], sizes[32], sizes[81]) == (2, 3, 1), sizes
        cache, = policy._engine.elsewhere().values()
        assert cache.sizes() == [32, 64] and policy._cache.sizes() == []
        policy.cache_clear(32)
        assert cache.sizes() == [64]
        policy.cache_clear()
        assert cache.sizes() == []

        policy = mj.load(model, maxsize=2)
        for n in (1, 2, 3):
            check(policy, n)
        policy.infer_arrays({"obs": OBS[:4]})
        cache, = policy._engine.elsewhere().values()
        assert (cache.sizes(), policy._cache.sizes()) == ([3], [4]), "maxsize counts the plans of all devices"
        with mj.forbid_compile():
            check(policy, 3)
            try:
                check(policy, 5)
            except CompileForbiddenError:
                print("refused")
        policy = mj.load(model, on_miss="error")
        try:
            check(policy, 5)
        except CompileForbiddenError:
            print("refused")
        assert policy.batch_sizes() == {5: 1}
    """)
    assert out.split() == ["refused", "refused"]


def test_one_device_is_never_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    policy = mj.MemoizingDynamicInferer(scaling(), strict=True)
    answers = policy.infer_arrays({"obs": jnp.ones((2, 3))})
    assert isinstance(answers["out"], jax.Array)
    assert caplog.records == []


def test_every_inferer_has_a_placement() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling())
    stateful = inferer.into_stateful(mj.BaseWrapper())
    assert stateful.placement is inferer.placement
    stateful.replace_inferer(other := mj.MemoizingDynamicInferer(scaling()))
    assert stateful.placement is other.placement
    array = jax.device_put(np.ones(3), jax.devices()[0])
    assert is_committed(array)
    specs = inferer.api.inputs
    assert DeviceChoice().choose(specs, [array]) == jax.devices()[0]
    with pytest.raises(DeviceError, match="this inferer was made for"):
        DeviceChoice(True, inferer.device).choose(specs, [array])


@pytest.mark.parametrize("device", [3, "cpu:-1", "cpu:x", "gpu:7", "CPUs"])
def test_an_unknown_device_is_refused(device: object) -> None:
    with pytest.raises(DeviceError, match="device"):
        mj.load(scaling(2.0), device=device)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_a_traced_call_is_refused_with_the_way_out(transform: object) -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"))
    call = transform(lambda x: policy.infer_arrays({"obs": x})["logits"].sum())  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"being traced.*to_jax\(policy\)"):
        call(jnp.ones((2, 1, 6)) if transform is jax.vmap else jnp.ones((2, 6)))
