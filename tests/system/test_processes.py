"""Inferers in other processes: they pickle, and spawned workers give the same numbers."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import memojax
from memojax.errors import DeviceError

POLICIES = Path(memojax.__file__).parent / "policies"
OBS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


@functools.cache
def _builder() -> memojax.InfererBuilder:
    """Loaded by the first test, and not when tests are collected."""
    return memojax.InfererBuilder(POLICIES / "acrobot_ppo.onnx")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: _builder().build_basic(), id="BasicInferer"),
        pytest.param(lambda: _builder().build_fixed([2, 4]), id="FixedBatchInferer"),
        pytest.param(lambda: _builder().build_dynamic(8), id="DynamicInferer"),
        pytest.param(
            lambda: _builder().build_memoizing(
                [3], on_miss="pad", bucketing=[3, 9], max_batch_size=12, maxsize=5, seed=9
            ),
            id="MemoizingDynamicInferer",
        ),
    ],
)
def test_pickled_inferers_are_the_same(build: Callable[[], memojax.Inferer]) -> None:
    inferer = build()
    copy = pickle.loads(pickle.dumps(inferer))
    assert type(copy) is type(inferer)
    assert copy.__reduce__()[1][2:] == inferer.__reduce__()[1][2:]
    assert copy.plans() == [], "unpickling compiles nothing"
    np.testing.assert_array_equal(
        copy.infer_arrays({"obs": OBS})["logits"], inferer.infer_arrays({"obs": OBS})["logits"]
    )


def _double(weights: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return weights * inputs["obs"]


def test_functions_of_the_user_pickle_too() -> None:
    typed = memojax.TypedModel.from_function(
        _double, np.float32(2.0), {"obs": ((6,), np.float32)}, name="twice"
    )
    copy = pickle.loads(pickle.dumps(memojax.MemoizingDynamicInferer(typed, [5])))
    np.testing.assert_array_equal(copy.infer_arrays({"obs": OBS})["twice"], 2 * OBS)
    assert [plan.size for plan in copy.plans()] == [5]


def _work(inferer: memojax.Inferer) -> np.ndarray:
    return np.array(inferer.infer_arrays({"obs": OBS})["logits"])


@pytest.mark.slow
def test_spawned_worker() -> None:
    inferer = _builder().build_memoizing([5])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_work, (inferer,)), _work(inferer))


def test_unknown_device_is_named() -> None:
    with pytest.raises(DeviceError, match="no device 'tpu:7'"):
        _builder().build_memoizing(device="tpu:7")
