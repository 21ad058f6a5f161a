"""The plan cache: threads share one compile per size, hits never wait, and failures leave nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memojax import DynamicInferer, MemoizingDynamicInferer
from memojax.errors import BatchSizeError, CompileError
from memojax.plans.batch_sizes import checked_size
from memojax.plans.cache import PlanCache
from memojax.xla.background import submit
from memojax.xla.cpu_client import cpu_device

from ..helpers import in_threads, scaling

WAIT = 30


class Compiler:
    """A stand-in for the compiler: plans count their calls, and a test can hold or break a compile."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.broken: dict[int, BaseException] = {}
        self.gates: dict[int, threading.Event] = {}
        self.started: dict[int, threading.Event] = {}

    def hold(self, size: int) -> threading.Event:
        """Let the next compile of `size` wait for the event."""
        self.started[size] = threading.Event()
        return self.gates.setdefault(size, threading.Event())

    def lower(self, size: int) -> Any:
        return SimpleNamespace(compile=lambda: self.compile(size))

    def compile(self, size: int) -> Any:
        if size in self.gates:
            self.started[size].set()
            assert self.gates[size].wait(WAIT)
        if size in self.broken:
            raise self.broken[size]
        self.made.append(size)
        return SimpleNamespace(size=size, calls=0, compile_ms=1.0)

    def cache(self, **options: Any) -> PlanCache:
        return PlanCache(self.lower, **options)


def call(cache: PlanCache, size: int) -> Any:
    plan: Any = cache.get(size)
    plan.calls += 1
    return plan


def preload(cache: PlanCache, sizes: list[int]) -> None:
    for size in cache.pin(sizes):
        cache.get(size)


def test_eight_threads_on_a_cold_size_make_one_compile() -> None:
    compiler = Compiler()
    cache = compiler.cache()
    gate = compiler.hold(5)
    barrier = threading.Barrier(9)

    def ask(_: int) -> Any:
        barrier.wait(WAIT)
        return cache.get(5)

    threading.Thread(target=lambda: (barrier.wait(WAIT), compiler.started[5].wait(WAIT), gate.set())).start()
    plans = in_threads(8, ask)
    assert compiler.made == [5]
    assert all(plan is plans[0] for plan in plans)


def test_a_hit_and_other_sizes_do_not_wait_for_a_compile() -> None:
    compiler = Compiler()
    cache = compiler.cache()
    cache.get(1)
    gate = compiler.hold(2)
    slow = threading.Thread(target=cache.get, args=(2,))
    slow.start()
    assert compiler.started[2].wait(WAIT)
    assert cache.get(1).size == 1
    assert cache.get(3).size == 3
    assert cache.sizes() == [1, 3]
    assert cache.info().currsize == 2
    assert 2 not in cache
    gate.set()
    slow.join(WAIT)
    assert cache.sizes() == [1, 2, 3]


@pytest.mark.parametrize("failure", [CompileError("broken"), RuntimeError("XLA is not well")], ids=repr)
def test_a_failed_compile_is_not_kept_and_harms_nobody(failure: Exception) -> None:
    compiler = Compiler()
    cache = compiler.cache(maxsize=2)
    cache.get(1)
    compiler.broken[2] = failure
    gate = compiler.hold(2)

    def ask(_: int) -> Exception:
        with pytest.raises(type(failure), match=str(failure)) as caught:
            cache.get(2)
        return caught.value

    threading.Thread(target=lambda: (compiler.started[2].wait(WAIT), gate.set())).start()
    in_threads(4, ask)
    assert cache.sizes() == [1]
    assert cache.info().misses == 1
    compiler.broken.clear()
    assert cache.get(2).size == 2


def test_an_interrupt_does_not_reach_waiting_threads() -> None:
    compiler = Compiler()
    cache = compiler.cache()
    compiler.broken[2] = KeyboardInterrupt()
    gate = compiler.hold(2)
    interrupted: list[BaseException] = []

    def first() -> None:
        try:
            cache.get(2)
        except KeyboardInterrupt as interrupt:
            interrupted.append(interrupt)

    owner = threading.Thread(target=first)
    owner.start()
    assert compiler.started[2].wait(WAIT)
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.append(cache.get(2)))
    waiter.start()

    def second_compile() -> Any:
        compiler.broken.clear()
        return SimpleNamespace(size=2, calls=0, compile_ms=1.0)

    compiler.lower = lambda size: SimpleNamespace(compile=second_compile)  # type: ignore[method-assign]
    cache._lower = compiler.lower
    gate.set()
    owner.join(WAIT)
    waiter.join(WAIT)
    assert len(interrupted) == 1
    assert found[0].size == 2


def test_the_least_recently_used_plan_goes_but_never_a_preloaded_one() -> None:
    compiler = Compiler()
    cache = compiler.cache(maxsize=2)
    preload(cache, [10, 11, 12])
    for size in (1, 2, 1, 3):
        call(cache, size)
    assert cache.sizes() == [1, 3, 10, 11, 12]
    call(cache, 2)
    assert cache.sizes() == [2, 3, 10, 11, 12]
    assert compiler.made == [10, 11, 12, 1, 2, 3, 2]
    assert cache.info().evictions == 2


