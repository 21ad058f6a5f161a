"""What `interrupts` interrupts: each case makes a world, a call in it, and a check that the world is as
before the call or as after."""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

import memojax as mj
from memojax.plans.cache import PlanCache
from memojax.plans.disk_cache import DiskCache

from ..helpers import FakeInferer, counting_lstm, summing
from ..runtime_fakes import Brain

Check = Callable[[bool], None]
World = tuple[Callable[[], Any], Check]
Versions = Mapping[int, int]


@dataclass(frozen=True)
class Case:
    """`scenario` gives a call and its check; lines of the files that begin with `skip` are not points; the
    tests run `most` of them."""

    scenario: Callable[[], World]
    skip: tuple[str, ...] = ()
    most: int = 300


CASES: dict[str, Case] = {}
COMPILING = (
    "lowering/",
    "ops/",
    "model/",
    "stablehlo/",
    "xla/",
    "plans/hoist",
    "plans/numpy_eval",
    "display/",
)
PLANNING = (
    "plans/compiler",
    "plans/candidates",
    "plans/packing",
    "plans/input_buffers",
    "plans/plan.py",
    "plans/dis",
)
"""What runs while a plan is made: it holds nothing that outlives the call."""


def case(*given: Any, skip: tuple[str, ...] = (), name: str = "", most: int = 300) -> Callable[[Any], Any]:
    """Register a function that makes a scenario from `given`."""

    def register(make: Callable[..., World]) -> Callable[..., World]:
        CASES[name or make.__name__.replace("_", " ")] = Case(functools.partial(make, *given), skip, most)
        return make

    return register


@functools.cache
def policy() -> mj.MemoizingDynamicInferer:
    """out = 10 a + b, in batches of at most four; all plans are there."""
    typed = mj.TypedModel.from_function(
        lambda _, x: {"out": 10 * x["a"] + x["b"]}, (), {"a": ((2,), np.float32), "b": ((2,), np.float32)}
    )
    return mj.MemoizingDynamicInferer(typed, range(1, 5), max_batch_size=4)


def state(agent: int, version: int) -> dict[str, np.ndarray]:
    return {"a": np.array([agent, version], np.float32), "b": np.array([version, agent], np.float32)}


def right(agent: int, version: int) -> list[float]:
    return [10 * agent + version, 10 * version + agent]


def answers(responses: Mapping[int, Any]) -> dict[int, list[float]]:
    return {agent: response["out"].tolist() for agent, response in responses.items()}


def expected(versions: Versions) -> dict[int, list[float]]:
    return {agent: right(agent, version) for agent, version in versions.items()}


# --- Batcher
# -------------------------------------------------------------------------------------------------------------------------


def batch_world(
    before: Versions, after: Versions, call: Callable[[mj.Batcher], Any], retry: bool, failed: bool = False
) -> World:
    """A batcher with the agents of `before`, to which `call` does something; `failed`: after an execute that
    broke off at row 4."""
    batcher = mj.Batcher(policy(), capacity=len(before))
    for agent, version in before.items():
        batcher.push(agent, state(agent, version))
    if failed:
        broken = _breaking(batcher, 2)
        assert batcher.begun
        del broken

    def check(interrupted: bool) -> None:
        possible = [dict(after)] if not interrupted else [dict(before), dict(after)]
        waiting = batcher.agents
        assert len(waiting) == len(set(waiting)), f"twice: {waiting}"
        assert set(waiting) in [set(versions) for versions in possible], f"agents {waiting}"
        assert all(agent in batcher or failed for agent in waiting)
        if interrupted and retry and set(waiting) != set(after) - set(before) - set():
            try:
                call(batcher)
                possible = [dict(after)]
            except mj.errors.DuplicateIdError:
                assert set(waiting) == set(after), f"refused with {waiting}"
                possible = [dict(after)]
        batcher.push(99, state(99, 9))
        found = answers(batcher.execute(policy()))
        assert found in [expected({**versions, 99: 9}) for versions in possible], f"answers {found}"
        assert len(batcher) == 0
        batcher.push(1, state(1, 3))
        assert answers(batcher.execute(policy())) == expected({1: 3})

    return lambda: call(batcher), check


def _breaking(batcher: mj.Batcher, parts: int) -> Exception:
    """Execute, but for a model that raises after so many parts."""
    ran, real = [0], policy().infer_raw

    def infer_raw(view: Any) -> None:
        if ran[0] == parts - 1:
            raise RuntimeError("told to break")
        ran[0] += 1
        real(view)

    policy().infer_raw = infer_raw
    try:
        batcher.execute(policy())
    except RuntimeError as failure:
        return failure
    finally:
        del policy().infer_raw
    raise AssertionError


