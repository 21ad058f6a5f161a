"""A brain's policy replaced while it runs: no stall, no agent forgotten, no answer lost."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

import memojax as mj
from memojax.errors import IncompatibleModelError

from ..helpers import scaling, summing
from ..runtime_fakes import Brain, Broken, Stage, obs


def test_a_swap_compiles_first_and_then_takes_over():
    stage = Stage(0.01)
    (brain,) = stage.ids
    for size in (2, 4):
        stage.runtime.extend(brain, {agent: obs(agent) for agent in range(size)})
        stage.runtime.run()
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(3)})
    new = Brain(stage.clock, 0.02, ready=set())
    handle = stage.runtime.replace_inferer(brain, new)
    assert sorted(new.asked) == [2, 3, 4]
    new.finish(2)
    new.finish(4)
    assert not handle.done()
    assert stage.runtime.inferer(brain) is stage.fakes[0]
    assert sorted(stage.runtime.run_for(0)[brain]) == [0, 1, 2]
    new.finish(3)
    assert handle.result(0) is stage.fakes[0]
    assert stage.runtime.inferer(brain) is new
    stage.runtime.extend(brain, {agent: obs(agent) for agent in range(3)})
    assert sorted(stage.runtime.run_for(0)[brain]) == [0, 1, 2]
    assert new.ran == [3]
    assert new.compiled_in_frame == []


def test_the_new_model_answers_waiting_states():
    runtime = mj.Runtime()
    brain = runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(2)))
    runtime.push(brain, 1, {"obs": np.ones(3, np.float32)})
    runtime.replace_inferer(brain, mj.MemoizingDynamicInferer(scaling(5))).result(60)
    with mj.forbid_compile():
        np.testing.assert_array_equal(runtime.run()[brain][1]["out"], [5, 5, 5])


@pytest.mark.parametrize(
    "wrap",
    [
        mj.RecurrentTracker.wrap,
        lambda fake: fake.into_stateful(mj.RecurrentTrackerWrapper(mj.BaseWrapper(), fake)),
    ],
)
def test_hidden_state_outlives_a_swap(wrap):
    runtime = mj.Runtime()
    brain = runtime.add_inferer(wrap(summing()))
    runtime.begin_agent(brain, 1)
    runtime.push(brain, 1, {"obs": [1.0]})
    runtime.run()
    new = summing()
    runtime.replace_inferer(brain, new).result(10)
    runtime.push(brain, 1, {"obs": [1.0]})
    np.testing.assert_array_equal(runtime.run()[brain][1]["act"], [3])
    assert new.sizes == [1]


def test_agents_are_known_to_a_new_model():
    stage = Stage(0)
    (brain,) = stage.ids
    for agent in (3, 1):
        stage.runtime.begin_agent(brain, agent)
    new = Brain()
    stage.runtime.replace_inferer(brain, new).result(10)
    assert sorted(new.agents) == [1, 3]


def test_a_swap_that_does_not_fit_changes_nothing():
    stage = Stage(0)
    (brain,) = stage.ids
    with pytest.raises(IncompatibleModelError, match="obs"):
        stage.runtime.replace_inferer(brain, Brain(width=4))
    wrapped = stage.runtime.add_inferer(mj.RecurrentTracker.wrap(summing()))
    with pytest.raises(IncompatibleModelError, match="without wrappers"):
        stage.runtime.replace_inferer(wrapped, mj.RecurrentTracker.wrap(summing()))
    bare = stage.runtime.add_inferer(summing())
    with pytest.raises(IncompatibleModelError, match="wrap it like the old one"):
        stage.runtime.replace_inferer(bare, mj.RecurrentTracker.wrap(summing()))
    assert stage.runtime.inferer(brain) is stage.fakes[0]


def test_a_swap_whose_compile_fails_leaves_the_old_model():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.push_all()
    new = Brain(ready=set())
    handle = stage.runtime.replace_inferer(brain, new)
    new.finish(1, Broken("no plan"))
    with pytest.raises(Broken):
        handle.result(0)
    assert stage.runtime.inferer(brain) is stage.fakes[0]


def test_a_swap_can_be_cancelled():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.push_all()
    new, newer = Brain(ready=set()), Brain(ready=set())
    first = stage.runtime.replace_inferer(brain, new)
    second = stage.runtime.replace_inferer(brain, newer)
    assert first.cancelled()
    new.finish(1)
    newer.finish(1)
    assert second.result(0) is stage.fakes[0]
    assert stage.runtime.inferer(brain) is newer
    third = stage.runtime.replace_inferer(brain, Brain(ready=set()))
    stage.runtime.run()
    stage.runtime.remove_inferer(brain)
    with pytest.raises(CancelledError):
        third.result(0)


def test_a_swap_does_not_happen_under_a_running_batch():
    stage = Stage(0)
    (brain,) = stage.ids
    entered, leave = stage.hold(stage.fakes[0])
    stage.push_all()
    runner = threading.Thread(target=stage.runtime.run)
    runner.start()
    entered.wait(10)
    handle: Future[mj.Inferer] = Future()
    swapper = threading.Thread(
        target=lambda: handle.set_result(stage.runtime.replace_inferer(brain, Brain()).result(10))
    )
    swapper.start()
    time.sleep(0.05)
    assert not handle.done()
    assert stage.runtime.inferer(brain) is stage.fakes[0]
    leave.set()
    runner.join(10)
    assert handle.result(10) is stage.fakes[0]
    swapper.join(10)


def test_sizes_that_come_into_use_meanwhile_are_compiled_too():
    stage = Stage(0.01)
    (brain,) = stage.ids

    def play(size):
        stage.runtime.extend(brain, {agent: obs(agent) for agent in range(size)})
        return sorted(stage.runtime.run_for(0)[brain])

    play(2)
    new = Brain(stage.clock, 0.02, ready=set())
    handle = stage.runtime.replace_inferer(brain, new)
    assert play(5) == list(range(5))
    new.finish(2)
    assert not handle.done()
    assert sorted(new.asked) == [2, 5]
    new.finish(5)
    assert handle.result(0) is stage.fakes[0]
    assert play(5) == list(range(5))
    assert new.compiled_in_frame == []


def test_a_swap_does_not_wait_for_ever_for_new_sizes():
    stage = Stage(0.01)
    (brain,) = stage.ids
    new = Brain(stage.clock, 0.02, ready=set())
    stage.push_all()
    handle = stage.runtime.replace_inferer(brain, new)
    size = 0
    for size in range(2, 40):
        if handle.done():
            break
        stage.runtime.extend(brain, {agent: obs(agent) for agent in range(size)})
        stage.runtime.run()
        new.finish(max(new.asked))
    assert handle.result(0) is stage.fakes[0]
    assert size < 15


def test_the_future_raises_errors_of_the_preparation():
    stage = Stage(0)
    (brain,) = stage.ids
    stage.push_all()
    new = Brain(ready=set())

    def refuse(count):
        raise Broken("no such size")

    new.prepare = refuse
    with pytest.raises(Broken):
        stage.runtime.replace_inferer(brain, new).result(0)
    assert stage.runtime.inferer(brain) is stage.fakes[0]


# A real recurrent policy


RECURRENT = mj.policies.bundled("recurrent_lstm")
AGENTS = 5


class Oracle:
    """The policy by hand: hidden state by agent, one agent at a time, with whichever weights are said."""

    def __init__(self):
        self.state = {}

    def begin(self, agent):
        self.state[agent] = {name: np.zeros(32, np.float32) for name in ("h_in", "c_in")}

    def answer(self, model, agent, obs):
        out = model.infer_single({"obs": obs, **self.state[agent]})
        self.state[agent] = {"h_in": np.array(out["h_out"]), "c_in": np.array(out["c_out"])}
        return out["logits"]


def scaled_by(factor):
    typed = mj.TypedModel.from_model(RECURRENT)
    return typed.with_params(
        {name: np.asarray(value) * np.float32(factor) for name, value in typed.params.items()}
    )


def sizes_in_frames(rng, frames):
    """The agents of each frame; sizes 1 to `AGENTS` come up from the start."""
    first = [list(range(size)) for size in range(1, AGENTS + 1)]
    return first + [
        sorted(rng.choice(AGENTS, rng.integers(1, AGENTS + 1), replace=False).tolist()) for _ in range(frames)
    ]


class Game:
    """One recurrent brain and its oracle; every frame runs where compiles are forbidden."""

    def __init__(self):
        self.old, self.oracle = mj.load(RECURRENT, preload=[1]), Oracle()
        self.runtime = mj.Runtime()
        policy = mj.RecurrentTracker.wrap(mj.load(RECURRENT, preload=range(1, AGENTS + 1)))
        self.brain = self.runtime.add_inferer(policy)
        for agent in range(AGENTS):
            self.runtime.begin_agent(self.brain, agent)
            self.oracle.begin(agent)

    def frame(self, rng, agents):
        """Push for `agents` and run; agent -> its observation and its answer."""
        seen = {agent: rng.normal(size=2).astype(np.float32) for agent in agents}
        with mj.forbid_compile():
            self.runtime.extend(self.brain, {agent: {"obs": value} for agent, value in seen.items()})
            answers = self.runtime.run_for(60.0)[self.brain]
        assert sorted(answers) == sorted(agents)
        return {agent: (seen[agent], answers[agent]["logits"]) for agent in agents}

    def check(self, played, model):
        for agent, (saw, logits) in played.items():
            np.testing.assert_allclose(logits, self.oracle.answer(model, agent, saw), rtol=1e-4, atol=1e-5)

    def fits(self, played, model):
        """Whether `model` would have given these answers; nothing is noted."""
        return all(
            np.allclose(
                logits,
                model.infer_single({"obs": saw, **self.oracle.state[agent]})["logits"],
                rtol=1e-4,
                atol=1e-5,
            )
            for agent, (saw, logits) in played.items()
        )


def test_a_swap_to_equal_weights_changes_no_answer(rng):
    """The answers equal those of a brain without swaps to the last bit, and no frame compiles."""
    swapped, steady = Game(), Game()
    played = sizes_in_frames(rng, 40)
    seeds = rng.integers(1 << 30, size=len(played))
    handle, swaps = None, 0
    for number, agents in enumerate(played):
        if number >= AGENTS and (handle is None or handle.done()) and swaps < 3:
            handle, swaps = swapped.runtime.replace_inferer(swapped.brain, mj.load(RECURRENT)), swaps + 1
        one = swapped.frame(np.random.default_rng(seeds[number]), agents)
        other = steady.frame(np.random.default_rng(seeds[number]), agents)
        for agent in agents:
            np.testing.assert_array_equal(one[agent][1], other[agent][1])
    assert handle is not None
    handle.result(120)
    last = np.random.default_rng(1), list(range(AGENTS))
    np.testing.assert_array_equal(
        [logits for _, logits in swapped.frame(*last).values()],
        [logits for _, logits in steady.frame(np.random.default_rng(1), last[1]).values()],
    )


def test_new_weights_take_over_and_agents_keep_their_state(rng):
    game, other = Game(), scaled_by(0.5)
    played = sizes_in_frames(rng, 5)
    for agents in played:
        game.check(game.frame(rng, agents), game.old)
    new, current, frames = mj.load(other, preload=[1]), game.old, 0
    handle = game.runtime.replace_inferer(game.brain, mj.MemoizingDynamicInferer(other))
    over = False
    while not over:
        over = handle.done()
        now = game.frame(rng, list(range(AGENTS)))
        if over or not game.fits(now, current):
            current = new  # The swap may have come during this turn; from now on it holds.
        game.check(now, current)
        frames += not over
    assert frames > 0
    for agents in played:
        game.check(game.frame(rng, agents), new)
    assert handle.result(0).api == new.api


def test_a_policy_that_does_not_fit_changes_nothing(rng):
    """A bad policy changes neither the brain nor a swap in progress."""
    game = Game()
    for agents in sizes_in_frames(rng, 3):
        game.check(game.frame(rng, agents), game.old)
    before = game.runtime.inferer(game.brain)
    with pytest.raises(IncompatibleModelError, match="obs: float32"):
        game.runtime.replace_inferer(game.brain, mj.load(mj.policies.bundled("acrobot_ppo")))
    handle = game.runtime.replace_inferer(game.brain, mj.load(RECURRENT))
    with pytest.raises(IncompatibleModelError):
        game.runtime.replace_inferer(game.brain, mj.load(mj.policies.bundled("pendulum_ppo")))
    assert not handle.cancelled()
    assert game.runtime.inferer(game.brain) is before
    handle.result(120)
    for agents in sizes_in_frames(rng, 3):
        game.check(game.frame(rng, agents), game.old)
