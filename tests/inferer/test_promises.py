"""An inferer keeps its promises for `jax.Array`s, under eviction, and during weight updates."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax.errors import CompileError, CompileForbiddenError
from memojax.xla.background import submit

from ..helpers import scaling

OBS = np.ones((300, 3), np.float32)
CPU = jax.devices("cpu")[0]


def on_cpu(n: int) -> jax.Array:
    return jax.device_put(OBS[:n], CPU)


def test_rows_on_a_device_leave_no_executable_behind() -> None:
    policy = memojax.load(scaling(), bucketing="pow2", maxsize=16)
    sizes = range(129, 229)
    rows = [on_cpu(n) for n in (256, *sizes)]
    policy.infer_arrays({"obs": rows[0]})
    before = len(CPU.client.live_executables()), len(policy.plans())
    for n, given in zip(sizes, rows[1:], strict=True):
        answer = policy.infer_arrays({"obs": given})["out"]
        assert isinstance(answer, jax.Array)
        assert answer.devices() == {CPU}
        np.testing.assert_array_equal(answer, 2 * OBS[:n])
    gc.collect()
    assert (len(CPU.client.live_executables()), len(policy.plans())) == before
    assert policy.cache_info().padded_rows == sum(256 - n for n in sizes)


def test_promises_hold_for_rows_on_a_device() -> None:
    policy = memojax.load(scaling(), preload=[4], on_miss="error")
    assert policy.infer_arrays({"obs": on_cpu(4)})["out"].shape == (4, 3)
    with pytest.raises(CompileForbiddenError):
        policy.infer_arrays({"obs": on_cpu(5)})
    assert policy.batch_sizes() == {4: 1, 5: 1}

    policy = memojax.load(scaling(), preload=[4], maxsize=2)
    with memojax.forbid_compile(), pytest.raises(CompileForbiddenError):
        policy.infer_arrays({"obs": on_cpu(5)})
    for n in (1, 2, 3, 5):
        policy.infer_arrays({"obs": on_cpu(n)})
    assert [plan.size for plan in policy.plans()] == [3, 4, 5]
    assert policy.cache_info().evictions == 2
    policy.cache_clear()
    assert policy.plans() == []
    assert not any(cache.sizes() for cache in policy._engine.elsewhere().values())


def test_rows_of_another_width_are_cast_without_a_compile() -> None:
    policy = memojax.load(scaling(), preload=[8], bucketing=[8])
    rows = [jnp.ones((n, 3), jnp.bfloat16) for n in range(1, 8)]
    policy.infer_arrays({"obs": rows[0]})
    before = len(CPU.client.live_executables())
    for given in rows:
        np.testing.assert_array_equal(
            policy.infer_arrays({"obs": given})["out"], 2 * np.ones((len(given), 3))
        )
    assert len(CPU.client.live_executables()) == before


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (CompileError("told to fail"), "told to fail"),
        (ValueError("the user's own"), "ValueError: the user's own"),
    ],
)
def test_a_failing_background_compile_is_tried_and_logged_once(
    failure: Exception, shown: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = memojax.load(scaling(), preload=[4], on_miss="pad")
    lowered: list[int] = []

    def broken(size: int) -> Any:
        lowered.append(size)
        raise failure

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "memojax"):
        patch.setattr(policy._cache, "_lower", broken)
        for _ in range(20):
            np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:7]})["out"], 2 * OBS[:7])
            submit(lambda: None).result(60)  # behind the task of this call
    assert lowered == [7]
    assert caplog.text.count("batch size 7 could not be compiled") == 1
    assert policy.cache_info().failed == {7: shown}
    policy.preload([7])
    assert policy.cache_info().failed == {}
    assert policy.is_ready(7)


@pytest.fixture
def short_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def hammer(seconds: float, calls: list[Callable[[int], None]]) -> None:
    """Repeat all of `calls`, each in its own thread; raises the first of their errors."""
    end, failures = time.monotonic() + seconds, []

    def work(call: Callable[[int], None]) -> None:
        number = 0
        try:
            while time.monotonic() < end and not failures:
                call(number)
                number += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]


@pytest.mark.usefixtures("short_turns")
def test_a_route_survives_eviction() -> None:
    policy = memojax.load(scaling(), preload=[4], on_miss="pad", maxsize=1)

    def call(seed: int) -> Callable[[int], None]:
        rng = np.random.default_rng(seed)

        def one(number: int) -> None:
            n = int(rng.integers(1, 40))
            np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:n]})["out"], 2 * OBS[:n])

        return one

    hammer(2, [*(call(seed) for seed in range(6)), lambda number: void(policy.batch_sizes())])


def void(result: object) -> None:
    """Nothing."""


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("n", [64, 5], ids=["split", "padded"])
def test_a_call_sees_one_set_of_weights(n: int) -> None:
    policy = memojax.load(scaling(), preload=[8], max_batch_size=8, bucketing=[8], weights="argument")

    def update(number: int) -> None:
        policy.update_params(np.float32(2 + number % 2))

    def call(number: int) -> None:
        found = np.unique(policy.infer_arrays({"obs": OBS[:n]})["out"])
        assert found.tolist() in ([2.0], [3.0])

    def call_on_device(number: int) -> None:
        found = np.unique(np.asarray(policy.infer_arrays({"obs": on_cpu(n)})["out"]))
        assert found.tolist() in ([2.0], [3.0])

    hammer(2, [update, call, call, call_on_device])


@pytest.mark.parametrize("n", [64, 5], ids=["split", "whole"])
def test_agents_of_one_execute_see_one_set_of_weights(n: int) -> None:
    policy = memojax.load(scaling(), preload=[8], max_batch_size=8, bucketing=[8], weights="argument")
    batched, real, parts = policy.into_batched(), policy.infer_raw, []

    def infer_raw(view: Any) -> None:
        real(view)
        parts.append(len(view))
        if len(parts) == 1:
            policy.update_params(np.float32(3))

    policy.infer_raw = infer_raw
    for agent in range(n):
        batched.push(agent, {"obs": OBS[agent]})
    answers = batched.execute()
    assert list(answers) == list(range(n))
    found = {float(value) for answer in answers.values() for value in answer["out"]}
    assert found == ({3.0} if n == 64 else {2.0})
    assert len(batched) == 0
