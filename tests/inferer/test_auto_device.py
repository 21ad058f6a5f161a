"""`device="auto"`: where it looks, what it estimates, and what it says."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import memojax
from memojax.inferer import auto_device as rule
from memojax.inferer.auto_device import accelerator_possible, accelerator_us, auto_device, cpu_us
from memojax.lowering.work import flops_per_row
from memojax.xla.cpu_client import cpu_device

from ..helpers import scaling

ROOT = Path(__file__).resolve().parents[2]


def dense(width: int, layers: int = 3) -> memojax.TypedModel:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((width, width), np.float32) / width for _ in range(layers)]

    def run(weights, inputs):
        rows = inputs["obs"]
        for weight in weights:
            rows = rows @ weight
        return {"out": rows}

    return memojax.TypedModel.from_function(run, weights, {"obs": ((width,), np.float32)})


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> jax.Device:
    """JAX's own CPU device stands for an accelerator."""
    device = jax.devices("cpu")[0]
    monkeypatch.setattr(rule, "accelerator_possible", lambda: True)
    monkeypatch.setattr(rule, "_accelerator", lambda: device)
    monkeypatch.setattr(rule, "_cores", lambda: 2)
    return device


def test_operations_are_counted() -> None:
    assert flops_per_row(dense(64)) == 3 * 2 * 64 * 64
    assert flops_per_row(scaling()) == 3
    conv = memojax.TypedModel.from_function(
        lambda kernel, x: {
            "y": jax.lax.conv_general_dilated(x["x"], kernel, (1, 1), "VALID", feature_group_count=2)
        },
        np.ones((4, 2, 3, 3), np.float32),
        {"x": ((4, 8, 8), np.float32)},
    )
    assert flops_per_row(conv) == 2 * (4 * 6 * 6) * (2 * 3 * 3)
    lstm = memojax.TypedModel.from_model(memojax.policies.bundled("recurrent_lstm"))
    matrices = sum(weight.size for weight in jax.tree.leaves(lstm.params) if weight.ndim > 1)
    counted = flops_per_row(lstm)
    assert counted is not None
    assert 2 * matrices <= counted <= 2.5 * matrices + 2000


def test_big_models_go_to_the_accelerator_and_small_ones_stay(accelerator: jax.Device) -> None:
    small, large = dense(16), dense(1024)
    assert auto_device(small).device == cpu_device()
    assert auto_device(large).device == accelerator
    assert auto_device(large, 1).device == cpu_device()
    flops = flops_per_row(large)
    assert flops is not None
    assert accelerator_us(large, flops, 1) > rule.ACCELERATOR_CALL_US
    verdict = auto_device(large, 64)
    assert "64 rows are estimated at" in verdict.why
    for rows in (1, 8, 64, 512):  # the choice is the rule's own comparison
        gains = cpu_us(large, flops, rows) >= rule.MARGIN * accelerator_us(large, flops, rows)
        assert (auto_device(large, rows).device == accelerator) == gains


def test_load_goes_by_the_rule_and_says_so(accelerator: jax.Device) -> None:
    policy = memojax.load(dense(1024), preload=[32])
    assert policy.device == accelerator
    assert "(auto: 32 rows are estimated at" in repr(policy)
    assert policy.infer_arrays({"obs": np.ones((32, 1024), np.float32)})["out"].shape == (32, 1024)
    assert memojax.load(dense(1024), device="cpu").device == cpu_device()
    assert memojax.load(dense(1024), device=None).device == cpu_device()
    assert "auto" not in repr(memojax.load(dense(16), device="cpu"))
    assert memojax.load(dense(1024), max_batch_size=1).device == cpu_device()
    assert memojax.InfererBuilder(dense(1024)).build_basic().device == cpu_device()
    assert memojax.InfererBuilder(dense(1024)).build_dynamic(64).device == accelerator


def test_a_model_whose_cost_is_not_known_stays(accelerator: jax.Device) -> None:
    def fails(_, inputs):
        raise ValueError("not now")

    broken = dataclasses.replace(scaling(), fn=fails)
    assert "not known" in auto_device(broken).why


def test_the_choice_is_made_anew_where_a_pickle_is_loaded(
    accelerator: jax.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = memojax.policies.bundled("acrobot_ppo")
    there = memojax.load(path, bucketing=[1 << 20])
    assert there.device == accelerator
    named = memojax.load(path, device="cpu")
    monkeypatch.setattr(rule, "accelerator_possible", lambda: False)
    copy = pickle.loads(pickle.dumps(there))
    assert copy.device == cpu_device()
    assert "JAX has no accelerator here" in repr(copy)
    assert "auto" not in repr(pickle.loads(pickle.dumps(named)))


def test_a_machine_without_plugins_starts_no_backend() -> None:
    """Without an accelerator, loading and a first call take as long as before."""
    script = """
import memojax, numpy as np
from memojax.inferer import auto_device
auto_device._has_plugin = lambda: False
policy = memojax.load("acrobot_ppo", preload=[1])
policy.infer_arrays({"obs": np.zeros((1, 6), np.float32)})
import jax._src.xla_bridge as bridge
assert not bridge._backends, bridge._backends
assert policy.device.platform == "cpu" and "JAX has no accelerator here" in repr(policy)
"""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr


def test_the_users_platforms_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "_has_plugin", lambda: True)
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    assert accelerator_possible() == (set((before or "").split(",")) != {"cpu"})
    monkeypatch.setattr(rule, "_has_plugin", lambda: False)
    assert not accelerator_possible()
    assert jax.config.jax_platforms == before  # pyright: ignore[reportAttributeAccessIssue]
