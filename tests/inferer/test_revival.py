"""A copy of an inferer compiles nothing before its first call; then it gets the original's plans."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import memojax
from memojax.xla.background import submit

OBS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
NAME = "acrobot_ppo"
KINDS: dict[str, Callable[[], Any]] = {
    "basic": lambda: memojax.InfererBuilder(memojax.policies.bundled(NAME)).build_basic(),
    "fixed": lambda: memojax.InfererBuilder(memojax.policies.bundled(NAME)).build_fixed([2, 4]),
    "dynamic": lambda: memojax.InfererBuilder(memojax.policies.bundled(NAME)).build_dynamic(8),
    "memoizing": lambda: memojax.load(NAME, preload=[3, 5]),
    "pad": lambda: memojax.load(NAME, preload=[8], on_miss="pad"),
    "error": lambda: memojax.load(NAME, preload=[5], on_miss="error"),
}


class Compiles:
    """Counts the compiles of XLA."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, seconds: float, **more: Any) -> None:
        self.count += name.endswith("backend_compile_duration")


@pytest.fixture
def compiles() -> Iterator[Compiles]:
    submit(lambda: None).result()  # what copies of an earlier test still compile in the background
    counter = Compiles()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    if hasattr(jax.monitoring, "unregister_event_duration_listener"):  # JAX 0.8 keeps the listener
        jax.monitoring.unregister_event_duration_listener(counter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_compiles_nothing_before_its_first_call(
    kind: str, duplicate: Callable[[Any], Any], compiles: Compiles
) -> None:
    original = KINDS[kind]()
    assert compiles.count, "the counter sees compiles"
    before = compiles.count
    made = duplicate(original)
    again = duplicate(made)
    assert compiles.count == before
    assert made.plans() == again.plans() == []
    wanted = original.infer_arrays({"obs": OBS})["logits"]
    np.testing.assert_allclose(made.infer_arrays({"obs": OBS})["logits"], wanted, rtol=1e-5)
    np.testing.assert_allclose(again.infer_arrays({"obs": OBS})["logits"], wanted, rtol=1e-5)


def test_the_other_sizes_compile_after_the_first_use() -> None:
    made = pickle.loads(pickle.dumps(memojax.load(NAME, preload=[2, 5, 9], maxsize=1)))
    made.infer_arrays({"obs": OBS})
    end = time.monotonic() + 60
    while [plan.size for plan in made.plans()] != [2, 5, 9] and time.monotonic() < end:
        time.sleep(0.01)
    assert [plan.size for plan in made.plans()] == [2, 5, 9], "preloaded sizes are not limited by maxsize"
    assert made.cache_info().misses == 0


def test_a_new_size_is_still_refused() -> None:
    made = pickle.loads(pickle.dumps(memojax.load(NAME, preload=[5], on_miss="error")))
    with pytest.raises(memojax.errors.CompileForbiddenError):
        made.infer_arrays({"obs": OBS[:3]})
    assert made.plans() == []


def test_clearing_a_copy_forgets_the_sizes() -> None:
    made = pickle.loads(pickle.dumps(memojax.load(NAME, preload=[2, 5])))
    made.cache_clear(2)
    made.infer_arrays({"obs": OBS})
    assert made.__reduce__()[1][3] == [5]
    fresh = pickle.loads(pickle.dumps(made))
    fresh.cache_clear()
    assert fresh.__reduce__()[1][3] == []


def _counted(policy: Any, sent: Any) -> None:
    at_start = len(policy.plans()), policy.cache_info().compile_seconds
    sent.send((at_start, policy.infer_arrays({"obs": OBS})["logits"]))


def test_a_spawned_process_compiles_nothing_before_its_first_call() -> None:
    policy = memojax.load(NAME, preload=[5])
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_counted, args=(policy, there))
    process.start()
    assert here.poll(120)
    at_start, logits = here.recv()
    process.join(30)
    assert at_start == (0, 0.0)
    np.testing.assert_array_equal(logits, policy.infer_arrays({"obs": OBS})["logits"])
