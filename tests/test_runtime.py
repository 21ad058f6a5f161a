"""Many models in one frame: who runs, who waits, who answers what."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

import memojax as mj
from memojax.errors import (
    DuplicateIdError,
    InputShapeError,
    MissingInputError,
    OrphanedDataError,
    RuntimeErrors,
    UnknownAgentError,
    UnknownBrainError,
)

from .helpers import in_threads, policy, scaling, summing
from .runtime_fakes import Brain, Broken, Stage, obs

# What comes back


def test_each_agent_gets_its_own_answer():
    stage = Stage(0, 0)
    for index, brain in enumerate(stage.ids):
        for agent in range(5):
            stage.runtime.push(brain, agent, obs(index, agent))
    responses = stage.runtime.run()
    assert list(responses) == stage.ids
    for index, brain in enumerate(stage.ids):
        assert sorted(responses[brain]) == list(range(5))
        for agent in range(5):
            np.testing.assert_array_equal(responses[brain][agent]["out"], [index, agent, 0])
    assert stage.fakes[0].ran == [5]


def test_brains_without_data_are_not_in_the_answer():
    stage = Stage(0, 0)
    assert stage.runtime.run() == {}
    stage.runtime.push(stage.ids[1], 7, obs())
    assert list(stage.runtime.run()) == [stage.ids[1]]
    assert stage.runtime.run() == stage.runtime.run_for(1) == stage.runtime.run_threaded() == stage.runtime.run_for_threaded(1) == {}
    assert stage.fakes[0].ran == []


def test_a_newer_state_takes_the_place_of_one_that_waits():
    stage = Stage(0)
    for value in range(3):
        stage.push_all(agent=1, value=value)
    assert stage.runtime.waiting(stage.ids[0]) == [1]
    np.testing.assert_array_equal(stage.runtime.run()[stage.ids[0]][1]["out"], [2, 0, 0])
    assert stage.fakes[0].ran == [1]


def test_extend_queues_many_and_refreshes_those_that_wait():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(4)})
    stage.runtime.extend(brain, [(agent, obs(agent, 1)) for agent in (5, 2, 0)])
    out = stage.runtime.run()[brain]
    assert {agent: tuple(response["out"][:2]) for agent, response in out.items()} == {0: (0, 1), 1: (1, 0), 2: (2, 1), 3: (3, 0), 5: (5, 1)}


def test_a_state_that_does_not_fit_changes_nothing():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.runtime.push(brain, 1, obs(1))
    with pytest.raises(MissingInputError):
        stage.runtime.push(brain, 1, {})
    with pytest.raises(InputShapeError):
        stage.runtime.extend(brain, {1: obs(9), 2: {"obs": np.zeros(4, np.float32)}})
    with pytest.raises(DuplicateIdError):
        stage.runtime.extend(brain, [(3, obs()), (3, obs())])
    assert stage.runtime.waiting(brain) == [1]
    np.testing.assert_array_equal(stage.runtime.run()[brain][1]["out"], [1, 0, 0])


def test_callers_may_reuse_their_buffers():
    stage = Stage(0)
    state = obs(1)
    stage.runtime.push(stage.ids[0], 0, state)
    state["obs"][:] = 9
    np.testing.assert_array_equal(stage.runtime.run()[stage.ids[0]][0]["out"], [1, 0, 0])


def test_infer_single_leaves_the_queue_alone():
    stage = Stage(0.5)
    (brain,) = stage.ids
    stage.runtime.push(brain, 0, obs(1))
    np.testing.assert_array_equal(stage.runtime.infer_single(brain, obs(2))["out"], [2, 0, 0])
    np.testing.assert_array_equal(stage.runtime.run()[brain][0]["out"], [1, 0, 0])
    assert stage.runtime.timings(brain)[1].count == 2


def test_shapes():
    stage = Stage(0)
    assert stage.runtime.input_shapes(stage.ids[0]) == [("obs", [3])]
    assert stage.runtime.output_shapes(stage.ids[0]) == [("out", [3])]


# Who is known


def test_ids_are_never_reused():
    runtime, other = mj.Runtime(), mj.Runtime()
    seen = set()
    for _ in range(10):
        brain = runtime.add_inferer(Brain())
        seen |= {brain, other.add_inferer(Brain())}
        runtime.remove_inferer(brain)
    runtime.clear()
    seen.add(runtime.add_inferer(Brain()))
    assert len(seen) == 21
    assert len(other) == 10
    assert set(other.brains) < seen


@pytest.mark.parametrize(
    "use",
    [
        lambda r, b: r.push(b, 0, obs()),
        lambda r, b: r.extend(b, {0: obs()}),
        lambda r, b: r.infer_single(b, obs()),
        lambda r, b: r.begin_agent(b, 0),
        lambda r, b: r.end_agent(b, 0),
        lambda r, b: r.input_shapes(b),
        lambda r, b: r.output_shapes(b),
        lambda r, b: r.waiting(b),
        lambda r, b: r.timings(b),
        lambda r, b: r.inferer(b),
        lambda r, b: r.replace_inferer(b, Brain()),
        lambda r, b: r.remove_inferer(b),
    ],
    ids=[
        "push",
        "extend",
        "infer_single",
        "begin",
        "end",
        "input_shapes",
        "output_shapes",
        "waiting",
        "timings",
        "inferer",
        "replace",
        "remove",
    ],
)
def test_unknown_brains_are_named(use):
    runtime = mj.Runtime()
    foreign = mj.Runtime().add_inferer(Brain())
    removed = runtime.add_inferer(Brain())
    runtime.remove_inferer(removed)
    for brain in (foreign, removed):
        with pytest.raises(UnknownBrainError, match=str(brain)):
            use(runtime, brain)


def test_removing_a_brain_gives_its_inferer_back():
    stage = Stage(0)
    assert stage.runtime.inferer(stage.ids[0]) is stage.fakes[0]
    assert stage.runtime.remove_inferer(stage.ids[0]) is stage.fakes[0]
    assert len(stage.runtime) == 0


def test_orphans_are_named_when_a_brain_goes():
    stage = Stage(0, 0, 0)
    for agent in (4, 2):
        stage.runtime.push(stage.ids[0], agent, obs())
    with pytest.raises(OrphanedDataError, match="2 agents") as caught:
        stage.runtime.remove_inferer(stage.ids[0])
    assert caught.value.agents == {stage.ids[0]: (4, 2)}
    stage.runtime.push(stage.ids[2], 1, obs())
    with pytest.raises(OrphanedDataError) as caught:
        stage.runtime.clear()
    assert caught.value.agents == {stage.ids[2]: (1,)}
    assert stage.runtime.brains == []
    stage.runtime.clear()


# The queue and the budget


def test_what_fits_runs_and_the_rest_goes_first_next_time():
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


def test_everyone_comes_to_their_turn():
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
    """A model that was idle for long does not pass one that was skipped."""
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


def test_nobody_is_asked_once_nothing_can_fit():
    """To go through thirty models that do not fit takes longer than what is left."""
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
    """Agents that come later wait for the batch after it; those in it are brought up to date."""
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
    assert {agent: tuple(response["out"][:2]) for agent, response in first.items()} == {1: (1, 1), 2: (2, 0), 3: (3, 1)}
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


def test_where_nothing_else_can_answer_the_first_compiles():
    stage = Stage()
    cold(stage)
    cold(stage)
    stage.push_all()
    assert [stage.run_for(0.0), stage.run_for(0.0)] == [[0], [1]]
    assert [fake.compiled_in_frame for fake in stage.fakes] == [[1], [1]]


def test_run_compiles_what_it_needs():
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


def test_a_compile_that_does_not_fit_is_not_waited_for():
    stage = Stage(0.01)
    cold(stage, compile_cost=40.0)
    stage.push_all()
    stage.runtime.run()
    stage.runtime.push(stage.ids[0], 0, obs())
    stage.runtime.extend(stage.ids[1], {0: obs(), 1: obs()})
    started = time.perf_counter()
    assert stage.run_for(30.0) == [0]
    assert time.perf_counter() - started < 5


def test_a_compile_that_fails_is_told_and_nothing_is_lost():
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


# Models that raise


@pytest.mark.parametrize("method", ["run", "run_threaded"])
def test_the_others_answer_when_one_raises(method):
    stage = Stage(0, 0, 0)
    stage.fakes[1].failing = True
    stage.push_all(agent=3, value=4)
    with pytest.raises(RuntimeErrors, match="told to fail") as caught:
        getattr(stage.runtime, method)()
    assert list(caught.value.failures) == [stage.ids[1]]
    assert isinstance(caught.value.failures[stage.ids[1]], Broken)
    assert sorted(caught.value.responses) == [stage.ids[0], stage.ids[2]]
    assert stage.runtime.waiting(stage.ids[1]) == [3]
    stage.fakes[1].failing = False
    np.testing.assert_array_equal(stage.runtime.run()[stage.ids[1]][3]["out"], [4, 0, 0])


def test_a_model_that_raises_does_not_take_the_turn_of_the_first():
    stage = Stage(0.01, 0.01)
    stage.push_all()
    stage.runtime.run()
    stage.fakes[0].failing = True
    stage.push_all()
    with pytest.raises(RuntimeErrors) as caught:
        stage.runtime.run_for(0.0)
    assert list(caught.value.responses) == [stage.ids[1]]
    stage.push_all()
    assert stage.run_for(0.0) == [1]


def test_a_batch_goes_on_where_it_stopped():
    """Rows that ran are not run again, and a state pushed meanwhile is not lost."""
    stage = Stage()
    brain = stage.add(Brain(stage.clock, take=lambda count: min(count, 2)))
    fake = stage.fakes[0]
    fake.failing, fake.fail_at_call = True, 1
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(5)})
    with pytest.raises(RuntimeErrors):
        stage.runtime.run()
    assert fake.ran == [2]
    stage.runtime.push(brain, 0, obs(0, 7))
    stage.runtime.push(brain, 4, obs(4, 7))
    stage.runtime.push(brain, 9, obs(9, 7))
    fake.failing = False
    out = stage.runtime.run()[brain]
    assert {agent: tuple(response["out"][:2]) for agent, response in out.items()} == {
        0: (0, 7),
        1: (1, 0),
        2: (2, 0),
        3: (3, 0),
        4: (4, 7),
        9: (9, 7),
    }
    assert sum(fake.ran) == 7
    assert stage.runtime.run() == {}


def test_states_pushed_while_a_model_fails_come_after():
    stage = Stage(0)
    (brain,) = stage.ids
    fake = stage.fakes[0]
    fake.failing = True
    fake.during = lambda: stage.runtime.push(brain, 0, obs(2))
    stage.push_all(value=1)
    with pytest.raises(RuntimeErrors):
        stage.runtime.run()
    fake.during = lambda: None
    stage.push_all(value=3)
    fake.failing = False
    np.testing.assert_array_equal(stage.runtime.run()[brain][0]["out"], [3, 0, 0])
    assert fake.ran == [1, 1]
    assert stage.runtime.run() == {}


def test_an_interrupt_loses_nothing():
    stage = Stage(0)

    def interrupt():
        raise KeyboardInterrupt

    stage.fakes[0].during = interrupt
    stage.push_all(value=1)
    with pytest.raises(KeyboardInterrupt):
        stage.runtime.run()
    stage.fakes[0].during = lambda: None
    np.testing.assert_array_equal(stage.runtime.run()[stage.ids[0]][0]["out"], [1, 0, 0])


# Agents


def test_agents_are_begun_and_ended_at_their_model():
    stage = Stage(0, 0)
    stage.runtime.begin_agent(stage.ids[1], 4)
    assert [fake.agents for fake in stage.fakes] == [[], [4]]
    stage.runtime.end_agent(stage.ids[1], 4)
    assert [fake.agents for fake in stage.fakes] == [[], []]


def test_what_waits_of_an_agent_ends_with_it():
    stage = Stage(0)
    (brain,) = stage.ids
    for agent in range(4):
        stage.runtime.begin_agent(brain, agent)
        stage.runtime.push(brain, agent, obs(agent))
    for agent in (1, 3):
        stage.runtime.end_agent(brain, agent)
    assert {agent: response["out"][0] for agent, response in stage.runtime.run()[brain].items()} == {0: 0, 2: 2}
    stage.runtime.push(brain, 0, obs())
    stage.runtime.end_agent(brain, 0)
    assert stage.runtime.run() == stage.runtime.run_for(1) == {}


def test_an_agent_that_ends_in_a_batch_that_failed_gets_no_answer():
    stage = Stage()
    brain = stage.add(Brain(stage.clock, take=lambda count: min(count, 2)))
    fake = stage.fakes[0]
    fake.failing, fake.fail_at_call = True, 1
    for agent in range(4):
        stage.runtime.begin_agent(brain, agent)
        stage.runtime.push(brain, agent, obs(agent))
    with pytest.raises(RuntimeErrors):
        stage.runtime.run()
    for agent in (0, 2):
        stage.runtime.end_agent(brain, agent)
    stage.runtime.begin_agent(brain, 0)
    fake.failing = False
    assert {agent: response["out"][0] for agent, response in stage.runtime.run()[brain].items()} == {1: 1, 3: 3}


def test_hidden_state_is_kept_by_brain_and_agent():
    runtime = mj.Runtime()
    brains = [runtime.add_inferer(mj.RecurrentTracker.wrap(summing())) for _ in range(2)]
    state = {(brain, agent): 0.0 for brain in brains for agent in range(3)}
    for brain, agent in state:
        runtime.begin_agent(brain, agent)
    rng = np.random.default_rng(0)
    for frame in range(20):
        for brain, agent in state:
            if rng.random() < 0.5:
                runtime.push(brain, agent, {"obs": [float(agent + frame % 3)]})
                state[brain, agent] = 2 * state[brain, agent] % 1024 + agent + frame % 3
        for brain, out in runtime.run().items():
            for agent, response in out.items():
                assert response["act"][0] % 1024 == state[brain, agent] % 1024


def test_an_agent_that_was_not_begun_can_be_begun_late():
    runtime = mj.Runtime()
    brain = runtime.add_inferer(mj.RecurrentTracker.wrap(summing()))
    runtime.push(brain, 1, {"obs": [1.0]})
    with pytest.raises(RuntimeErrors) as caught:
        runtime.run()
    assert isinstance(caught.value.failures[brain], UnknownAgentError)
    runtime.begin_agent(brain, 1)
    np.testing.assert_array_equal(runtime.run()[brain][1]["act"], [1])


# Threads


@pytest.mark.parametrize("method", [lambda r: r.run_threaded(), lambda r: r.run_for_threaded(60)], ids=["run", "run_for"])
def test_threads_give_the_same_answers(method):
    runtime = mj.Runtime(threads=4)
    brains = [runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(factor), [1, 2, 3])) for factor in range(1, 9)]
    for index, brain in enumerate(brains):
        runtime.extend(brain, {agent: {"obs": np.full(3, agent, np.float32)} for agent in range(1 + index % 3)})
    responses = method(runtime)
    assert sorted(responses) == brains
    for index, brain in enumerate(brains):
        assert {agent: response["out"].tolist() for agent, response in responses[brain].items()} == {
            agent: [agent * (index + 1)] * 3 for agent in range(1 + index % 3)
        }


def test_threads_overlap():
    runtime = mj.Runtime(threads=4)
    meeting = threading.Barrier(4, timeout=30)
    for _ in range(4):
        fake = Brain()
        fake.during = meeting.wait
        runtime.push(runtime.add_inferer(fake), 0, obs())
    assert len(runtime.run_threaded()) == 4


def test_models_on_accelerators_overlap_without_being_asked():
    runtime = mj.Runtime(threads=3)
    meeting = threading.Barrier(3, timeout=30)
    for _ in range(3):
        fake = Brain()
        fake.device = SimpleNamespace(platform="cuda")  # pyright: ignore[reportAttributeAccessIssue]
        fake.during = meeting.wait
        runtime.push(runtime.add_inferer(fake), 0, obs())
    assert len(runtime.run()) == 3


def test_a_budget_holds_for_all_threads():
    stage = Stage(*[1.0] * 6, threads=1)
    stage.push_all()
    stage.runtime.run()
    stage.push_all()
    assert len(stage.runtime.run_for_threaded(2.5)) == 2
    assert len(stage.runtime.run_for_threaded(0.0)) == 1
    assert len(stage.runtime.run_threaded()) == 3


def test_compiles_are_forbidden_in_helper_threads_too():
    runtime = mj.Runtime(threads=3)
    for _ in range(3):
        runtime.push(runtime.add_inferer(mj.MemoizingDynamicInferer(scaling())), 0, {"obs": np.ones(3, np.float32)})
    with mj.forbid_compile(), pytest.raises(RuntimeErrors) as caught:
        runtime.run_threaded()
    assert len(caught.value.failures) == 3


def test_pushes_and_runs_from_many_threads():
    """Every state that is pushed once is answered exactly once, to the right agent, whoever runs."""
    runtime = mj.Runtime(threads=2)
    brains = [runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(index + 1), bucketing=[64])) for index in range(4)]
    for brain in brains:
        runtime.push(brain, 10**6, {"obs": np.zeros(3, np.float32)})
    runtime.run()
    answers: list[tuple] = []
    lock, stop = threading.Lock(), threading.Event()

    def collect(responses):
        with lock:
            answers.extend((brain, agent, response["out"][0]) for brain, out in responses.items() for agent, response in out.items())

    def run(index):
        while not stop.is_set():
            collect(
                [runtime.run, runtime.run_threaded, lambda: runtime.run_for(0.0005), lambda: runtime.run_for_threaded(0.0005)][index % 4]()
            )

    runners = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for runner in runners:
        runner.start()

    def push(worker):
        for turn in range(50):
            for brain in brains:
                agent = worker * 1000 + turn
                runtime.push(brain, agent, {"obs": np.full(3, agent, np.float32)})

    in_threads(4, push)
    stop.set()
    for runner in runners:
        runner.join(60)
    collect(runtime.run())
    expected = {
        (brain, w * 1000 + t, float((w * 1000 + t) * (i + 1))) for i, brain in enumerate(brains) for w in range(4) for t in range(50)
    }
    assert len(answers) == len(expected)
    assert set(answers) == expected


def test_removing_waits_for_the_batch_under_way():
    stage = Stage(0)
    (brain,) = stage.ids
    entered, leave = threading.Event(), threading.Event()

    def during():
        entered.set()
        leave.wait(10)

    stage.fakes[0].during = during
    stage.push_all()
    answers: Future[dict] = Future()
    runner = threading.Thread(target=lambda: answers.set_result(stage.runtime.run()))
    runner.start()
    entered.wait(10)
    remover = threading.Thread(target=stage.runtime.remove_inferer, args=(brain,))
    remover.start()
    time.sleep(0.02)
    assert remover.is_alive()
    leave.set()
    assert list(answers.result(10)) == [brain]
    remover.join(10)
    assert stage.runtime.brains == []
    runner.join(10)


def test_wrapped_policies_run_like_alone():
    """Noise and hidden state around one policy, against the same wrappers without a runtime."""

    def wrapped():
        return mj.RecurrentTracker.wrap(mj.EpsilonInjector(mj.MemoizingDynamicInferer(policy()), "epsilon", mj.ConstantGenerator(0.5)))

    runtime, alone = mj.Runtime(), wrapped()
    brain = runtime.add_inferer(wrapped())
    rng = np.random.default_rng(3)
    for agent in range(3):
        runtime.begin_agent(brain, agent)
        alone.begin_agent(agent)
    for _ in range(3):
        states = {agent: {"obs": rng.standard_normal(4).astype(np.float32)} for agent in range(3)}
        runtime.extend(brain, states)
        expected, got = alone.infer_batch(states), runtime.run()[brain]
        for agent in states:
            np.testing.assert_array_equal(got[agent]["act"], expected[agent]["act"])
