"""A runtime's queue and budget: the brains that run or wait in a frame, and sizes without a plan."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

import memojax as mj
from memojax.errors import (
    InputShapeError,
    RuntimeErrors,
)

from ..helpers import scaling
from ..runtime_fakes import Brain, Broken, Stage, obs

# The queue and the budget


def test_brains_that_do_not_fit_go_first_next_time():
    stage = Stage(0.02, 0.04, 0.06, 0.04)
    for _ in range(10):
        stage.push_all()
        stage.runtime.run()
    stage.push_all()
    assert stage.run_for(0.07) == [0, 1]
    assert stage.run_for(0.07) == [2]
    assert stage.run_for(0.07) == [3]
    assert stage.run_for(0.07) == []
    stage.push_all()
    assert stage.run_for(0.161) == [0, 1, 2, 3]


def test_a_later_model_that_fits_passes_one_that_does_not():
    stage = Stage(0.02, 0.04, 0.06, 0.04)
    for _ in range(10):
        stage.push_all()
        stage.runtime.run()
    stage.push_all()
    assert stage.run_for(0.11) == [0, 1, 3]


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_the_first_always_runs(budget):
    stage = Stage(0.02, 0.04, 0.06)
    for _ in range(10):
        stage.push_all()
        stage.runtime.run()
    stage.push_all()
    assert [stage.run_for(budget) for _ in range(4)] == [[0], [1], [2], []]


def test_each_brain_gets_its_turn():
    """Each frame pushes to all, and has time for two of five."""
    stage = Stage(*[0.01] * 5)
    stage.push_all()
    stage.runtime.run()
    answered = np.zeros(5, int)
    for frame in range(50):
        stage.push_all(value=frame)
        for index in stage.run_for(0.0201):
            answered[index] += 1
    np.testing.assert_array_equal(answered, [20] * 5)


def test_a_costly_model_is_not_starved_by_cheap_ones():
    stage = Stage(0.001, 0.001, 5.0)
    stage.push_all()
    stage.runtime.run()
    answered = np.zeros(3, int)
    for _ in range(20):
        stage.push_all()
        for index in stage.run_for(0.01):
            answered[index] += 1
    assert answered[2] >= 9
    assert min(answered[:2]) >= 9


def test_longest_waiting_counts_from_the_first_push():
    """A model that was long idle does not pass a skipped one."""
    stage = Stage(0.01, 0.01, 0.01)
    stage.push_all()
    stage.runtime.run()
    stage.runtime.push(stage.ids[2], 0, obs())
    stage.runtime.push(stage.ids[1], 0, obs())
    assert stage.run_for(0) == [1]
    stage.runtime.push(stage.ids[0], 0, obs())
    assert [stage.run_for(0), stage.run_for(0)] == [[2], [0]]


def test_refreshing_a_state_does_not_lose_the_place_in_the_queue():
    stage = Stage(0.01, 0.01)
    stage.push_all()
    stage.runtime.run()
    stage.push_all()
    stage.runtime.push(stage.ids[0], 0, obs(5))
    assert stage.run_for(0) == [0]


def test_estimates_depend_on_the_batch_size():
    stage = Stage(lambda n: 0.01 * n, lambda n: 0.01 * n)
    for size in (1, 10):
        for brain in stage.ids:
            stage.runtime.extend(brain, {agent: obs() for agent in range(size)})
        stage.runtime.run()
    first, second = stage.ids
    stage.runtime.push(first, 0, obs())
    stage.runtime.extend(second, {agent: obs() for agent in range(5)})
    assert stage.run_for(0.055) == [0]
    assert stage.run_for(0.0) == [1]
    stage.runtime.push(first, 0, obs())
    stage.runtime.extend(second, {agent: obs() for agent in range(5)})
    assert stage.run_for(0.065) == [0, 1]


def test_a_model_that_was_never_timed_is_tried_while_time_is_left():
    stage = Stage(0.01, 0.01, 0.01)
    stage.push_all()
    assert stage.run_for(0.015) == [0, 1]


def test_no_brain_is_asked_once_nothing_can_fit():
    """Asking thirty models that do not fit takes longer than the rest of the budget."""
    stage = Stage(*[0.01] * 4)
    stage.push_all()
    stage.runtime.run()
    asked = []
    for index, fake in enumerate(stage.fakes):
        fake.is_ready = lambda count, index=index: asked.append(index) or True
    stage.push_all()
    assert stage.run_for(0.018) == [0]
    assert set(asked) == {0}
    assert stage.run_for(0.028) == [1, 2]
    assert set(asked) == {0, 1, 2}


def test_the_search_for_a_model_is_part_of_its_cost():
    stage = Stage(0.01)
    stage.push_all()
    stage.runtime.run()
    (fake,) = stage.fakes

    def slow(count):
        stage.clock.now += 0.002
        return True

    fake.is_ready = slow
    stage.push_all()
    assert stage.run_for(1.0) == [0]
    assert stage.runtime.timings(stage.ids[0])[1].mean > 0.011


def test_pushes_during_a_frame_wait_for_the_next():
    stage = Stage(0.01, 0.01)
    first, second = stage.ids
    stage.fakes[0].during = lambda: stage.runtime.push(first, 1, obs(1))
    stage.push_all()
    responses = stage.runtime.run()
    assert {brain: list(out) for brain, out in responses.items()} == {first: [0], second: [0]}
    stage.fakes[0].during = lambda: None
    assert {brain: list(out) for brain, out in stage.runtime.run().items()} == {first: [1]}


def test_a_split_batch_is_one_answer():
    stage = Stage()
    brain = stage.add(Brain(stage.clock, 0.01, take=lambda count: min(count, 2)))
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(5)})
    out = stage.runtime.run_for(0)[brain]
    assert [out[agent]["out"][0] for agent in range(5)] == [0, 1, 2, 3, 4]
    assert stage.fakes[0].ran == [2, 2, 1]
    assert stage.runtime.timings(brain)[5].mean == pytest.approx(0.03)


# Sizes without a plan


def cold(stage, **options):
    return stage.add(Brain(stage.clock, 0.01, ready=set(), **options))


def test_a_size_without_a_plan_is_compiled_in_the_background():
    stage = Stage(0.01)
    new = cold(stage)
    fake = stage.fakes[1]
    for frame in range(3):
        stage.push_all(value=frame)
        assert stage.run_for(0.016) == [0]
    assert list(fake.asked) == [1]
    fake.finish(1)
    assert stage.run_for(0.016) == [1]
    assert fake.compiled_in_frame == []
    assert stage.runtime.run() == {}
    assert stage.runtime.waiting(new) == []


def test_the_batch_keeps_its_size_while_it_is_compiled_for():
    """Later agents wait for the next batch; agents in the batch get their newer states."""
    stage = Stage(0.01)
    new = cold(stage)
    fake = stage.fakes[1]
    stage.runtime.extend(new, {1: obs(1), 2: obs(2), 3: obs(3)})
    stage.runtime.push(stage.ids[0], 0, obs())
    assert stage.run_for(0.016) == [0]
    stage.runtime.extend(new, {3: obs(3, 1), 4: obs(4), 5: obs(5)})
    stage.runtime.push(new, 1, obs(1, 1))
    stage.runtime.push(new, 4, obs(4, 1))
    with pytest.raises(InputShapeError):
        stage.runtime.extend(new, {1: obs(9), 6: {"obs": np.zeros(9, np.float32)}})
    assert stage.runtime.waiting(new) == [1, 2, 3, 4, 5]
    fake.finish(3)
    first = stage.runtime.run_for(0.016)[new]
    assert {agent: tuple(response["out"][:2]) for agent, response in first.items()} == {
        1: (1, 1),
        2: (2, 0),
        3: (3, 1),
    }
    assert list(fake.asked) == [3, 2]
    fake.finish(2)
    rest = stage.runtime.run_for(0.016)[new]
    assert {agent: tuple(response["out"][:2]) for agent, response in rest.items()} == {4: (4, 1), 5: (5, 0)}
    assert fake.ran == [3, 2]
    assert fake.compiled_in_frame == []


def test_a_model_that_waits_for_its_plan_keeps_its_place():
    stage = Stage()
    cold(stage)
    stage.add(Brain(stage.clock, 0.01))
    stage.push_all()
    assert stage.run_for(0.0) == [1]
    stage.fakes[0].finish(1)
    stage.push_all()
    assert [stage.run_for(0.0), stage.run_for(0.0)] == [[0], [1]]


def test_if_nothing_else_can_answer_the_first_compiles():
    stage = Stage()
    cold(stage)
    cold(stage)
    stage.push_all()
    assert [stage.run_for(0.0), stage.run_for(0.0)] == [[0], [1]]
    assert [fake.compiled_in_frame for fake in stage.fakes] == [[1], [1]]


def test_run_compiles_the_plans_it_needs():
    stage = Stage()
    brain = cold(stage)
    stage.push_all()
    assert list(stage.runtime.run()) == [brain]
    assert stage.runtime.timings(brain) == {}
    stage.push_all()
    stage.runtime.run()
    assert stage.runtime.timings(brain)[1].mean == pytest.approx(0.01)


def test_a_compile_that_fits_is_waited_for():
    stage = Stage(0.01)
    cold(stage)
    fake = stage.fakes[1]
    stage.push_all()
    timer = threading.Timer(0.2, lambda: fake.finish(1))
    fake_prepare = fake.prepare

    def prepare(count):
        timer.start()
        return fake_prepare(count)

    fake.prepare = prepare
    assert stage.run_for(30.0) == [0, 1]
    assert fake.compiled_in_frame == []


def test_a_compile_that_does_not_fit_is_not_waited_for(monkeypatch):
    awaited = []

    def noted(futures, *limits):
        awaited.extend(futures)
        return wait(futures, 0)

    monkeypatch.setattr("memojax.runtime.runtime.wait", noted)
    stage = Stage(0.01)
    cold(stage, compile_cost=40.0)
    stage.push_all()
    stage.runtime.run()
    stage.runtime.push(stage.ids[0], 0, obs())
    stage.runtime.extend(stage.ids[1], {0: obs(), 1: obs()})
    assert stage.run_for(30.0) == [0]
    assert awaited == []


def test_a_failing_compile_raises_and_loses_nothing():
    stage = Stage(0.01)
    new = cold(stage)
    fake = stage.fakes[1]
    stage.push_all()
    assert stage.run_for(0.016) == [0]
    fake.finish(1, Broken("no plan"))
    fake.failing = True
    with pytest.raises(RuntimeErrors) as caught:
        stage.runtime.run_for(0.016)
    assert list(caught.value.failures) == [new]
    fake.failing = False
    assert list(stage.runtime.run_for(0.016)) == [new]


def test_the_size_shrinks_when_an_agent_ends_meanwhile():
    stage = Stage(0.01)
    new = cold(stage)
    fake = stage.fakes[1]
    for agent in (1, 2, 3):
        stage.runtime.begin_agent(new, agent)
        stage.runtime.push(new, agent, obs(agent))
    stage.push_all(agent=1, value=1)
    stage.run_for(0.016)
    assert list(fake.asked) == [3]
    stage.runtime.end_agent(new, 2)
    stage.runtime.push(stage.ids[0], 0, obs())
    stage.run_for(0.016)
    assert list(fake.asked) == [3, 2]
    assert fake.asked[3].cancelled()
    fake.finish(2)
    assert sorted(stage.runtime.run_for(0.016)[new]) == [1, 3]


def test_real_models_are_compiled_between_frames():
    runtime = mj.Runtime()
    warm = runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(2), [1]))
    new = runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(3)))
    state = {"obs": np.ones(3, np.float32)}
    runtime.push(new, 5, state)
    answered = {}
    with mj.forbid_compile():
        for _ in range(3000):
            runtime.push(warm, 1, state)
            answered.update(runtime.run_for(0.001))
            if new in answered:
                break
            time.sleep(0.01)
    np.testing.assert_array_equal(answered[new][5]["out"], [3, 3, 3])
    np.testing.assert_array_equal(answered[warm][1]["out"], [2, 2, 2])
