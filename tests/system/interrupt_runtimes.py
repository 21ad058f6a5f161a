"""Interrupts of calls of runtimes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

import memojax as mj

from ..helpers import summing
from ..runtime_fakes import Brain
from .interrupt_case import Versions, World, case
from .interrupt_trackers import observed, tracked

# --- Runtime
# -------------------------------------------------------------------------------------------------------


def queued(agent: int, version: int) -> dict[str, np.ndarray]:
    return {"obs": np.array([agent, version, 0], np.float32)}


class Stage:
    """A runtime with two brains that return their inputs, and one with hidden state; all agents are at 1."""

    def __init__(self, sealed: bool = False) -> None:
        self.runtime = mj.Runtime(threads=2)
        self.fakes = [Brain(), Brain()]
        self.tracker: Any = tracked()
        self.brains = [self.runtime.add_inferer(inferer) for inferer in (*self.fakes, self.tracker)]
        for agent in (1, 2, 3):
            self.runtime.push(self.brains[0], agent, queued(agent, 1))
            self.runtime.push(self.brains[1], agent, queued(agent, 1))
            self.runtime.begin_agent(self.brains[2], agent)
            self.runtime.push(self.brains[2], agent, observed(agent))
        if sealed:
            self.fakes[0].failing = True
            try:
                self.runtime.run()
            except mj.errors.RuntimeErrors as failure:
                assert list(failure.failures) == [self.brains[0]]
            self.fakes[0].failing = False

    def seen(self, responses: Any) -> list[dict[int, float]]:
        """Versions that the first two brains answered, and the outputs of the third."""
        first, second, third = (responses.get(brain, {}) for brain in self.brains)
        return [
            *({agent: float(r["out"][1]) for agent, r in part.items()} for part in (first, second)),
            {agent: float(r["act"][0]) for agent, r in third.items()},
        ]

    def still_works(self) -> None:
        """Every brain takes and answers new states."""
        for brain in self.brains[:2]:
            self.runtime.push(brain, 8, queued(8, 5))
        self.runtime.push(self.brains[2], 1, {"obs": np.zeros(1)})
        found = self.seen(self.runtime.run_for(1e9))
        assert found[0].get(8) == found[1].get(8) == 5, f"a brain is stuck: {found}"
        assert 1 in found[2], "the tracker is stuck"
        assert not any(self.runtime.waiting(brain) for brain in self.brains)


ONCE = {1: 2.0, 2: 3.0, 3: 4.0}
"""The outputs of the brain with hidden state for its first states."""


@case("run")
@case("run_for", name="run for")
@case("run_threaded", name="run threaded")
@case("run_for, sealed", name="run for, after a failure")
def run(how: str) -> World:
    sealed = "sealed" in how
    stage = Stage(sealed)
    name = how.split(",")[0]
    method = getattr(stage.runtime, name)
    given = (1e9,) if "for" in name else ()
    ones = dict.fromkeys((1, 2, 3), 1.0)
    wanted = [ones, {} if sealed else ones, {} if sealed else ONCE]
    returned: list[Any] = []

    def call() -> None:
        returned.append(method(*given))

    def collect() -> Any:
        try:
            return stage.runtime.run()
        except mj.errors.RuntimeErrors as failure:
            return failure.responses

    def check(interrupted: bool) -> None:
        found = stage.seen(returned[0]) if returned else [{}, {}, {}]
        if interrupted and not returned:
            found = stage.seen(collect())
        end = time.monotonic() + 10
        while how == "run_threaded" and found != wanted and time.monotonic() < end:
            time.sleep(0.001)  # Another thread still works on it.
            found = [{**a, **b} for a, b in zip(found, stage.seen(collect()), strict=True)]
        assert found == wanted, f"answers {found}"
        stage.still_works()

    def guarded() -> None:
        try:
            call()
        except mj.errors.RuntimeErrors as failure:  # A memory error in one brain.
            returned.append({})
            rest = stage.runtime.run()
            for part in (failure.responses, rest):
                for brain, responses in part.items():
                    returned[0].setdefault(brain, {}).update(responses)

    return guarded, check


def queue_world(call: Callable[[Stage], Any], sealed: bool, before: Versions, after: Versions) -> World:
    """The states that wait for the first brain: agent -> version."""
    stage = Stage(sealed)

    def check(interrupted: bool) -> None:
        waiting = set(stage.runtime.waiting(stage.brains[0]))
        assert waiting == set(after) or (interrupted and waiting == set(before)), f"waiting {waiting}"
        assert stage.runtime._brains[stage.brains[0]].place[0] > 0, "it is not in the queue"
        found = stage.seen(stage.runtime.run())[0]
        for _ in range(3):
            found.update(stage.seen(stage.runtime.run())[0])
        assert found == after or (interrupted and found == before), f"answers {found}"
        stage.still_works()

    return lambda: call(stage), check


def _queue_calls() -> dict[str, Callable[[Stage], Any]]:
    return {
        "queue a new agent": lambda s: s.runtime.push(s.brains[0], 4, queued(4, 2)),
        "queue a newer state": lambda s: s.runtime.push(s.brains[0], 2, queued(2, 2)),
        "queue many": lambda s: s.runtime.extend(s.brains[0], {a: queued(a, 2) for a in (2, 4, 3, 5)}),
    }


_QUEUED: dict[str, Versions] = {
    "queue a new agent": {4: 2},
    "queue a newer state": {2: 2},
    "queue many": {2: 2, 3: 2, 4: 2, 5: 2},
}
for _name, _queue_call in _queue_calls().items():
    for _sealed in (False, True):
        _three = dict.fromkeys((1, 2, 3), 1)
        case(
            _queue_call,
            _sealed,
            _three,
            {**_three, **_QUEUED[_name]},
            name=f"{_name}{', after a failure' * _sealed}",
        )(queue_world)


@case()
def queue_the_first_agent() -> World:
    runtime = mj.Runtime()
    brain = runtime.add_inferer(Brain())

    def check(interrupted: bool) -> None:
        waits = runtime.waiting(brain)
        assert waits in ([4], []) if interrupted else waits == [4]
        found = {agent: float(r["out"][1]) for agent, r in runtime.run().get(brain, {}).items()}
        assert found == dict.fromkeys(waits, 2.0), "it waits for ever"

    return lambda: runtime.push(brain, 4, queued(4, 2)), check


@case("begin")
@case("end", name="end an agent of a runtime")
def begin_an_agent_of_a_runtime(how: str) -> World:
    stage = Stage()
    brain = stage.brains[2]

    def call() -> None:
        (stage.runtime.begin_agent if how == "begin" else stage.runtime.end_agent)(
            brain, 9 if how == "begin" else 3
        )

    def check(interrupted: bool) -> None:
        agent = 9 if how == "begin" else 3
        known = agent in stage.tracker.agents
        if interrupted:
            try:
                call()
            except mj.errors.UnknownAgentError:
                assert how == "end"
                assert not known
        assert (agent in stage.tracker.agents) == (how == "begin")
        assert stage.runtime.waiting(brain) == ([1, 2, 3] if how == "begin" else [1, 2])
        assert set(stage.seen(stage.runtime.run())[2]) == ({1, 2, 3} if how == "begin" else {1, 2})
        stage.still_works()

    return call, check


@case()
def remove_a_brain() -> World:
    stage = Stage()

    def call() -> None:
        try:
            stage.runtime.remove_inferer(stage.brains[0])
        except mj.errors.OrphanedDataError as failure:
            assert list(failure.agents.values()) == [(1, 2, 3)]

    def check(interrupted: bool) -> None:
        gone = stage.brains[0] not in stage.runtime.brains
        assert gone or interrupted
        found = stage.seen(stage.runtime.run())
        assert found[0] == ({} if gone else dict.fromkeys((1, 2, 3), 1.0))
        assert len(found[1]) == 3

    return call, check


@case()
def swap_a_brain() -> World:
    stage = Stage()
    newer = summing()

    def call() -> Any:
        return stage.runtime.replace_inferer(stage.brains[2], newer)

    def check(interrupted: bool) -> None:
        future = call() if stage.tracker.inferer is not newer else None
        assert future is None or isinstance(future, Future)
        assert stage.tracker.inferer is newer
        assert stage.seen(stage.runtime.run())[2] == ONCE
        stage.still_works()

    return call, check


@case()
def infer_one_beside_the_queue() -> World:
    stage = Stage()

    def call() -> Any:
        return stage.runtime.infer_single(stage.brains[0], queued(6, 6), 6)

    def check(interrupted: bool) -> None:
        assert call()["out"][1] == 6
        assert stage.seen(stage.runtime.run())[0] == dict.fromkeys((1, 2, 3), 1.0)
        stage.still_works()

    return call, check