SIX = dict.fromkeys(range(6), 1)


def _changes() -> dict[str, tuple[Versions, Versions, Callable[[mj.Batcher], Any], bool]]:
    def push(agent: int, version: int, **options: Any) -> Callable[[mj.Batcher], Any]:
        return lambda batcher: batcher.push(agent, state(agent, version), **options)

    def extend(versions: Versions, **options: Any) -> Callable[[mj.Batcher], Any]:
        return lambda batcher: batcher.extend({a: state(a, v) for a, v in versions.items()}, **options)

    without = {agent: 1 for agent in range(6) if agent != 2}
    some = {4: 2, 5: 2, 7: 2, 8: 2}
    return {
        "push": (SIX, {**SIX, 6: 2}, push(6, 2), False),
        "push the first": ({}, {6: 2}, push(6, 2), False),
        "push in the place of another": (SIX, {**SIX, 3: 2}, push(3, 2, replace=True), False),
        "push after a failure": (SIX, {**SIX, 6: 2}, push(6, 2), True),
        "extend": (SIX, {**SIX, 7: 2, 8: 2}, extend({7: 2, 8: 2}), False),
        "extend over others": (SIX, {**SIX, **some}, extend(some, replace=True), False),
        "extend after a failure": (SIX, {**SIX, **some}, extend(some, replace=True), True),
        "discard": (SIX, without, lambda batcher: batcher.discard(2), False),
        "discard the last": (SIX, dict.fromkeys(range(5), 1), lambda batcher: batcher.discard(5), False),
        "discard after a failure": (SIX, without, lambda batcher: batcher.discard(2), True),
        "clear": (SIX, {}, lambda batcher: batcher.clear(), False),
        "clear after a failure": (SIX, {}, lambda batcher: batcher.clear(), True),
    }


for _name, (_before, _after, _call, _failed) in _changes().items():
    for _retry in (False, True):
        case(_before, _after, _call, _retry, _failed, name=f"{_name}{', again' * _retry}")(batch_world)


@case(False)
@case(True, name="execute after a failure")
def execute(failed: bool) -> World:
    batched = mj.Batched(policy())
    for agent in SIX:
        batched.push(agent, state(agent, 1))
    if failed:
        _breaking(batched._batcher, 2)

    def check(interrupted: bool) -> None:
        if interrupted:
            assert sorted(batched._batcher.agents) == sorted(SIX), "answers are lost"
            batched.push(77, state(77, 3))
            assert answers(batched.execute()) == expected({**SIX, 77: 3})
        assert len(batched) == 0
        batched.push(3, state(3, 5))
        assert answers(batched.execute()) == expected({3: 5})

    return batched.execute, check


# --- Hidden state
# --------------------------------------------------------------------------------------------------------------------


def tracked(layers: int = 1) -> mj.Inferer:
    if layers == 1:
        return mj.RecurrentTracker.wrap(summing(take=lambda count: min(count, 2)))
    inner = mj.RecurrentTracker(counting_lstm(), [mj.RecurrentInfo("lstm_cell_state", "lstm_cell_state")])
    return mj.RecurrentTracker(inner, [mj.RecurrentInfo("lstm_hidden_state", "lstm_hidden_state")])


def observed(agent: int) -> dict[str, np.ndarray]:
    return {"obs": np.array([agent + 1], np.float32)}


def hidden(tracker: Any, agents: Sequence[int]) -> dict[int, float]:
    return {agent: float(tracker.states(agent)["h_in"][0]) for agent in agents}


def stepped(states: Mapping[int, float]) -> dict[int, float]:
    return {agent: 2 * value + agent + 1 for agent, value in states.items()}


