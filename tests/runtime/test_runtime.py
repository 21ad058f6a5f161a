"""Many models in one frame: which run, which wait, and their answers."""

from __future__ import annotations

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

from ..helpers import summing
from ..runtime_fakes import Brain, Broken, Stage, obs

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
    assert (
        stage.runtime.run()
        == stage.runtime.run_for(1)
        == stage.runtime.run_threaded()
        == stage.runtime.run_for_threaded(1)
        == {}
    )
    assert stage.fakes[0].ran == []


def test_a_newer_state_takes_the_place_of_one_that_waits():
    stage = Stage(0)
    for value in range(3):
        stage.push_all(agent=1, value=value)
    assert stage.runtime.waiting(stage.ids[0]) == [1]
    np.testing.assert_array_equal(stage.runtime.run()[stage.ids[0]][1]["out"], [2, 0, 0])
    assert stage.fakes[0].ran == [1]


def test_extend_queues_many_and_refreshes_waiting_agents():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(4)})
    stage.runtime.extend(brain, [(agent, obs(agent, 1)) for agent in (5, 2, 0)])
    out = stage.runtime.run()[brain]
    assert {agent: tuple(response["out"][:2]) for agent, response in out.items()} == {
        0: (0, 1),
        1: (1, 0),
        2: (2, 1),
        3: (3, 0),
        5: (5, 1),
    }


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


def test_an_agents_waiting_state_ends_with_it():
    stage = Stage(0)
    (brain,) = stage.ids
    for agent in range(4):
        stage.runtime.begin_agent(brain, agent)
        stage.runtime.push(brain, agent, obs(agent))
    for agent in (1, 3):
        stage.runtime.end_agent(brain, agent)
    assert {agent: response["out"][0] for agent, response in stage.runtime.run()[brain].items()} == {
        0: 0,
        2: 2,
    }
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
    assert {agent: response["out"][0] for agent, response in stage.runtime.run()[brain].items()} == {
        1: 1,
        3: 3,
    }


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


def test_arguments_of_other_types_are_refused_by_name() -> None:
    runtime = mj.Runtime()
    for given in (mj.policies.bundled("acrobot_ppo"), None, 5):
        with pytest.raises(mj.errors.IncompatibleModelError, match="expected an inferer, got .*memojax.load"):
            runtime.add_inferer(given)  # pyright: ignore[reportArgumentType]
    brain = runtime.add_inferer(mj.load(mj.policies.bundled("acrobot_ppo")))
    with pytest.raises(mj.errors.IncompatibleModelError, match="expected an inferer"):
        runtime.replace_inferer(brain, "newer.onnx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(mj.errors.InputError, match="state of agent 3 is list"):
        runtime.push(brain, 3, [0.0] * 6)  # pyright: ignore[reportArgumentType]
    assert not runtime.waiting(brain)
    with pytest.raises(mj.errors.InputError, match="threads is a positive"):
        mj.Runtime(threads=0)
