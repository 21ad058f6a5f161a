"""A runtime under threads: the same answers, in time, and nothing lost or given twice."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import memojax as mj
from memojax.errors import (
    RuntimeErrors,
)

from ..helpers import in_threads, policy, scaling
from ..runtime_fakes import Brain, Stage, obs

# Threads


@pytest.mark.parametrize(
    "method", [lambda r: r.run_threaded(), lambda r: r.run_for_threaded(60)], ids=["run", "run_for"]
)
def test_threads_give_the_same_answers(method):
    runtime = mj.Runtime(threads=4)
    brains = [
        runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(factor), [1, 2, 3])) for factor in range(1, 9)
    ]
    for index, brain in enumerate(brains):
        runtime.extend(
            brain, {agent: {"obs": np.full(3, agent, np.float32)} for agent in range(1 + index % 3)}
        )
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


def test_models_on_accelerators_overlap_in_run():
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
        runtime.push(
            runtime.add_inferer(mj.MemoizingDynamicInferer(scaling())), 0, {"obs": np.ones(3, np.float32)}
        )
    with mj.forbid_compile(), pytest.raises(RuntimeErrors) as caught:
        runtime.run_threaded()
    assert len(caught.value.failures) == 3


def test_pushes_and_runs_from_many_threads():
    """Every pushed state is answered exactly once, to the right agent, whichever thread runs."""
    runtime = mj.Runtime(threads=2)
    brains = [
        runtime.add_inferer(mj.MemoizingDynamicInferer(scaling(index + 1), bucketing=[64]))
        for index in range(4)
    ]
    for brain in brains:
        runtime.push(brain, 10**6, {"obs": np.zeros(3, np.float32)})
    runtime.run()
    answers: list[tuple] = []
    lock, stop = threading.Lock(), threading.Event()

    def collect(responses):
        with lock:
            answers.extend(
                (brain, agent, response["out"][0])
                for brain, out in responses.items()
                for agent, response in out.items()
            )

    def run(index):
        while not stop.is_set():
            collect(
                [
                    runtime.run,
                    runtime.run_threaded,
                    lambda: runtime.run_for(0.0005),
                    lambda: runtime.run_for_threaded(0.0005),
                ][index % 4]()
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
        (brain, w * 1000 + t, float((w * 1000 + t) * (i + 1)))
        for i, brain in enumerate(brains)
        for w in range(4)
        for t in range(50)
    }
    assert len(answers) == len(expected)
    assert set(answers) == expected


def test_removing_waits_for_the_batch_under_way():
    stage = Stage(0)
    (brain,) = stage.ids
    entered, leave = stage.hold(stage.fakes[0])
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
    """A policy with noise and hidden state answers as the same wrappers do without a runtime."""

    def wrapped():
        return mj.RecurrentTracker.wrap(
            mj.EpsilonInjector(mj.MemoizingDynamicInferer(policy()), "epsilon", mj.ConstantGenerator(0.5))
        )

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


def test_a_frame_begins_while_another_thread_delivers_one() -> None:
    runtime = mj.Runtime()
    brain = runtime.add_inferer(mj.load("acrobot_ppo", preload=[1]))

    class Delivered:
        number, earlier = -1, {}

        @property
        def abandoned(self) -> bool:
            # Another thread returns from its run, and ends, while this one looks.
            runtime._frames.pop(self.number, None)
            return True

        def all_responses(self) -> Any:
            raise AssertionError("its caller has these responses already")

    frames: Any = runtime._frames
    frames[-1] = Delivered()
    runtime.push(brain, 7, {"obs": np.zeros(6, np.float32)})
    assert list(runtime.run()[brain]) == [7]
