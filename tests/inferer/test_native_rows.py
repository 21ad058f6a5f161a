"""States copied by native code: the same rows, the same errors, and NumPy for everything else."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import memojax
from memojax.errors import InputError
from memojax.kernels import build
from memojax.rows import native_rows
from memojax.rows.native_rows import Gatherer, gatherer
from memojax.rows.states import State, gather

from ..helpers import has_compiler

SPECS = (
    memojax.TensorSpec("obs", (3,), np.float32),
    memojax.TensorSpec("image", (2, 2), np.uint8),
    memojax.TensorSpec("step", (), np.int64),
    memojax.TensorSpec("half", (2,), ml_dtypes.bfloat16),
)


@pytest.fixture(scope="module", autouse=True)
def _built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The native code, newly built from its source."""
    try:
        path = build.build_rows(tmp_path_factory.mktemp("rows"))
    except build.BuildError as cause:
        if has_compiler():
            raise  # A mistake in the source must not look like a machine without a compiler.
        pytest.skip(f"no compiler: {cause}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_rows, "LIBRARY", path)
        patch.delenv("MEMOJAX_KERNELS", raising=False)
        for cached in (native_rows._library, gatherer):
            cached.cache_clear()
        yield
    for cached in (native_rows._library, gatherer):
        cached.cache_clear()


def states(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(count)
    return [
        {
            "half": rng.standard_normal(2).astype(ml_dtypes.bfloat16),
            "obs": rng.standard_normal(3).astype(np.float32),
            "step": np.array(rng.integers(9)),
            "image": rng.integers(0, 255, (2, 2), np.uint8),
        }
        for _ in range(count)
    ]


def rows(count: int) -> list[np.ndarray]:
    return [np.zeros((count, *spec.shape), spec.dtype) for spec in SPECS]


def test_rows_equal_numpys() -> None:
    found = rows(12)
    aim = Gatherer(SPECS, State).aim(found)
    given = states(9)
    assert aim.all(given, 2)
    assert aim.one(State(given[0]), 11)
    for spec, array in zip(SPECS, found, strict=True):
        np.testing.assert_array_equal(array[2:11], np.stack([state[spec.name] for state in given]))
        np.testing.assert_array_equal(array[11], given[0][spec.name])
        assert not array[:2].any()


class Odd(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        return np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("obs", np.zeros(3)),
        ("obs", np.zeros(4, np.float32)),
        ("obs", np.zeros((1, 3), np.float32)),
        ("obs", np.zeros(6, np.float32)[::2]),
        ("obs", np.zeros(3, ">f4")),
        ("obs", [0.0, 1.0, 2.0]),
        ("obs", np.ma.masked_array(np.zeros(3, np.float32))),
        ("obs", None),
        ("image", np.asfortranarray(np.arange(4, dtype=np.uint8).reshape(2, 2))),
        ("step", 3),
        ("step", np.int64(3)),
        ("more", np.zeros(3, np.float32)),
    ],
)
def test_other_arrays_are_left_to_numpy(name: str, value: Any) -> None:
    aim = Gatherer(SPECS, State).aim(rows(9))
    given = states(9)
    given[4][name] = value
    assert not aim.all(given)
    assert not aim.one(given[4], 0)
    assert aim.one(given[3], 0)


@pytest.mark.parametrize("state", [Odd(states(1)[0]), [], None, {}, {1: 2}, {"obs": np.zeros(3, np.float32)}])
def test_other_mappings_are_left_to_numpy(state: Any) -> None:
    aim = Gatherer(SPECS, State).aim(rows(2))
    assert not aim.one(state, 0)
    assert not aim.all([states(1)[0], state])


def test_batches_with_and_without_the_helper_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    given = states(30)
    for place in (3, 20):
        given[place]["obs"] = given[place]["obs"].astype(np.float64)
    mixed = gather(SPECS, range(30), given)
    with monkeypatch.context() as patch:
        patch.setattr("memojax.rows.states.gatherer", lambda *given: None)
        plain = gather(SPECS, range(30), given)
    for name, array in plain.items():
        np.testing.assert_array_equal(mixed[name], array)
    given[7]["image"] = np.zeros((2, 3), np.uint8)
    with pytest.raises(InputError, match="'image' of agent 7"):
        gather(SPECS, range(30), given)


def test_a_batcher_takes_them_one_by_one_and_together() -> None:
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    batched = policy.into_batched()
    assert batched._batcher._quickly is not None  # pyright: ignore[reportAttributeAccessIssue]
    obs = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    for agent in range(20):
        batched.push(agent, {"obs": obs[agent] if agent % 3 else obs[agent].tolist()})
    with pytest.raises(InputError, match="agent 20"):
        batched.push(20, {"obs": obs[0, :5]})
    with pytest.raises(InputError, match="agent 30"):
        batched.extend({agent: {"obs": obs[agent, : 6 - (agent == 30)]} for agent in range(20, 40)})
    assert len(batched) == 20
    batched.extend({agent: {"obs": obs[agent]} for agent in range(20, 40)})
    answers = batched.execute()
    wanted = policy.infer_arrays({"obs": obs})["logits"]
    assert list(answers) == list(range(40))
    np.testing.assert_array_equal(np.stack([answers[agent]["logits"] for agent in range(40)]), wanted)


def test_the_helper_is_off_with_other_array_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_rows, "_C_CONTIGUOUS", 2)
    native_rows._library.cache_clear()
    assert "another memory layout" in native_rows._library()
    with pytest.raises(OSError, match="another memory layout"):
        Gatherer(SPECS, State)
    native_rows._library.cache_clear()
    monkeypatch.setenv("MEMOJAX_KERNELS", "0")
    assert "turned off" in native_rows._library()
    native_rows._library.cache_clear()


def test_inputs_without_a_fixed_shape_are_refused() -> None:
    with pytest.raises(OSError, match="fixed shapes"):
        Gatherer([memojax.TensorSpec("x", (3,), np.float32, shared=True)], State)
    with pytest.raises(OSError, match="fixed shapes"):
        Gatherer([memojax.TensorSpec("x", (1,) * 9, np.float32)], State)
    assert ctypes.sizeof(native_rows._Array) <= np.ndarray.__basicsize__