@case("batch")
@case("rows", name="tracker rows")
@case("anonymous", name="tracker rows without names")
def tracker_batch(how: str) -> World:
    tracker: Any = tracked()
    agents = [0, 1, 2] if how == "anonymous" else [5, 3, 9]
    if how != "anonymous":
        for agent in agents:
            tracker.begin_agent(agent)

    def call() -> dict[int, float]:
        if how == "batch":
            found = tracker.infer_batch({agent: observed(agent) for agent in agents})
            return {agent: float(response["act"][0]) for agent, response in found.items()}
        rows = {"obs": np.array([[agent + 1] for agent in agents], np.float32)}
        found = tracker.infer_arrays(rows, ids=None if how == "anonymous" else agents)
        return dict(zip(agents, found["act"][:, 0].tolist(), strict=True))

    before = dict.fromkeys(agents, 0.0)
    if how != "anonymous":
        call()
        before = stepped(before)
    after = stepped(before)

    def check(interrupted: bool) -> None:
        if how == "anonymous" and interrupted:
            now = {a: float(tracker.states(a)["h_in"][0]) if a in tracker.agents else 0.0 for a in agents}
        else:
            now = hidden(tracker, agents)
        assert now == after or (interrupted and now == before), f"states {now}"
        assert call() == stepped(now)
        assert hidden(tracker, agents) == stepped(now)

    return call, check


@case(most=60)
def tracker_on_a_device() -> World:
    tracker: Any = mj.RecurrentTracker.wrap(lstm())
    agents = [5, 3]
    for agent in agents:
        tracker.begin_agent(agent)
    rows = {"obs": jnp.asarray(np.array([[1, 2], [3, 4]], np.float32))}

    def call() -> Any:
        return np.asarray(tracker.infer_arrays(rows, ids=agents)["logits"])

    call()
    before = _lstm_states()
    after = before[1:]

    def check(interrupted: bool) -> None:
        now = np.stack([tracker.states(agent)["h_in"] for agent in agents])
        assert np.allclose(now, after[0]) or (interrupted and np.allclose(now, before[0])), "states"
        step = 0 if np.allclose(now, before[0]) else 1
        call()
        assert np.allclose(np.stack([tracker.states(agent)["h_in"] for agent in agents]), before[step + 1])

    return call, check


@functools.cache
def lstm() -> mj.MemoizingDynamicInferer:
    return mj.load(mj.policies.bundled("recurrent_lstm"))


@functools.cache
def _lstm_states() -> list[np.ndarray]:
    """States of the agents of `tracker_on_a_device` after one, two and three steps."""
    tracker: Any = mj.RecurrentTracker.wrap(lstm())
    found = []
    for _ in range(4):
        tracker.infer_arrays({"obs": np.array([[1, 2], [3, 4]], np.float32)})
        found.append(np.stack([tracker.states(agent)["h_in"] for agent in (0, 1)]))
    return found


@case()
def two_trackers() -> World:
    tracker: Any = tracked(2)
    tracker.begin_agent(4)

    def call() -> Any:
        return tracker.infer_batch({4: {}})[4]

    call()

    def check(interrupted: bool) -> None:
        steps = tracker.states(4)["lstm_hidden_state"].flat[0]
        assert steps in ((1, 2) if interrupted else (2,)), f"{steps} steps"
        found = call()
        assert (found["hidden_output"] == steps + 1).all(), found
        assert (found["cell_output"] == 2 * (steps + 1)).all(), found

    return call, check


@case(1)
@case(2, name="two trackers in batches")
def tracker_in_batches(layers: int) -> World:
    tracker: Any = tracked(layers)
    agents = [8, 2, 5]
    for agent in agents:
        tracker.begin_agent(agent)
    batched = mj.Batched(tracker)
    for agent in agents:
        batched.push(agent, observed(agent) if layers == 1 else {})

    def check(interrupted: bool) -> None:
        if interrupted:
            assert sorted(batched._batcher.agents) == sorted(agents)
            found = batched.execute()
            if layers == 1:
                assert {a: float(r["act"][0]) for a, r in found.items()} == {a: a + 1.0 for a in agents}
            else:
                assert all(
                    (r["cell_output"] == 2).all() and (r["hidden_output"] == 1).all() for r in found.values()
                )
        if layers == 1:
            assert hidden(tracker, agents) == {agent: agent + 1.0 for agent in agents}
        for agent in agents:
            batched.push(agent, observed(agent) if layers == 1 else {})
        found = batched.execute()
        if layers == 1:
            assert {a: float(r["act"][0]) for a, r in found.items()} == {a: 3.0 * (a + 1) for a in agents}
        else:
            assert all(
                (r["cell_output"] == 4).all() and (r["hidden_output"] == 2).all() for r in found.values()
            )

    return batched.execute, check


