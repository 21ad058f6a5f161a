"""Hidden state that each agent keeps. cervo's tests are among these."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memojax import (
    Inferer,
    MemoizingDynamicInferer,
    RecurrentTracker,
    ScratchPadView,
    TypedModel,
    load,
    policies,
)
from memojax.errors import (
    DuplicateIdError,
    InputDtypeError,
    InputShapeError,
    UnknownAgentError,
    UnknownInputError,
)

from ..helpers import FakeInferer, counting_lstm, counts, in_threads, rows, summing, track_stacked

Wrap = Callable[[Inferer], Any]


TRACKERS = pytest.mark.parametrize("track", [RecurrentTracker.wrap, track_stacked])


# --- hidden state by agent, as cervo tests it
@TRACKERS
def test_begin_and_end_are_forwarded(track: Wrap) -> None:
    fake = counting_lstm()
    tracker = track(fake)
    tracker.begin_agent(10)
    assert fake.begun == [10]
    tracker.end_agent(10)
    assert fake.ended == [10]


def test_begin_makes_and_end_removes_the_state() -> None:
    tracker = RecurrentTracker.wrap(counting_lstm())
    tracker.begin_agent(10)
    assert tracker.agents == [10]
    assert {name: array.tolist() for name, array in tracker.states(10).items()} == {
        "lstm_hidden_state": [[0], [0]],
        "lstm_cell_state": [[0] * 3] * 2,
    }
    tracker.end_agent(10)
    assert tracker.agents == []
    with pytest.raises(UnknownAgentError, match="10"):
        tracker.states(10)


@TRACKERS
@pytest.mark.parametrize("take", [lambda count: 1, lambda count: count])
def test_state_is_kept_over_calls_and_reset_by_begin(track: Wrap, take: Callable[[int], int]) -> None:
    tracker = track(counting_lstm(take=take))
    tracker.begin_agent(10)
    assert counts(tracker, [10]) == [(1, 2)]
    assert counts(tracker, [10]) == [(2, 4)]
    tracker.end_agent(10)
    tracker.begin_agent(10)
    assert counts(tracker, [10]) == [(1, 2)]
    tracker.begin_agent(10)
    assert counts(tracker, [10]) == [(1, 2)]


@TRACKERS
def test_many_agents(track: Wrap) -> None:
    tracker = track(counting_lstm())
    tracker.begin_agent(10)
    tracker.begin_agent(20)
    assert counts(tracker, [10, 20]) == [(1, 2), (1, 2)]
    tracker.begin_agent(20)
    assert counts(tracker, [10, 20]) == [(2, 4), (1, 2)]
    tracker.begin_agent(30)
    assert counts(tracker, [10, 30]) == [(3, 6), (1, 2)]
    assert counts(tracker, [30, 20, 10]) == [(2, 4), (2, 4), (4, 8)]


# --- hidden state, further
@TRACKERS
def test_unknown_agents_are_named_before_anything_runs(track: Wrap) -> None:
    fake = summing()
    tracker = track(fake)
    tracker.begin_agent(1)
    for call in (
        lambda: tracker.infer_batch({1: {"obs": [1]}, 5: {"obs": [1]}, 6: {"obs": [1]}}),
        lambda: tracker.infer_single({"obs": [1]}),
    ):
        with pytest.raises(UnknownAgentError, match="begin_agent"):
            call()
    with pytest.raises(UnknownAgentError, match="5, 6"):
        tracker.infer_arrays({"obs": rows(1, 1, 1)}, ids=[1, 5, 6])
    with pytest.raises(UnknownAgentError, match="7"):
        tracker.end_agent(7)
    assert fake.sizes == []
    assert fake.begun == [1]
    assert fake.ended == []


def test_rows_begin_by_themselves_only_without_ids() -> None:
    tracker = RecurrentTracker.wrap(fake := summing(take=lambda count: min(count, 2)))
    assert tracker.infer_arrays({"obs": rows(1, 2, 3, 4, 5)})["act"].ravel().tolist() == [1, 2, 3, 4, 5]
    assert fake.begun == [0, 1, 2, 3, 4]
    assert tracker.infer_arrays({"obs": rows(0, 0, 0)})["act"].ravel().tolist() == [2, 4, 6]
    assert tracker.infer_batch({4: {"obs": [0]}})[4]["act"] == 10


def test_agents_may_swap_rows() -> None:
    tracker = RecurrentTracker.wrap(summing())
    for agent in (5, 6, 7):
        tracker.begin_agent(agent)
    assert tracker.infer_arrays({"obs": rows(1, 2, 3)}, ids=[5, 6, 7])["act"].ravel().tolist() == [1, 2, 3]
    seats: Any = np.array([7, 5])
    assert tracker.infer_arrays({"obs": rows(0, 0)}, ids=seats)["act"].ravel().tolist() == [6, 2]
    assert tracker.infer_arrays({"obs": rows(0, 0, 0)}, ids=(6, 7, 5))["act"].ravel().tolist() == [4, 12, 4]


@pytest.mark.parametrize(
    "dones", [[0, 1, 0], np.array([False, True, False]), (np.arange(3) == 1).astype(np.float32)]
)
def test_dones_zero_the_state_before_the_row_runs(dones: Any) -> None:
    tracker = RecurrentTracker.wrap(summing(take=lambda count: min(count, 2)))
    tracker.infer_arrays({"obs": rows(1, 2, 3)})
    assert tracker.infer_arrays({"obs": rows(10, 10, 10)}, dones=dones)["act"].ravel().tolist() == [
        12,
        10,
        16,
    ]
    assert tracker.infer_arrays({"obs": rows(0, 0, 0)})["act"].ravel().tolist() == [24, 20, 32]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dones": [True]}, InputShapeError, r"dones.*\[1\].*\[2\]"),
        ({"dones": np.zeros((2, 1), bool)}, InputShapeError, "dones"),
        ({"ids": [0]}, InputShapeError, "1 agents for 2 rows"),
        ({"ids": [0, 0]}, DuplicateIdError, "agent 0"),
    ],
)
def test_ids_and_dones_fit_the_rows(options: Any, error: type[Exception], message: str) -> None:
    tracker = RecurrentTracker.wrap(fake := summing())
    tracker.begin_agent(0)
    with pytest.raises(error, match=message):
        tracker.infer_arrays({"obs": rows(1, 2)}, **options)
    assert fake.sizes == []


def test_a_failed_call_leaves_all_states_as_they_were() -> None:
    fake = summing(take=lambda count: 1)
    tracker = RecurrentTracker.wrap(fake)
    tracker.infer_arrays({"obs": rows(1, 2, 3)})
    run, fake.run = fake.run, _fail_on(2, fake.run)
    with pytest.raises(RuntimeError):
        tracker.infer_arrays({"obs": rows(5, 5, 5)}, dones=[1, 1, 1])
    assert [tracker.states(agent)["h_in"][0] for agent in range(3)] == [1, 2, 3]
    fake.run = run
    assert tracker.infer_arrays({"obs": rows(0, 0, 0)})["act"].ravel().tolist() == [2, 4, 6]


def test_a_batch_that_failed_half_way_goes_on_without_repeating_steps() -> None:
    fake = summing(take=lambda count: 1)
    tracker = RecurrentTracker.wrap(fake)
    tracker.infer_arrays({"obs": rows(1, 2, 3)})
    fake.run = _fail_on(2, fake.run)
    batched = tracker.into_batched()
    batched.extend({agent: {"obs": [0]} for agent in range(3)})
    with pytest.raises(RuntimeError):
        batched.execute()
    assert [response["act"][0] for response in batched.execute().values()] == [2, 4, 6]


def _fail_on(call: int, run: Callable[[ScratchPadView], None]) -> Callable[[ScratchPadView], None]:
    calls = iter(range(1, 1000))

    def flaky(view: ScratchPadView) -> None:
        if next(calls) == call:
            raise RuntimeError("flaky")
        run(view)

    return flaky


def test_states_are_copies_and_can_be_set() -> None:
    tracker = RecurrentTracker.wrap(counting_lstm())
    tracker.begin_agent(3)
    counts(tracker, [3])
    copy = tracker.states(3)
    copy["lstm_cell_state"][:] = 99
    assert tracker.states(3)["lstm_cell_state"].max() == 2
    tracker.set_state(3, {"lstm_hidden_state": [[5], [5]]})
    assert counts(tracker, [3]) == [(6, 4)]
    tracker.begin_agent(4)
    tracker.set_state(4, {"lstm_cell_state": np.full((2, 3), 7)})
    assert counts(tracker, [4, 3]) == [(1, 9), (7, 6)]


@pytest.mark.parametrize(
    ("agent", "state", "error"),
    [
        (8, {"h_in": [1]}, UnknownAgentError),
        (1, {"obs": [1]}, UnknownInputError),
        (1, {"h_in": [1, 2]}, InputShapeError),
        (1, {"h_in": [1j]}, InputDtypeError),
    ],
)
def test_a_state_that_does_not_fit_is_refused(agent: int, state: Any, error: type[Exception]) -> None:
    tracker = RecurrentTracker.wrap(summing())
    tracker.begin_agent(1)
    tracker.set_state(1, {"h_in": [4]})
    with pytest.raises(error):
        tracker.set_state(agent, state)
    assert tracker.states(1)["h_in"] == 4


def test_rows_of_ended_agents_are_used_again() -> None:
    tracker = RecurrentTracker.wrap(summing())
    for generation in range(50):
        for agent in range(generation, generation + 16):
            tracker.begin_agent(agent)
            tracker.set_state(agent, {"h_in": [agent]})
        for agent in range(generation, generation + 16):
            tracker.end_agent(agent)
    assert len(tracker._tracker._states._table.fresh) == 16


def test_a_reset_during_a_call_wins() -> None:
    fake = summing()
    tracker = RecurrentTracker.wrap(fake)
    for agent in (1, 2, 3, 4):
        tracker.begin_agent(agent)
        tracker.set_state(agent, {"h_in": [agent]})
    run = fake.run

    def meanwhile(view: ScratchPadView) -> None:
        run(view)
        tracker.begin_agent(1)
        tracker.end_agent(2)
        tracker.begin_agent(20)
        tracker.set_state(3, {"h_in": [33]})

    fake.run = meanwhile
    tracker.infer_arrays({"obs": rows(0, 0, 0, 0)}, ids=[1, 2, 3, 4])
    assert {agent: tracker.states(agent)["h_in"][0] for agent in tracker.agents} == {1: 0, 20: 0, 3: 33, 4: 8}


def test_threads_run_disjoint_agents() -> None:
    started = threading.Barrier(4)
    tracker = RecurrentTracker.wrap(summing())

    def run(thread: int) -> list[float]:
        mine = list(range(100 * thread, 100 * thread + 20))
        started.wait()
        for agent in mine:
            tracker.begin_agent(agent)
        acts = [
            tracker.infer_arrays({"obs": np.full((20, 1), thread, np.float32)}, ids=mine)["act"]
            for _ in range(10)
        ]
        tracker.end_agent(mine[0])
        return acts[-1].ravel().tolist()

    assert in_threads(4, run) == [[thread * 1023.0] * 20 for thread in range(4)]
    assert len(tracker.agents) == 4 * 19


def test_nan_passes_through_and_stays_in_its_row() -> None:
    tracker = RecurrentTracker.wrap(summing())
    act = tracker.infer_arrays({"obs": rows(1, np.nan, 3)})["act"].ravel()
    assert np.isnan(act).tolist() == [False, True, False]
    assert np.isnan(tracker.infer_arrays({"obs": rows(0, 0, 0)})["act"].ravel()).tolist() == [
        False,
        True,
        False,
    ]
    act = tracker.infer_arrays({"obs": rows(0, 0, 0)}, dones=[0, 1, 0])["act"].ravel()
    assert act.tolist() == [4, 0, 12], "a reset drops a NaN"


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.bool_, ml_dtypes.bfloat16])
def test_state_has_the_inputs_dtype(dtype: Any) -> None:
    fake = FakeInferer(
        lambda view: view.set_output(0, np.array(view.input_slot(0))),
        inputs={"h": (2,)},
        outputs={"h": (2,)},
        dtype=dtype,
    )
    tracker = RecurrentTracker.wrap(fake)
    tracker.begin_agent(0)
    tracker.set_state(0, {"h": np.ones(2, dtype)})
    tracker.infer_batch({0: {}})
    assert tracker.states(0)["h"].dtype == dtype
    assert tracker.states(0)["h"].tolist() == [1, 1]


def test_int64_state_stays_exact_on_a_device_too() -> None:
    big = 2**40
    typed = TypedModel.from_function(
        lambda _, x: {"h_out": x["h_in"] + x["obs"]}, (), {"obs": ((), np.int64), "h_in": ((), np.int64)}
    )
    tracker = RecurrentTracker.wrap(MemoizingDynamicInferer(typed))
    for _ in range(2):
        tracker.infer_arrays({"obs": np.full(3, big)})
        tracker.infer_arrays({"obs": jnp.ones(3, jnp.int32)})
    assert tracker.states(2)["h_in"] == 2 * big + 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["begin", "end", "set"]), st.integers(0, 5)),
            st.tuples(
                st.sampled_from(["step", "fail", "batch"]),
                st.lists(st.tuples(st.integers(0, 5), st.booleans()), unique_by=lambda x: x[0]),
            ),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_random_lives_of_agents_match_a_dictionary(actions: list[tuple[str, Any]], take: int) -> None:
    fake = summing(take=lambda count: min(count, take), dtype=np.float64)
    run = fake.run
    tracker = RecurrentTracker.wrap(fake)
    states: dict[int, float] = {}
    for clock, (action, which) in enumerate(actions, 1):
        if action == "begin":
            tracker.begin_agent(which)
            states[which] = 0
        elif action in ("end", "set"):
            act = (
                tracker.end_agent
                if action == "end"
                else lambda agent: tracker.set_state(agent, {"h_in": [-5]})
            )
            if which not in states:
                with pytest.raises(UnknownAgentError):
                    act(which)
            else:
                act(which)
                states.update({which: -5}) if action == "set" else states.pop(which)
        else:
            agents, dones = [agent for agent, _ in which], [done and action != "batch" for _, done in which]
            obs = clock + np.arange(len(agents)) / 16

            def step(
                agents: list[int] = agents,
                dones: list[bool] = dones,
                obs: np.ndarray = obs,
                batch: bool = action == "batch",
            ) -> list[float]:
                if batch:
                    responses = tracker.infer_batch(
                        {agent: {"obs": [value]} for agent, value in zip(agents, obs, strict=True)}
                    )
                    return [float(response["act"][0]) for response in responses.values()]
                return (
                    tracker.infer_arrays({"obs": obs[:, None]}, ids=agents, dones=dones)["act"]
                    .ravel()
                    .tolist()
                )

            if any(agent not in states for agent in agents):
                if action != "batch" or agents[0] not in states or take >= len(agents):
                    with pytest.raises(UnknownAgentError):
                        step()
                continue
            if action == "fail" and agents:
                fake.run = _fail_on(-(-len(agents) // take), run)
                with pytest.raises(RuntimeError):
                    step()
                fake.run = run
                continue
            expected = {
                agent: 2 * (0 if done else states[agent]) + o
                for agent, done, o in zip(agents, dones, obs, strict=True)
            }
            assert step() == list(expected.values())
            states.update(expected)
    assert {agent: float(tracker.states(agent)["h_in"][0]) for agent in tracker.agents} == states


def test_a_view_whose_caller_gave_state_rows_keeps_their_memory() -> None:
    tracker = RecurrentTracker.wrap(load(policies.bundled("recurrent_lstm")))
    tracker.begin_agent(4)
    raw = tracker.raw_api
    rows = [np.full(spec.rows(1), 7, spec.dtype) for spec in raw.inputs]
    view = ScratchPadView(raw.inputs, raw.outputs, rows, 1, [4])
    tracker.infer_raw(view)
    assert all((row == 7).all() for row in rows)
    for info in tracker.infos:
        slot = [spec.name for spec in raw.inputs].index(info.inkey)
        assert not view.input_slot(slot).any(), "the state of a new agent is zeros, whatever the caller gave"
