"""Plans on disk: a second engine or process finds them, and never trusts entries that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import memojax
from memojax.plans.disk_cache import DiskCache

POLICY = Path(memojax.__file__).parent / "policies" / "acrobot_ppo.onnx"
OBS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


@pytest.mark.parametrize("policy", ["acrobot_ppo", "pendulum_ppo", "recurrent_lstm"])
def test_stored_plans_give_the_same_numbers(tmp_path: Path, policy: str) -> None:
    path = POLICY.with_name(f"{policy}.onnx")
    first = memojax.load(path, preload=[3], cache_dir=tmp_path)
    second = memojax.load(path, preload=[3], cache_dir=tmp_path)
    assert (first.cache_info().disk_hits, second.cache_info().disk_hits) == (0, 1)
    rows = {
        spec.name: np.random.default_rng(1).standard_normal((3, *spec.shape)).astype(spec.dtype)
        for spec in first.api.inputs
    }
    want, got = first.infer_arrays(rows), second.infer_arrays(rows)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_plans_that_take_their_weights_as_arguments(tmp_path: Path) -> None:
    """The second engine finds the plan, and runs it with its own weights, also with new ones."""
    path = POLICY.with_name("recurrent_lstm.onnx")
    first = memojax.load(path, preload=[3], cache_dir=tmp_path, weights="argument")
    second = memojax.load(path, preload=[3], cache_dir=tmp_path, weights="argument")
    assert (first.cache_info().disk_hits, second.cache_info().disk_hits) == (0, 1)
    rows = {
        spec.name: np.random.default_rng(1).standard_normal((3, *spec.shape)).astype(spec.dtype)
        for spec in first.api.inputs
    }
    halves = {name: value / 2 for name, value in first.params.items() if value.dtype == np.float32}
    for halved in (False, True):
        if halved:
            first.update_params(halves)
            second.update_params(halves)
        want, got = first.infer_arrays(rows), second.infer_arrays(rows)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    changed = memojax.load(path, cache_dir=tmp_path, preload=[3])
    changed.update_params(halves)
    assert changed.cache_info().disk_hits == 1, "the plans made anew for the first update were there as well"
    np.testing.assert_allclose(
        changed.infer_arrays(rows)["logits"], first.infer_arrays(rows)["logits"], rtol=1e-5, atol=1e-6
    )


def test_damaged_entries_compile_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memojax.load(POLICY, preload=[5], cache_dir=tmp_path)
    (entry,) = DiskCache(tmp_path).entries()
    raw = entry.path.read_bytes()
    entry.path.write_bytes(raw[: len(raw) // 2])
    inferer = memojax.load(POLICY, preload=[5], cache_dir=tmp_path)
    assert "damaged" in caplog.text
    assert inferer.cache_info().disk_hits == 0
    np.testing.assert_allclose(
        inferer.infer_arrays({"obs": OBS})["logits"],
        memojax.run(POLICY, {"obs": OBS})["logits"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_payload_without_an_executable_compiles_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inferer = memojax.load(POLICY, cache_dir=tmp_path)
    store = inferer._engine
    DiskCache(tmp_path).put(store._key(store._compiler, 5, store._compiler.default), b"no pickle")
    assert inferer.infer_arrays({"obs": OBS})["logits"].shape == (5, 3)
    assert "could not be loaded" in caplog.text


def test_other_options_and_weights_have_other_entries(tmp_path: Path) -> None:
    model = POLICY.read_bytes()
    memojax.load(model, preload=[2], cache_dir=tmp_path)
    assert memojax.load(model, preload=[2], cache_dir=tmp_path, batch_axis=0).cache_info().disk_hits == 0
    inferer = memojax.load(model, cache_dir=tmp_path)
    inferer.update_params({name: value * 2 for name, value in inferer.params.items()})
    inferer.preload([2])
    assert inferer.cache_info().disk_hits == 0


@pytest.mark.slow
def test_a_second_process_finds_the_plans_of_the_first(tmp_path: Path) -> None:
    script = f"import memojax; print(memojax.load({str(POLICY)!r}, preload=[1, 2, 3]).cache_info().disk_hits)"
    import os

    environment = {**os.environ, "MEMOJAX_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert runs == ["0", "3"]
