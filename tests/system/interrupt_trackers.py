"""Interrupts of calls with hidden state and noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import memojax as mj

from ..helpers import FakeInferer, counting_lstm, summing
from .interrupt_case import World, case

# --- Hidden state
# -------------------------------------------------------------------------------------------------------


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
    """Name -> (call, agents afterwards, agents whose states it changes).

    Before the call, agents 0 to 15 have the state 7.
    """
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
        for agent in range(100, 140):  # Free rows, and some more.
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
