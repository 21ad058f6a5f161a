"""On a GPU: the CPU's numbers, arrays that stay on the device, and memory of other libraries.

`JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu` runs them; without the variable the tests run on the CPU.
"""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax as mj
from memojax.errors import DeviceError
from memojax.xla.views import has_views, lent


@functools.cache
def _why_not() -> str:
    """The reason why these tests cannot run; empty if they can."""
    try:
        return "" if jax.devices("gpu") else "JAX has no GPU here"
    except RuntimeError as cause:
        platforms = os.environ.get("JAX_PLATFORMS")
        return f"JAX has no GPU here (JAX_PLATFORMS is {platforms!r}; {str(cause).splitlines()[0][:120]})"


@pytest.fixture(autouse=True)
def gpu() -> jax.Device:
    """The first GPU. Tests ask for it when they run, since collecting tests must not start a backend."""
    if why := _why_not():
        pytest.skip(why)
    return jax.devices("gpu")[0]


pytestmark = pytest.mark.gpu
MODELS = [mj.policies.bundled(name) for name in mj.policies.names()]


def batch(typed: mj.TypedModel, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {spec.name: rng.standard_normal((n, *spec.shape)).astype(spec.dtype) for spec in typed.api.inputs}


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_the_numbers_are_the_cpus(model: Path, n: int) -> None:
    typed = mj.TypedModel.from_model(model)
    rows = batch(typed, n)
    here, there = (
        mj.MemoizingDynamicInferer(typed).infer_arrays(rows),
        mj.MemoizingDynamicInferer(typed, device="gpu").infer_arrays(rows),
    )
    assert here.keys() == there.keys()
    for name, expected in here.items():
        assert isinstance(there[name], np.ndarray)
        np.testing.assert_allclose(there[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_arrays_stay_on_the_device(gpu: jax.Device) -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"), device="gpu")
    obs = jax.device_put(np.ones((8, 6), np.float32), gpu)
    with jax.transfer_guard_device_to_host("disallow"):
        logits = policy.infer_arrays({"obs": obs})["logits"]
    assert isinstance(logits, jax.Array)
    assert logits.devices() == {gpu}


def test_hidden_state_stays_on_the_device(gpu: jax.Device) -> None:
    tracker = mj.RecurrentTracker.wrap(mj.load(mj.policies.bundled("recurrent_lstm"), device="gpu"))
    cpu = mj.RecurrentTracker.wrap(mj.load(mj.policies.bundled("recurrent_lstm")))
    rng = np.random.default_rng(0)
    for _ in range(5):
        obs = rng.standard_normal((4, 2)).astype(np.float32)
        logits = tracker.infer_arrays({"obs": jax.device_put(obs, gpu)})["logits"]
        assert logits.devices() == {gpu}
        np.testing.assert_allclose(
            np.asarray(logits), cpu.infer_arrays({"obs": obs})["logits"], rtol=1e-4, atol=1e-5
        )


def test_rows_that_fit_no_plan_stay_on_the_device(gpu: jax.Device) -> None:
    assert has_views(gpu), "views of rows work on GPUs"
    policy = mj.load(mj.policies.bundled("acrobot_ppo"), bucketing="pow2", max_batch_size=64)
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((300, 6)).astype(np.float32)
    wanted = mj.load(mj.policies.bundled("acrobot_ppo"), device="cpu").infer_arrays({"obs": obs})["logits"]

    def check(n: int) -> None:
        rows = jax.device_put(obs[:n], gpu)
        with jax.transfer_guard_device_to_host("disallow"):
            logits = policy.infer_arrays({"obs": rows})["logits"]
        assert logits.devices() == {gpu}
        np.testing.assert_allclose(np.asarray(logits), wanted[:n], rtol=1e-4, atol=1e-5)

    for n in (*range(1, 65), 300):
        check(n)
    gc.collect()
    before = len(gpu.client.live_executables())
    for n in range(100, 257):
        check(n)
    gc.collect()
    assert len(gpu.client.live_executables()) <= before + 8, "joins for 128 and 256 rows"


def test_views_on_the_device_are_rows(gpu: jax.Device) -> None:
    for dtype in (np.float32, np.float16, np.int32, jnp.bfloat16):
        rows = np.arange(90 * 6).reshape(90, 6).astype(dtype)
        whole = jax.device_put(rows, gpu)
        for start, stop in ((0, 7), (8, 40), (16, 90)):
            part = lent(whole, start, stop)
            assert part.devices() == {gpu}
            np.testing.assert_array_equal(np.asarray(part), rows[start:stop])
            np.testing.assert_array_equal(np.asarray(part + part), rows[start:stop] + rows[start:stop])


def test_plans_on_the_device_are_kept_on_disk(gpu: jax.Device, tmp_path: Path) -> None:
    path, rows = mj.policies.bundled("acrobot_ppo"), np.ones((4, 6), np.float32)
    first, again = (mj.load(path, device="gpu", cache_dir=tmp_path) for _ in range(2))
    for given in (rows, jax.device_put(rows, gpu)):
        wanted = np.asarray(first.infer_arrays({"obs": given})["logits"])
        np.testing.assert_array_equal(np.asarray(again.infer_arrays({"obs": given})["logits"]), wanted)
    assert (first.cache_info().disk_hits, again.cache_info().disk_hits) == (0, 2)


def test_auto_takes_the_device_for_a_model_that_gains(gpu: jax.Device) -> None:
    path = mj.policies.bundled("acrobot_ppo")
    assert mj.load(path).device.platform == "cpu"
    assert mj.load(path, max_batch_size=1 << 22).device == gpu


class Lent:
    """An array of another library, with DLPack only."""

    def __init__(self, array: jax.Array):
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_dlpack_is_taken_over_without_a_copy_to_the_host(gpu: jax.Device) -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"))
    obs = jax.device_put(jnp.ones((4, 6), jnp.float32), gpu)
    expected = policy.infer_arrays({"obs": np.ones((4, 6), np.float32)})["logits"]
    logits = policy.infer_arrays({"obs": Lent(obs)})["logits"]
    assert logits.devices() == {gpu}
    np.testing.assert_allclose(np.asarray(logits), expected, rtol=1e-4, atol=1e-5)


def test_strict_refuses_arrays_of_the_cpu(gpu: jax.Device) -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"), device="gpu", strict=True)
    with pytest.raises(DeviceError, match="this inferer was made for"):
        policy.infer_arrays({"obs": jax.device_put(np.ones((4, 6), np.float32), jax.devices("cpu")[0])})


def test_the_plan_says_where_it_runs() -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"), device="gpu:0", preload=[4])
    assert [plan.platform for plan in policy.plans()] == ["gpu"]
    assert "gpu:0" in repr(policy)