def _agent_calls() -> dict[str, tuple[Callable[[Any], Any], set[int], dict[int, float]]]:
    """name -> (call, agents afterwards, states that it changes); before it, agents 0 to 15 have the state
    7."""
    return {
        "begin an agent": (lambda t: t.begin_agent(50), {*range(16), 50}, {50: 0.0}),
        "begin an agent again": (lambda t: t.begin_agent(3), set(range(16)), {3: 0.0}),
        "end an agent": (lambda t: t.end_agent(3), set(range(16)) - {3}, {}),
        "set a state": (
            lambda t: t.set_state(3, {"h_in": np.array([9], np.float32)}),
            set(range(16)),
            {3: 9.0},
        ),
    }


def agent_world(call: Callable[[Any], Any], agents: set[int], changed: dict[int, float]) -> World:
    tracker: Any = tracked()
    for agent in range(16):
        tracker.begin_agent(agent)
        tracker.set_state(agent, {"h_in": np.array([7], np.float32)})
    before = dict.fromkeys(range(16), 7.0)
    after = {agent: changed.get(agent, 7.0) for agent in agents}

    def check(interrupted: bool) -> None:
        now = hidden(tracker, tracker.agents)
        assert now == after or (interrupted and now == before), f"states {now}"
        if interrupted and now == before:
            call(tracker)
            now = hidden(tracker, tracker.agents)
            assert now == after, f"states {now} after another try"
        for agent in range(100, 140):  # rows that are free, and more
            tracker.begin_agent(agent)
            tracker.set_state(agent, {"h_in": np.array([agent], np.float32)})
        wanted = {**now, **{agent: float(agent) for agent in range(100, 140)}}
        assert hidden(tracker, tracker.agents) == wanted, "two agents share a row"

    return lambda: call(tracker), check


for _name, _given in _agent_calls().items():
    case(*_given, name=_name)(agent_world)


@case(mj.ConstantGenerator(3.0))
def noise(generator: Any) -> World:
    fake = FakeInferer(
        lambda view: view.set_output(0, np.array(view.input_slot(1))),
        inputs={"obs": (1,), "epsilon": (2,)},
        outputs={"seen": (2,)},
    )
    noisy = mj.EpsilonInjector(fake, "epsilon", generator)

    def call() -> Any:
        return noisy.infer_batch({1: {"obs": np.zeros(1)}})

    def check(interrupted: bool) -> None:
        assert (call()[1]["seen"] == 3).all()

    return call, check


# --- Runtime
# -------------------------------------------------------------------------------------------------------------------------


def queued(agent: int, version: int) -> dict[str, np.ndarray]:
    return {"obs": np.array([agent, version, 0], np.float32)}


class Stage:
    """A runtime with two brains that give back what they take, and one with hidden state; all agents have
    version 1."""

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
        """Versions that were answered by the first two brains, and what the third gave."""
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
"""What the brain with hidden state answers to its first states."""


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
            time.sleep(0.001)  # another thread is at it still
            found = [{**a, **b} for a, b in zip(found, stage.seen(collect()), strict=True)]
        assert found == wanted, f"answers {found}"
        stage.still_works()

    def guarded() -> None:
        try:
            call()
        except mj.errors.RuntimeErrors as failure:  # a memory error in one brain
            returned.append({})
            rest = stage.runtime.run()
            for part in (failure.responses, rest):
                for brain, responses in part.items():
                    returned[0].setdefault(brain, {}).update(responses)

    return guarded, check


def queue_world(call: Callable[[Stage], Any], sealed: bool, before: Versions, after: Versions) -> World:
    """What waits for the first brain: agent -> version."""
    stage = Stage(sealed)

    def check(interrupted: bool) -> None:
        waiting = set(stage.runtime.waiting(stage.brains[0]))
        assert waiting == set(after) or (interrupted and waiting == set(before)), f"waiting {waiting}"
        assert stage.runtime._brains[stage.brains[0]].since > 0, "it is not in the queue"
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


# --- Plans
# ---------------------------------------------------------------------------------------------------------------------------


def _plan(size: int) -> Any:
    return SimpleNamespace(size=size, calls=0, compile_ms=1.0)


