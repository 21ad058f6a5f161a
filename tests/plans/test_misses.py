"""Calls without a plan of their size: policies, buckets, preloads and recommendations."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memojax
from memojax import MemoizingDynamicInferer, TypedModel
from memojax.errors import BatchSizeError, CompileForbiddenError, OptionError, RowsMixError
from memojax.plans.batch_sizes import bucket_of
from memojax.plans.recommend import interpolator, recommend
from memojax.plans.way import Lowered
from memojax.xla import background as worker

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
TYPED = TypedModel.from_function(lambda p, x: {"y": jnp.tanh(x["x"] @ p)}, W, {"x": ((4,), np.float32)})
MIXING = TypedModel.from_function(lambda p, x: {"y": x["x"] - x["x"].mean(0)}, (), {"x": ((4,), np.float32)})


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)


def check(inferer: MemoizingDynamicInferer, n: int) -> None:
    np.testing.assert_allclose(
        inferer.infer_arrays({"x": rows(n)})["y"], np.tanh(rows(n) @ W), rtol=1e-4, atol=1e-5
    )


def ready(inferer: MemoizingDynamicInferer) -> list[int]:
    return [plan.size for plan in inferer.plans()]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("never happened")


def test_pad_answers_at_once_and_compiles_the_right_size_later(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = MemoizingDynamicInferer(TYPED, [8], on_miss="pad")
    gate = threading.Event()
    lower = inferer._cache._lower

    def slow(size: int) -> Lowered:
        assert gate.wait(30)
        return lower(size)

    monkeypatch.setattr(inferer._cache, "_lower", slow)
    for n in (3, 8, 20, 3):
        check(inferer, n)
    assert ready(inferer) == [8]
    assert inferer.cache_info().padded_rows == 5 + 4 + 5
    gate.set()
    until(lambda: ready(inferer) == [3, 8, 20])
    check(inferer, 20)
    assert inferer.batch_sizes() == {3: 2, 8: 1, 20: 2}


def test_the_very_first_call_compiles_under_every_policy() -> None:
    inferer = MemoizingDynamicInferer(TYPED, on_miss="pad")
    check(inferer, 3)
    assert ready(inferer) == [3]


def test_error_and_warn_policies_and_unknown_ones(caplog: pytest.LogCaptureFixture) -> None:
    strict = MemoizingDynamicInferer(TYPED, [2, 8], on_miss="error")
    check(strict, 8)
    with pytest.raises(CompileForbiddenError, match=r"size 3 .*plans for 2, 8.*preload\(\[3\]\)"):
        check(strict, 3)
    assert ready(strict) == [2, 8]
    with caplog.at_level(logging.WARNING, "memojax"):
        check(MemoizingDynamicInferer(TYPED, [2], on_miss="warn"), 3)
    assert "batch size 3 has no plan" in caplog.text
    with pytest.raises(OptionError, match="on_miss= takes .*, not 'explode'"):
        MemoizingDynamicInferer(TYPED, on_miss="explode")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RowsMixError, match="'y'"):
        MemoizingDynamicInferer(MIXING, on_miss="pad")


def test_one_log_line_per_compile(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "memojax"):
        check(MemoizingDynamicInferer(TYPED, [2, 8]), 5)
    lines = [record.getMessage() for record in caplog.records if "compiled batch size" in record.getMessage()]
    assert len(lines) == 3
    assert "5 in" in lines[2]
    assert "first seen; nearest plans: [2, 8]" in lines[2]


def test_forbid_compile_holds_for_this_thread_only() -> None:
    inferer = MemoizingDynamicInferer(TYPED, [2])
    with memojax.forbid_compile():
        check(inferer, 2)
        with pytest.raises(CompileForbiddenError, match="size 5"):
            check(inferer, 5)
        other = threading.Thread(target=check, args=(inferer, 4))
        other.start()
        other.join()
    assert ready(inferer) == [2, 4]
    check(inferer, 5)


def test_forbid_compile_holds_for_the_threads_of_a_preload_that_is_waited_for() -> None:
    inferer = MemoizingDynamicInferer(TYPED)
    with memojax.forbid_compile(), pytest.raises(CompileForbiddenError):
        inferer.preload([1, 2], workers=2)
    assert inferer.plans() == []


def test_interrupted_compile_leaves_the_cache_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = MemoizingDynamicInferer(TYPED)
    lower = inferer._cache._lower

    def interrupted(size: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(inferer._cache, "_lower", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(inferer, 3)
    monkeypatch.setattr(inferer._cache, "_lower", lower)
    check(inferer, 3)


@pytest.mark.parametrize(
    ("bucketing", "limit", "expected"),
    [
        ("exact", None, {3: [3], 7: [3, 7], 20: [3, 7, 20]}),
        ("pow2", None, {3: [4], 7: [4, 8], 20: [4, 8, 32]}),
        ("pow2", 12, {3: [4], 7: [4, 8], 20: [4, 8, 12]}),
        ([4, 16], None, {3: [4], 7: [4, 16], 20: [4, 16]}),
        (lambda n: -(-n // 5) * 5, None, {3: [5], 7: [5, 10], 20: [5, 10, 20]}),
    ],
)
def test_buckets(bucketing: Any, limit: int | None, expected: dict[int, list[int]]) -> None:
    inferer = MemoizingDynamicInferer(TYPED, bucketing=bucketing, max_batch_size=limit)
    for n, sizes in expected.items():
        check(inferer, n)
        assert ready(inferer) == sizes


def test_bad_buckets_are_refused() -> None:
    for bad in ("pow3", [], [0], [-1], [2.5]):
        with pytest.raises(BatchSizeError):
            bucket_of(bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BatchSizeError, match="must give .* or more"):
        bucket_of(lambda n: n - 1)(5)


def test_a_preload_can_be_waited_for() -> None:
    inferer = MemoizingDynamicInferer(TYPED)
    handle = inferer.preload([3, 5, 7], background=True)
    handle.wait(60)
    assert handle.done()
    assert handle.cancel() == 0
    assert ready(inferer) == [3, 5, 7]
    assert inferer.preload([9, 9, 2], workers=2).done()
    assert ready(inferer) == [2, 3, 5, 7, 9]
    for bad in ([0], [-3], [1.5], [True]):
        with pytest.raises(BatchSizeError, match="positive whole number"):
            inferer.preload([*bad, 99])
    assert 99 not in ready(inferer)


def test_a_cancelled_preload_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = MemoizingDynamicInferer(TYPED)
    gate, lower = threading.Event(), inferer._cache._lower
    monkeypatch.setattr(inferer._cache, "_lower", lambda size: (gate.wait(30), lower(size))[1])
    handle = inferer.preload(range(1, 6), background=True)
    until(lambda: handle.cancel() >= 0 and sum(f.cancelled() for f in handle._futures) >= 4)
    gate.set()
    handle.wait(60)
    assert len(ready(inferer)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 12), st.integers(1, 50), min_size=1, max_size=6),
    st.integers(1, 4),
    st.floats(0, 0.01),
)
def test_recommendation_is_the_best_of_all(histogram: dict[int, int], k: int, compile_seconds: float) -> None:
    latency = {1: 1e-4, 4: 1.5e-4, 12: 6e-4}
    at = interpolator(latency)
    sizes = sorted(histogram)

    def cost(chosen: tuple[int, ...]) -> float:
        calls = sum(count * at(min(size for size in chosen if size >= n)) for n, count in histogram.items())
        return calls + compile_seconds * len(chosen)

    options = [c for r in range(1, k + 1) for c in itertools.combinations(sizes, r) if c[-1] == sizes[-1]]
    found = recommend(histogram, latency, dict.fromkeys(sizes, compile_seconds), k)
    assert found.seconds == pytest.approx(min(map(cost, options)))
    assert cost(tuple(found.sizes)) == pytest.approx(found.seconds)


def test_recommend_needs_measurements() -> None:
    inferer = MemoizingDynamicInferer(TYPED)
    with pytest.raises(BatchSizeError, match="no batch has run yet"):
        inferer.recommend_sizes(3)
    for n in (3, 4, 9, 9, 9):
        check(inferer, n)
    assert str(inferer.recommend_sizes(1)).startswith("1 plan(s), sizes [9]")
    with pytest.raises(BatchSizeError, match="at least 1"):
        inferer.recommend_sizes(0)


def test_the_worker_takes_short_turns_only_while_it_works() -> None:
    before = sys.getswitchinterval()
    seen = worker.submit(sys.getswitchinterval).result(30)
    assert seen == pytest.approx(1e-4) or before < 1e-4
    worker.submit(lambda: None).result(30)
    for _ in range(100):  # The result arrives a moment before the task ends.
        if sys.getswitchinterval() == pytest.approx(before):
            break
        time.sleep(0.01)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_the_worker_keeps_nothing_alive() -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    worker.submit(functools.partial(id, held)).result(30)
    del held
    for _ in range(100):
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


def test_one_cold_measurement_does_not_raise_larger_sizes() -> None:
    latency = {1: 500.0, 8: 20.0, 16: 30.0}
    at = interpolator(latency, {1: 1, 8: 99, 16: 100})
    assert [at(size) for size in (1, 8, 16, 32)] == [pytest.approx(24.8), pytest.approx(24.8), 30.0, 60.0]
    alike = interpolator({1: 5.0, 2: 3.0, 4: 4.0, 8: 9.0})
    assert [alike(size) for size in (1, 2, 4, 8)] == [4.0, 4.0, 4.0, 9.0]


def test_a_call_asks_the_rule_once_and_a_question_changes_nothing() -> None:
    asked: list[int] = []

    def rule(rows: int) -> int:
        asked.append(rows)
        return -rows // 8 * -8

    policy = memojax.load("acrobot_ppo", bucketing=rule, max_batch_size=8)
    for rows in ({"obs": np.zeros((3, 6), np.float32)}, {"obs": np.zeros((3, 6))}):
        asked.clear()
        policy.infer_arrays(rows)
        assert asked == [3]
    asked.clear()
    policy.infer_arrays({"obs": np.zeros((19, 6), np.float32)})
    assert asked == [19, 11, 3]
    seen = policy.batch_sizes(), policy.cache_info(), policy.plans()
    assert policy.select_batch_size(19) == 8
    assert (policy.batch_sizes(), policy.cache_info(), policy.plans()) == seen