@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_cache_holds_at_least_one(maxsize: int) -> None:
    with pytest.raises(BatchSizeError, match=str(maxsize)):
        Compiler().cache(maxsize=maxsize)


def test_cache_info_counts_hits_misses_and_evictions() -> None:
    cache = Compiler().cache(maxsize=1)
    preload(cache, [7])
    for size in (7, 1, 1, 2, 1, 7):
        call(cache, size)
    info = cache.info()
    assert (info.hits, info.misses, info.evictions, info.maxsize, info.currsize) == (3, 3, 2, 1, 2)
    assert info.compile_seconds > 0
    cache.count_padding(3)
    assert cache.info().padded_rows == 3
    cache.clear()
    assert (cache.info().hits, cache.info().misses, cache.info().currsize, cache.info().padded_rows) == (
        0,
        0,
        0,
        0,
    )


def test_clear_one_size() -> None:
    compiler = Compiler()
    cache = compiler.cache()
    for size in (1, 2):
        call(cache, size)
    cache.clear(1)
    cache.clear(99)
    assert cache.sizes() == [2]
    call(cache, 1)
    assert compiler.made == [1, 2, 1]


@pytest.mark.parametrize("size", [0, -3, 2.0, "4", None, True, np.float32(2)], ids=repr)
def test_only_positive_whole_numbers_are_sizes(size: Any) -> None:
    compiler = Compiler()
    cache = compiler.cache()
    for ask in (checked_size, cache.get, lambda size: cache.pin([1, size])):
        with pytest.raises(BatchSizeError, match="positive whole number"):
            ask(size)
    assert compiler.made == []
    three: Any = np.int64(3)
    assert checked_size(three) == 3


@given(
    st.lists(st.integers(1, 6), max_size=40),
    st.sets(st.integers(1, 6), max_size=2),
    st.none() | st.integers(1, 3),
)
def test_random_calls_match_an_lru_cache(calls: list[int], pinned: set[int], maxsize: int | None) -> None:
    compiler = Compiler()
    cache = compiler.cache(maxsize=maxsize)
    preload(cache, sorted(pinned))
    recent: list[int] = []
    for size in calls:
        assert call(cache, size).size == size
        if size not in pinned:
            recent = [other for other in recent if other != size] + [size]
            recent = recent if maxsize is None else recent[-maxsize:]
        assert cache.sizes() == sorted({*recent, *pinned})
    info = cache.info()
    assert info.hits + info.misses == len(calls)
    assert info.misses == len(compiler.made) - len(pinned)


# --- with real plans


def test_racing_threads_on_real_plans_are_right_and_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = MemoizingDynamicInferer(scaling(3.0))
    lower, lowered = inferer._cache._lower, []
    monkeypatch.setattr(inferer._cache, "_lower", lambda size: (lowered.append(size), lower(size))[1])
    barrier = threading.Barrier(8)

    def run(thread: int) -> None:
        barrier.wait(WAIT)
        for n in (4, 2, 4, 3):
            obs = np.full((n, 3), thread, np.float32)
            assert (inferer.infer_arrays({"obs": obs})["out"] == 3 * obs).all()

    in_threads(8, run)
    assert sorted(lowered) == [2, 3, 4]


def live() -> int:
    submit(gc.collect).result(60)  # After the tasks that earlier tests left to the worker.
    gc.collect()
    return len(cpu_device().client.live_executables())


@pytest.mark.parametrize(
    "drop",
    [
        pytest.param(lambda inferer: inferer.cache_clear(), id="clear"),
        pytest.param(lambda inferer: [inferer.cache_clear(n) for n in range(1, 7)], id="one by one"),
        pytest.param(lambda inferer: None, id="with the inferer"),
    ],
)
def test_dropped_executables_are_freed(drop: Callable[[Any], Any]) -> None:
    before = live()
    inferer = MemoizingDynamicInferer(scaling(5.0))
    for n in range(1, 7):
        inferer.infer_arrays({"obs": np.ones((n, 3), np.float32)})
    assert live() >= before + 6
    drop(inferer)
    del inferer
    assert live() == before


def test_evicted_executables_are_freed() -> None:
    inferer = MemoizingDynamicInferer(scaling(6.0), [1], maxsize=2)
    before = live()
    for n in range(2, 12):
        inferer.infer_arrays({"obs": np.ones((n, 3), np.float32)})
    assert [plan.size for plan in inferer.plans()] == [1, 10, 11]
    assert live() == before + 2


def test_plans_tell_their_cost_and_use() -> None:
    inferer = DynamicInferer(scaling(), 4)
    for _ in range(20):
        inferer.infer_arrays({"obs": np.ones((4, 3), np.float32)})
    (plan,) = inferer.plans()
    assert (plan.size, plan.calls, plan.platform) == (4, 20, "cpu")
    assert plan.compile_ms > 0
    assert plan.median_us is not None
    assert 0 < plan.median_us < 1e6