def cache_world(
    call: Callable[[PlanCache], Any], sizes: Sequence[Sequence[int]], failing: bool = False
) -> World:
    """A cache of at most two plans, with those for 1 (preloaded), 2 and 3; `sizes`: what it may hold
    afterwards."""
    broken = [False]

    def lower(size: int) -> Any:
        def compile_now() -> Any:
            if broken[0]:
                raise mj.errors.CompileError("told to fail")
            return _plan(size)

        return SimpleNamespace(compile=compile_now)

    cache = PlanCache(lower, maxsize=2)
    cache.pin([1])
    for size in (1, 2, 3):
        plan: Any = cache.get(size)
        plan.calls += size
    broken[0] = failing

    def check(interrupted: bool) -> None:
        broken[0] = False
        info = cache.info()
        now = cache.sizes()
        assert now in [list(one) for one in (*sizes, *([[1, 2, 3], [1, 2, 3, 4]] if interrupted else []))], (
            now
        )
        total = cache.calls()
        assert all(total[size] in ((size, 0) if call is _clear else (size,)) for size in (1, 2, 3)), total
        assert info.hits >= 0
        assert info.currsize == len(now)
        for size in (4, 5, 1):
            plan: Any = _in_time(lambda size=size: cache.get(size))
            assert plan.size == size
        assert len([size for size in cache.sizes() if size != 1]) <= 2 + (1 not in cache._pinned)
        assert not cache._pending

    def guarded() -> None:
        try:
            call(cache)
        except mj.errors.CompileError:
            assert failing

    return guarded, check


def _in_time(call: Callable[[], Any]) -> Any:
    """The result of `call` in another thread, which must not wait for ever."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "a thread waits for ever"
    return found[0]


def _clear(cache: PlanCache) -> None:
    cache.clear()


case(lambda cache: cache.get(2), [[1, 2, 3]], name="find a plan")(cache_world)
case(lambda cache: cache.get(4), [[1, 3, 4]], name="make a plan, evict one")(cache_world)
case(lambda cache: cache.get(4), [[1, 2, 3]], True, name="fail to make a plan")(cache_world)
case(lambda cache: cache.clear(2), [[1, 3]], name="drop a plan")(cache_world)
case(_clear, [[]], name="drop all plans")(cache_world)
case(lambda cache: cache.replace({1: _plan(1), 3: _plan(3)}), [[1, 3]], name="replace all plans")(cache_world)


@case("argument", False, skip=COMPILING)
@case("argument", True, skip=COMPILING, name="update weights on a device too")
@case("constant", False, skip=(*COMPILING, *PLANNING), most=20, name="update weights that are constants")
def update_weights(kind: str, device: bool) -> World:
    sizes = (1, 2) if kind == "argument" else (1,)
    inferer = _updated() if kind == "argument" else mj.load(_scaling(), preload=sizes, weights="constant")
    rows = {size: np.ones((size, 3), np.float32) for size in sizes}

    def factors() -> set[float]:
        found = {float(inferer.infer_arrays({"obs": given})["out"][0, 0]) for given in rows.values()}
        if device:
            found.add(float(inferer.infer_arrays({"obs": jnp.asarray(rows[1])})["out"][0, 0]))
        return found | {float(np.asarray(inferer.params))}

    if kind == "argument":
        inferer.update_params(np.float32(2))
        assert factors() == {2.0}

    def check(interrupted: bool) -> None:
        now = factors()
        assert now == {3.0} or (interrupted and now == {2.0}), f"weights {now}"
        inferer.update_params(np.float32(5))
        assert factors() == {5.0}

    return lambda: inferer.update_params(np.float32(3)), check


@functools.cache
def _updated() -> mj.MemoizingDynamicInferer:
    return mj.load(_scaling(), preload=[1, 2], weights="argument")


@functools.cache
def _scaling() -> mj.TypedModel:
    return mj.TypedModel.from_function(
        lambda w, x: {"out": w * x["obs"]}, np.float32(2), {"obs": ((3,), np.float32)}
    )


@case("get")
@case("put", name="store a plan on disk")
@case("clear", name="clear the cache on disk")
def load_a_plan_from_disk(how: str) -> World:
    folder = tempfile.TemporaryDirectory(prefix="memojax-")
    key, other = {"size": 1}, {"size": 2}
    cache = DiskCache(folder.name)
    cache.put(key, b"one")

    def call() -> Any:
        if how == "get":
            return cache.get(key)
        return cache.put(other, b"two") if how == "put" else cache.clear()

    def check(interrupted: bool) -> None:
        fresh = DiskCache(folder.name)
        assert fresh.get(key) in ((b"one", None) if how == "clear" else (b"one",))
        assert fresh.get(other) in ((b"two", None) if how == "put" else (None,))
        cache.put(other, b"three")
        assert DiskCache(folder.name).get(other) == b"three"
        folder.cleanup()

    return call, check
