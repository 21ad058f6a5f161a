"""Threads are used if measurements show that they pay, and the choice follows changes."""

from __future__ import annotations

import numpy as np
import pytest

import memojax
from memojax.runtime.pace import Pace


def frames(pace: Pace, count: int, alone: float, together: float, load: object = "a") -> list[bool]:
    chosen = []
    for _ in range(count):
        threaded = pace.threads_pay(load)
        pace.note(load, threaded, together if threaded else alone)
        chosen.append(threaded)
    return chosen


@pytest.mark.parametrize(("alone", "together"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_way_is_kept_and_the_other_one_tried_now_and_then(alone: float, together: float) -> None:
    chosen = frames(Pace(), 640, alone, together)
    faster = together < alone
    assert chosen[:6] == [True] * 3 + [False] * 3
    assert chosen[6:69] == [faster] * 63
    trials = [index for index, threaded in enumerate(chosen[6:]) if threaded != faster]
    pauses = np.diff(trials).tolist()
    assert pauses
    assert pauses == sorted(pauses), "less and less often while nothing changes"


def test_threads_that_gain_little_are_not_used() -> None:
    assert not any(frames(Pace(), 60, 1.0, 0.95)[6:])
    assert all(frames(Pace(), 60, 1.0, 0.85)[6:])


def test_after_a_change_it_tries_as_often_as_at_first() -> None:
    pace = Pace()
    before = np.diff([index for index, threaded in enumerate(frames(pace, 1200, 1.0, 2.0)) if threaded])
    changed = frames(pace, 900, 4.0, 2.0)
    assert changed[-100:].count(True) >= 98
    after = np.diff([index for index, threaded in enumerate(changed) if not threaded and index > 10])
    assert after[0] < before[-1]
    assert after[0] < after[-1]


def test_it_follows_a_change_and_one_slow_frame_changes_nothing() -> None:
    pace = Pace()
    frames(pace, 20, 1.0, 2.0)
    pace.note("a", False, 90.0)
    assert not any(frames(pace, 5, 1.0, 2.0))
    assert frames(pace, 400, 4.0, 2.0)[-20:].count(True) >= 19


def test_what_was_measured_long_ago_decides_nothing() -> None:
    pace = Pace()
    frames(pace, 40, 1.0, 2.0)
    later = frames(pace, 300, 3.0, 6.0)
    assert later.count(True) <= 4, "the machine is slower, so threads look fast only beside old frames"


def test_a_trial_without_hope_is_short_and_an_open_one_is_not_decided_by_one_frame() -> None:
    pace = Pace()
    assert frames(pace, 100, 1.0, 2.0)[6:].count(True) == 1
    pace = Pace()
    assert frames(pace, 100, 1.0, 0.95)[6:].count(True) == 3


def test_loads_are_told_apart_and_forgotten() -> None:
    pace = Pace()
    frames(pace, 10, 1.0, 2.0, "a")
    frames(pace, 10, 2.0, 1.0, "b")
    assert not pace.threads_pay("a")
    assert pace.threads_pay("b")
    for load in range(200):
        pace.threads_pay(load)
    assert len(pace._loads) == 64


def test_both_ways_answer_everything() -> None:
    runtime = memojax.Runtime(threads=2)
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    brains = [runtime.add_inferer(policy) for _ in range(3)]
    rows = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    alone = policy.infer_arrays({"obs": rows})["logits"]
    for _ in range(12):
        for brain in brains:
            runtime.extend(brain, {agent: {"obs": rows[agent]} for agent in range(3)})
        answers = runtime.run_threaded()
        for brain in brains:
            got = np.stack([answers[brain][agent]["logits"] for agent in range(3)])
            np.testing.assert_array_equal(got, alone)
