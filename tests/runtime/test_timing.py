"""The cost of a model by batch size."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memojax.runtime.timing import WINDOW, CompileTimings, Timing, Timings

from ..runtime_fakes import Clock

seconds = st.floats(0, 10, allow_nan=False)


def timing_of(samples):
    timing = Timing()
    for sample in samples:
        timing.add(sample)
    return timing


@given(st.lists(seconds, min_size=1, max_size=WINDOW))
def test_mean_and_variance_equal_the_samples(samples):
    timing = timing_of(samples)
    assert timing.count == len(samples)
    np.testing.assert_allclose(
        [timing.mean, timing.variance], [np.mean(samples), np.var(samples)], rtol=1e-9, atol=1e-12
    )


def test_a_constant_has_no_deviation():
    timing = timing_of([1.0] * 1000)
    assert (timing.mean, timing.std, timing.upper) == (1.0, 0.0, 1.0)


def test_old_samples_fade():
    timing = timing_of([1.0] * 1000 + [2.0] * 5 * WINDOW)
    assert timing.mean == pytest.approx(2.0, abs=0.01)
    assert timing.std < 0.15


def test_an_aged_timing_follows_at_once():
    timing = timing_of([1.0] * 100)
    timing.age()
    timing.add(3.0)
    assert timing.mean == 2.0


def table(**by_size):
    timings = Timings()
    for size, cost in by_size.items():
        timings.add(int(size[1:]), cost)
    return timings


def test_nothing_is_known_at_first():
    assert Timings().estimate(4) is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, 10.0), (8, 20.0), (5, 12.5), (7, 17.5), (1, 10.0), (10, 25.0), (16, 40.0)],
    ids=["seen", "seen too", "between", "between too", "smaller", "larger", "much larger"],
)
def test_estimates_lie_between_the_sizes_seen(size, expected):
    assert table(n4=10.0, n8=20.0).estimate(size) == pytest.approx(expected)


def test_one_size_alone_scales():
    assert table(n4=10.0).estimate(8) == 20.0
    assert table(n4=10.0).estimate(2) == 10.0


def test_larger_is_never_cheaper_than_the_largest():
    assert table(n4=10.0, n8=5.0).estimate(100) == 5.0


def test_deviation_counts():
    timings = Timings()
    for cost in (1.0, 3.0):
        timings.add(2, cost)
    assert timings.estimate(2) == 3.0


@given(st.dictionaries(st.integers(1, 100), seconds, min_size=1), st.integers(1, 200))
def test_estimates_stay_within_the_samples(costs, size):
    timings = Timings()
    for at, cost in costs.items():
        timings.add(at, cost)
    low, high = min(costs.values()), max(costs.values())
    estimate = timings.estimate(size)
    assert estimate is not None
    assert estimate >= low - 1e-9
    if min(costs) <= size <= max(costs):
        assert estimate <= high + 1e-9


def test_a_size_seen_once_scatters_like_the_others():
    timings = Timings()
    for cost in (1.0, 1.5) * 20:
        timings.add(4, cost)
    timings.add(8, 10.0)
    once = timings.estimate(8)
    assert 11.0 < once < 13.0
    for _ in range(20):
        timings.add(8, 10.0)
    assert timings.estimate(8) == pytest.approx(10.0)


def test_one_interruption_does_not_count_for_all_sizes():
    timings = Timings()
    for _ in range(20):
        timings.add(4, 1.0)
    timings.add(4, 1000.0)
    timings.add(8, 10.0)
    assert timings.estimate(8) < 13.0


def test_the_least_is_the_smallest_batchs_time():
    assert Timings().least == 0.0
    assert table(n8=20.0, n4=10.0).least == 10.0


def compile_of(compiles, brain):
    future = Future()
    compiles.watch(brain, future)
    return future


def test_compiles_that_queue_up_are_not_counted_twice():
    clock = Clock()
    compiles = CompileTimings(clock)
    assert compiles.expected("a") is None
    first, second = compile_of(compiles, "a"), compile_of(compiles, "b")
    clock.now += 2
    first.set_result(None)
    clock.now += 3
    second.set_result(None)
    assert (compiles.expected("a"), compiles.expected("b")) == (2.0, 3.0)
    assert 2.0 < compiles.expected("c") <= 3.0


def test_compiles_that_fail_are_not_counted():
    clock = Clock()
    compiles = CompileTimings(clock)
    failed, cancelled = compile_of(compiles, "a"), compile_of(compiles, "a")
    clock.now += 5
    failed.set_exception(ValueError())
    cancelled.cancel()
    assert compiles.expected("a") is None
