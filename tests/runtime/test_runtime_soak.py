"""A runtime under random use, compared with a simple model of its answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

import memojax as mj
from memojax.errors import OrphanedDataError, RuntimeErrors, UnknownAgentError, UnknownBrainError

from ..helpers import FakeInferer, summing
from ..runtime_fakes import Brain, Broken, Clock

AGENTS = st.integers(0, 6)


@dataclasses.dataclass
class Echo:
    """The state of an echoing brain: serials pushed and not answered yet, oldest first."""

    number: int
    fake: Brain
    waiting: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    def state(self, agent, serial):
        return {"obs": np.array([self.number, agent, serial], np.float32)}

    def note_push(self, agent, serial):
        self.waiting.setdefault(agent, []).append(serial)

    def fails(self):
        return self.fake.failing

    def check(self, agent, response, everything):
        number, who, serial = response["out"].astype(int)
        assert (number, who) == (self.number, agent), "an answer for somebody else"
        pushed = self.waiting[agent]
        assert serial in pushed
        if everything:
            assert serial == pushed[-1]
        left = [other for other in pushed if other > serial]
        self.waiting[agent] = left
        if not left:
            del self.waiting[agent]


@dataclasses.dataclass
class Counter:
    """The state of a brain with hidden state, h = 2 h + obs in float32, which it also answers."""

    number: int
    fake: FakeInferer
    broken: list[bool]
    hidden: dict[int, np.float32] = dataclasses.field(default_factory=dict)
    waiting: dict[int, np.float32] = dataclasses.field(default_factory=dict)

    def state(self, agent, serial):
        return {"obs": np.array([1000 * self.number + 10 * agent + serial % 7], np.float32)}

    def note_push(self, agent, serial):
        self.waiting[agent] = self.state(agent, serial)["obs"][0]

    def fails(self):
        return self.broken[0] or not self.waiting.keys() <= self.hidden.keys()

    def check(self, agent, response, everything):
        self.hidden[agent] = np.float32(2) * self.hidden[agent] + self.waiting.pop(agent)
        assert response["act"][0] == self.hidden[agent] or not np.isfinite(self.hidden[agent])


def counter(number):
    broken = [False]
    fake = summing()
    inner = fake.run

    def run(view):
        if broken[0]:
            raise Broken("told to fail")
        inner(view)

    fake.run = run
    return Counter(number, fake, broken)


class Soak(RuleBasedStateMachine):
    """Random use of one runtime."""

    brains = Bundle("brains")

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.runtime = mj.Runtime(threads=2, clock=self.clock)
        self.known: dict[mj.BrainId, Echo | Counter] = {}
        self.gone: list[mj.BrainId] = []
        self.serial = 0

    def next_serial(self):
        self.serial += 1
        return self.serial

    # Brains come and go

    @rule(
        target=brains,
        cost=st.sampled_from([0.001, 0.01, 0.1]),
        cold=st.booleans(),
        split=st.sampled_from([1, 2, 99]),
    )
    def add_echo(self, cost, cold, split):
        fake = Brain(self.clock, cost, ready=set() if cold else None, take=lambda count: min(count, split))
        return self.add(fake, Echo(len(self.known) + len(self.gone), fake))

    @rule(target=brains)
    def add_counter(self):
        known = counter(len(self.known) + len(self.gone))
        return self.add(mj.RecurrentTracker.wrap(known.fake), known)

    def add(self, inferer, known):
        brain = self.runtime.add_inferer(inferer)
        assert brain not in self.known
        assert brain not in self.gone
        self.known[brain] = known
        return brain

    @rule(brain=consumes(brains))
    def remove(self, brain):
        known = self.known.pop(brain)
        self.gone.append(brain)
        try:
            self.runtime.remove_inferer(brain)
        except OrphanedDataError as orphans:
            assert {brain: sorted(agents) for brain, agents in orphans.agents.items()} == {
                brain: sorted(known.waiting)
            }
        else:
            assert not known.waiting

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def use_a_removed_brain(self, data):
        with pytest.raises(UnknownBrainError):
            self.runtime.push(data.draw(st.sampled_from(self.gone)), 0, {})

    @rule(brain=brains)
    def swap(self, brain):
        known = self.known[brain]
        if isinstance(known, Echo):
            fake = Brain(self.clock, 0.002, ready=set(), take=known.fake.take)
            fake.failing = known.fake.failing
            handle = self.runtime.replace_inferer(brain, fake)
            for size in list(fake.asked):
                fake.finish(size)
            old = known.fake
        else:
            replacement = counter(known.number)
            fake, old, known.broken = replacement.fake, known.fake, replacement.broken
            handle = self.runtime.replace_inferer(brain, fake)
        assert handle.result(10) is old
        known.fake = fake  # pyright: ignore[reportAttributeAccessIssue]

    @rule(brain=brains)
    def break_or_mend(self, brain):
        known = self.known[brain]
        if isinstance(known, Echo):
            known.fake.failing = not known.fake.failing
            known.fake.fail_at_call = known.fake._calls + self.serial % 3
        else:
            known.broken[0] = not known.broken[0]

    @rule(brain=brains)
    def compile_in_the_background(self, brain):
        known = self.known[brain]
        if isinstance(known, Echo):
            for size, future in known.fake.asked.items():
                if not future.done():
                    known.fake.finish(size)

    # Agents come and go

    @rule(brain=brains, agent=AGENTS)
    def begin(self, brain, agent):
        known = self.known[brain]
        self.runtime.begin_agent(brain, agent)
        if isinstance(known, Counter):
            known.hidden[agent] = np.float32(0)

    @rule(brain=brains, agent=AGENTS)
    def end(self, brain, agent):
        known = self.known[brain]
        begun = agent in (known.hidden if isinstance(known, Counter) else known.fake.agents)
        if not begun:
            with pytest.raises((UnknownAgentError, ValueError)):
                self.runtime.end_agent(brain, agent)
            return
        self.runtime.end_agent(brain, agent)
        known.waiting.pop(agent, None)
        if isinstance(known, Counter):
            del known.hidden[agent]

    # Frames

    @rule(brain=brains, agent=AGENTS)
    def push(self, brain, agent):
        serial = self.next_serial()
        self.runtime.push(brain, agent, self.known[brain].state(agent, serial))
        self.known[brain].note_push(agent, serial)

    @rule(brain=brains, agents=st.lists(AGENTS, unique=True))
    def extend(self, brain, agents):
        serial, known = self.next_serial(), self.known[brain]
        self.runtime.extend(brain, [(agent, known.state(agent, serial)) for agent in agents])
        for agent in agents:
            known.note_push(agent, serial)

    @rule(brain=brains, agent=AGENTS)
    def push_nonsense(self, brain, agent):
        with pytest.raises(mj.errors.InputError):
            self.runtime.extend(
                brain, {agent: self.known[brain].state(agent, 1), 99: {"obs": np.zeros(7, np.float32)}}
            )

    @rule(brain=brains)
    def infer_single(self, brain):
        known = self.known[brain]
        if isinstance(known, Echo) and not known.fails():
            response = self.runtime.infer_single(brain, known.state(3, 1))
            assert tuple(response["out"]) == (known.number, 3, 1)

    @rule(threaded=st.booleans())
    def run_all(self, threaded):
        due = {brain: set(known.waiting) for brain, known in self.known.items() if known.waiting}
        failing = {brain for brain in due if self.known[brain].fails()}
        responses, failures = self.frame(self.runtime.run_threaded if threaded else self.runtime.run)
        assert failures <= failing
        assert {brain: set(out) for brain, out in responses.items() if brain not in failures} == {
            brain: agents for brain, agents in due.items() if brain not in failures
        }
        self.check(responses, everything=True)

    @rule(budget=st.sampled_from([0.0, 0.005, 0.05, 1.0]), threaded=st.booleans())
    def run_some(self, budget, threaded):
        due = [brain for brain, known in self.known.items() if known.waiting]
        run = self.runtime.run_for_threaded if threaded else self.runtime.run_for
        responses, failures = self.frame(lambda: run(budget if budget < 1 else 0.0))
        assert failures <= set(due)
        assert bool(responses) or bool(failures) == bool(due)
        self.check(responses, everything=False)

    def frame(self, run):
        try:
            return run(), set()
        except RuntimeErrors as some:
            assert some.failures
            assert all(isinstance(failure, (Broken, UnknownAgentError)) for failure in some.failures.values())
            return some.responses, set(some.failures)

    def check(self, responses, everything):
        for brain, out in responses.items():
            assert out
            for agent, response in out.items():
                self.known[brain].check(agent, response, everything)

    @invariant()
    def nothing_is_lost(self):
        assert self.runtime.brains == list(self.known)
        for brain, known in self.known.items():
            assert sorted(self.runtime.waiting(brain)) == sorted(known.waiting)

    def teardown(self):
        """After all repairs, every waiting state gets its answer."""
        for known in self.known.values():
            if isinstance(known, Echo):
                known.fake.failing = False
            else:
                known.broken[0] = False
                for agent in known.waiting.keys() - known.hidden.keys():
                    known.waiting.pop(agent)
                    brain = next(brain for brain, other in self.known.items() if other is known)
                    self.runtime.begin_agent(brain, agent)
                    self.runtime.end_agent(brain, agent)
        self.run_all(threaded=False)
        assert not any(known.waiting for known in self.known.values())
        assert self.runtime.run() == {}


Soak.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestSoak = Soak.TestCase


class Scaled:
    """A brain that multiplies its input, for the large soak: the waiting serials by agent."""

    def __init__(self, number, inferer):
        self.number, self.inferer = number, inferer
        self.begun: set[int] = set()
        self.waiting: dict[int, list[int]] = {}

    def state(self, agent, serial):
        return {"obs": np.array([self.number, agent, serial], np.float32)}

    def push(self, agent, serial):
        self.waiting.setdefault(agent, []).append(serial)

    def end(self, agent):
        self.begun.discard(agent)
        self.waiting.pop(agent, None)

    def check(self, agent, response, factor=2):
        number, who, serial = (response["out"] / factor).astype(int)
        assert (number, who) == (self.number, agent), "an answer for somebody else"
        assert serial in self.waiting[agent]
        self.waiting[agent] = [other for other in self.waiting[agent] if other > serial]
        if not self.waiting[agent]:
            del self.waiting[agent]


class Remembering(Scaled):
    """A brain that adds up its inputs, h = h / 2 + obs; only the newest state waits."""

    def __init__(self, number, inferer):
        super().__init__(number, inferer)
        self.hidden: dict[int, np.ndarray] = {}

    def begin(self, agent):
        self.begun.add(agent)
        self.hidden[agent] = np.zeros(3, np.float32)

    def check(self, agent, response, factor=1):
        serial = self.waiting.pop(agent)[-1]
        self.hidden[agent] = self.hidden[agent] / np.float32(2) + self.state(agent, serial)["obs"]
        np.testing.assert_array_equal(response["act"], self.hidden[agent])


def halving():
    def fn(_, x):
        new = x["h_in"] * np.float32(0.5) + x["obs"]
        return {"act": new, "h_out": new}

    return mj.TypedModel.from_function(fn, (), {"obs": ((3,), np.float32), "h_in": ((3,), np.float32)})


@pytest.mark.slow
def test_ten_thousand_agents_over_thirty_brains():
    """Real models (some with memory, some failing), changing brains and agents, swaps, and short budgets."""
    rng = np.random.default_rng(11)
    runtime = mj.Runtime(threads=3)
    doubling = mj.TypedModel.from_function(
        lambda _, x: {"out": x["obs"] * 2}, (), {"obs": ((3,), np.float32)}
    )
    known: dict[mj.BrainId, Scaled] = {}
    population: dict[mj.BrainId, list[int]] = {}
    removed: list[mj.BrainId] = []

    def add(number):
        kind = number % 3
        if kind == 0:
            # Every tenth of these meets its sizes cold.
            inferer = mj.MemoizingDynamicInferer(doubling, bucketing="exact" if number % 10 == 0 else [512])
            entry = Scaled(number, inferer)
        elif kind == 1:
            inferer = mj.RecurrentTracker.wrap(mj.MemoizingDynamicInferer(halving(), [512], bucketing=[512]))
            entry = Remembering(number, inferer)
        else:
            inferer = Brain(take=lambda count: min(count, 100))
            entry = Scaled(number, inferer)
        brain = runtime.add_inferer(inferer)
        assert brain not in known
        assert brain not in removed
        known[brain] = entry
        population[brain] = list(range(number % 7, number % 7 + 334))

    for number in range(30):
        add(number)
    answered = 0
    for frame in range(120):
        for brain, entry in known.items():
            for agent in rng.choice(population[brain], 5).tolist():
                if isinstance(entry, Remembering):
                    if agent in entry.begun:
                        runtime.end_agent(brain, agent)
                        entry.end(agent)
                    runtime.begin_agent(brain, agent)
                    entry.begin(agent)
            chosen = rng.choice(population[brain], rng.integers(0, 200), replace=False).tolist()
            if isinstance(entry, Remembering):
                for agent in chosen:
                    if agent not in entry.begun:
                        runtime.begin_agent(brain, agent)
                        entry.begin(agent)
            runtime.extend(brain, {agent: entry.state(agent, frame) for agent in chosen})
            for agent in chosen:
                entry.push(agent, frame)
            if isinstance(entry.inferer, Brain):
                entry.inferer.failing = rng.random() < 0.1
                entry.inferer.fail_at_call = entry.inferer._calls + int(rng.integers(0, 3))
        if frame % 10 == 3:
            brain = list(known)[int(rng.integers(len(known)))]
            entry = known.pop(brain)
            removed.append(brain)
            try:
                assert runtime.remove_inferer(brain) is entry.inferer
                assert not entry.waiting
            except OrphanedDataError as orphans:
                assert {gone: sorted(agents) for gone, agents in orphans.agents.items()} == {
                    brain: sorted(entry.waiting)
                }
            add(entry.number + 30)
        assert sum(map(len, (population[brain] for brain in known))) > 10_000
        if frame % 20 == 7:
            for brain, entry in known.items():
                if isinstance(entry, Remembering) and entry.number % 5 == frame // 20:
                    runtime.replace_inferer(
                        brain, mj.MemoizingDynamicInferer(halving(), [512], bucketing=[512])
                    ).result(60)
        run = [
            runtime.run,
            runtime.run_threaded,
            lambda: runtime.run_for(0.01),
            lambda: runtime.run_for_threaded(0.01),
        ][frame % 4]
        try:
            responses, failed = run(), {}
        except RuntimeErrors as some:
            responses, failed = some.responses, some.failures
        for brain, out in responses.items():
            entry = known[brain]
            for agent, response in out.items():
                entry.check(agent, response, factor=1 if isinstance(entry.inferer, Brain) else 2)
            answered += len(out)
        assert all(isinstance(known[brain].inferer, Brain) for brain in failed)
        for brain, entry in known.items():
            assert sorted(runtime.waiting(brain)) == sorted(entry.waiting)
            if frame % 4 < 2 and brain not in failed:
                assert not entry.waiting
    assert answered > 100_000
    for entry in known.values():
        if isinstance(entry.inferer, Brain):
            entry.inferer.failing = False
    for brain, out in runtime.run().items():
        for agent, response in out.items():
            known[brain].check(agent, response, factor=1 if isinstance(known[brain].inferer, Brain) else 2)
    assert not any(entry.waiting for entry in known.values())
