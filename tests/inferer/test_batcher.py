"""Batcher and Batched: order, splitting, failures and bad input. Fakes are closures, as in cervo's tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memojax import (
    BaseWrapper,
    Batched,
    Batcher,
    ConstantGenerator,
    EpsilonInjector,
    RecurrentTracker,
    ScratchPadView,
    State,
    StatefulInferer,
)
from memojax.errors import (
    BatchSizeError,
    DuplicateIdError,
    IncompatibleModelError,
    InputDtypeError,
    InputError,
    InputShapeError,
    MissingInputError,
    UnknownInputError,
)

from ..helpers import FakeInferer, echo, summing


def state(value: float) -> dict[str, np.ndarray]:
    return {"first": np.full(11, value, np.float32)}


def push_all(batcher: Any, states: dict[int, Any]) -> None:
    for agent, one in states.items():
        batcher.push(agent, one)


def extend_all(batcher: Any, states: dict[int, Any]) -> None:
    batcher.extend(states)


def extend_pairs(batcher: Any, states: dict[int, Any]) -> None:
    batcher.extend(iter(states.items()))


FILLS = pytest.mark.parametrize("fill", [push_all, extend_all, extend_pairs])


def test_construct_wrapped_and_loose() -> None:
    fake = FakeInferer()
    assert isinstance(fake.into_batched(), Batched)
    assert isinstance(Batched.wrap(fake), Batched)
    assert len(Batcher(fake)) == 0


@FILLS
@pytest.mark.parametrize(
    ("take", "agents", "sizes"), [(1, 2, [1, 1]), (2, 4, [2, 2]), (3, 8, [3, 3, 2]), (5, 5, [5])]
)
def test_batches_are_split_as_the_inferer_selects(
    fill: Callable[..., None], take: int, agents: int, sizes: list[int]
) -> None:
    fake = FakeInferer(echo, take=lambda count: min(take, count))
    batcher = Batcher(fake)
    fill(batcher, {agent: state(agent) for agent in range(agents)})
    responses = batcher.execute(fake)
    assert fake.sizes == sizes
    assert list(responses) == list(range(agents))
    assert all((responses[agent]["out"] == agent).all() for agent in responses)


@FILLS
def test_agents_run_in_the_order_they_were_pushed(fill: Callable[..., None]) -> None:
    seen: list[tuple[list[int], list[float]]] = []
    fake = FakeInferer(
        lambda view: seen.append((list(view.ids), view.input_slot(0)[:, 0].tolist())),
        take=lambda count: min(count, 2),
    )
    batched = fake.into_batched()
    fill(batched, {9: state(90), 3: state(30), 7: state(70)})
    batched.execute()
    assert seen == [([9, 3], [90.0, 30.0]), ([7], [70.0])]


def test_an_empty_batch_runs_nothing() -> None:
    fake = FakeInferer(echo)
    assert Batcher(fake).execute(fake) == {}
    assert fake.infer_batch({}) == {}
    assert fake.sizes == []


def test_a_batcher_is_reused_over_frames() -> None:
    fake = FakeInferer(echo)
    batched = fake.into_batched()
    for frame in range(5):
        agents = range(frame, 2 * frame + 1)
        extend_all(batched, {agent: state(agent * 10 + frame) for agent in agents})
        responses = batched.execute()
        assert {agent: response["out"][0] for agent, response in responses.items()} == {
            agent: agent * 10 + frame for agent in agents
        }
        assert len(batched) == 0


@FILLS
def test_buffers_are_copied_at_once(fill: Callable[..., None]) -> None:
    fake = FakeInferer(echo)
    batcher = Batcher(fake)
    buffer = np.zeros(11, np.float32)
    for agent in range(3):
        buffer[:] = agent
        fill(batcher, {agent: {"first": buffer}})
    buffer[:] = -1
    assert [response["out"][0] for response in batcher.execute(fake).values()] == [0, 1, 2]


def test_responses_own_their_data() -> None:
    kept = np.zeros((2, 11), np.float32)
    fake = FakeInferer(lambda view: view.set_output(0, kept))
    responses = fake.infer_batch({0: state(0), 1: state(1)})
    kept[:] = 5
    responses[0]["out"][:] = 7
    assert (responses[1]["out"] == 0).all()


def test_a_thousand_agents() -> None:
    fake = FakeInferer(echo, take=lambda count: min(count, 64))
    responses = fake.infer_batch({agent: state(agent) for agent in range(1000)})
    assert [response["out"][3] for response in responses.values()] == list(range(1000))
    assert fake.sizes == [64] * 15 + [40]


class Flaky:
    """Echoes its input, but fails on chosen calls."""

    def __init__(self, *failing: int):
        self.failing, self.calls = failing, 0

    def __call__(self, view: ScratchPadView) -> None:
        self.calls += 1
        if self.calls in self.failing:
            raise RuntimeError("flaky")
        echo(view)


def test_a_failed_execute_loses_nothing_and_continues() -> None:
    fake = FakeInferer(Flaky(2, 3), take=lambda count: min(count, 2))
    batched = fake.into_batched()
    extend_all(batched, {agent: state(agent) for agent in range(5)})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="flaky"):
            batched.execute()
        assert len(batched) == 5
    batched.push(99, state(99))
    responses = batched.execute()
    assert {agent: response["out"][0] for agent, response in responses.items()} == {
        agent: agent for agent in (0, 1, 2, 3, 4, 99)
    }
    assert fake.sizes == [2, 2, 2], "the rows that had run did not run again"


def test_clear_also_forgets_agents_that_ran() -> None:
    fake = FakeInferer(Flaky(2), take=lambda count: 1)
    batched = fake.into_batched()
    extend_all(batched, {0: state(0), 1: state(1)})
    with pytest.raises(RuntimeError):
        batched.execute()
    batched.clear()
    batched.push(0, state(5))
    assert batched.execute()[0]["out"][0] == 5


BAD = {
    "unknown name": ({**state(0), "second": np.zeros(1)}, UnknownInputError, "second"),
    "missing": ({}, MissingInputError, "first"),
    "other name": ({"frist": np.zeros(11, np.float32)}, UnknownInputError, "frist"),
    "too short": ({"first": np.zeros(10, np.float32)}, InputShapeError, r"\[10\], expected \[11\]"),
    "scalar": ({"first": 1.0}, InputShapeError, r"expected \[11\]"),
    "with a batch axis": ({"first": np.zeros((1, 11), np.float32)}, InputShapeError, r"\[1, 11\]"),
    "ragged": ({"first": [[1, 2], [3]]}, InputShapeError, "rectangular"),
    "complex": ({"first": np.zeros(11, np.complex64)}, InputDtypeError, "complex64"),
    "text": ({"first": ["a"] * 11}, InputDtypeError, "first"),
}


@FILLS
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_changes_nothing(fill: Callable[..., None], case: str) -> None:
    given, error, message = BAD[case]
    fake = FakeInferer(echo)
    batcher = Batcher(fake)
    batcher.push(0, state(5))
    with pytest.raises(error, match=message) as caught:
        fill(batcher, {1: given})
    assert isinstance(caught.value, InputError)
    assert len(batcher) == 1
    batcher.push(1, state(6))
    assert [response["out"][0] for response in batcher.execute(fake).values()] == [5, 6]


def test_extend_takes_all_or_nothing() -> None:
    batcher = Batcher(fake := FakeInferer(echo))
    with pytest.raises(MissingInputError, match="agent 2"):
        batcher.extend({1: state(1), 2: {}})
    with pytest.raises(InputShapeError, match="agent 4"):
        batcher.extend([(3, state(3)), (4, {"first": np.zeros(3, np.float32)})])
    with pytest.raises(DuplicateIdError, match="agent 6"):
        batcher.extend([(5, state(0)), (6, state(0)), (6, state(0))])
    assert batcher.execute(fake) == {}


@FILLS
def test_an_agent_is_pushed_once(fill: Callable[..., None]) -> None:
    batcher = Batcher(fake := FakeInferer(echo))
    batcher.push(3, state(1))
    with pytest.raises(DuplicateIdError, match="agent 3"):
        fill(batcher, {3: state(2)})
    assert batcher.execute(fake)[3]["out"][0] == 1


@pytest.mark.parametrize(
    "given",
    [
        [1] * 11,
        np.ones(11),
        np.ones(11, np.float16),
        np.ones(11, np.int64),
        np.ones(11, bool),
        np.ones(22)[::2],
    ],
)
def test_widths_and_layouts_are_converted(given: Any) -> None:
    fake = FakeInferer(echo)
    for response in (
        fake.infer_single({"first": given}),
        fake.infer_batch({0: {"first": given}, 1: state(1)})[0],
    ):
        assert response["out"].dtype == np.float32
        assert (response["out"] == 1).all()


def test_state_and_response_are_cervos_too() -> None:
    one = State.empty()
    one.data["first"] = np.ones(11)
    assert FakeInferer(echo).infer_single(one).data["out"].sum() == 11


def test_infer_is_cervos_name_of_infer_batch() -> None:
    fake = FakeInferer(echo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = fake.infer({0: state(0)})
    np.testing.assert_array_equal(named[0]["out"], fake.infer_batch({0: state(0)})[0]["out"])


@pytest.mark.parametrize("size", [0, -1, 5])
def test_an_inferer_that_selects_nonsense_is_named(size: int) -> None:
    fake = FakeInferer(echo, take=lambda count: size)
    with pytest.raises(BatchSizeError, match="FakeInferer"):
        fake.infer_batch({0: state(0), 1: state(1)})


@FILLS
def test_a_waiting_state_is_replaced_or_discarded(fill: Callable[..., None]) -> None:
    batcher = Batcher(fake := FakeInferer(echo))
    fill(batcher, {agent: state(agent) for agent in range(4)})
    batcher.push(1, state(10), replace=True)
    batcher.extend({3: state(30), 4: state(40)}, replace=True)
    assert batcher.discard(0)
    assert not batcher.discard(0)
    assert {agent: response["out"][0] for agent, response in batcher.execute(fake).items()} == {
        1: 10,
        2: 2,
        3: 30,
        4: 40,
    }


def test_an_agent_that_ran_is_not_replaced_but_may_be_discarded() -> None:
    fake = FakeInferer(Flaky(2), take=lambda count: 1)
    batcher = Batcher(fake)
    batcher.extend({agent: state(agent) for agent in range(3)})
    with pytest.raises(RuntimeError):
        batcher.execute(fake)
    for replace in (
        lambda: batcher.push(0, state(9), replace=True),
        lambda: batcher.extend({0: state(9), 1: state(9)}, replace=True),
    ):
        with pytest.raises(DuplicateIdError, match="agent 0"):
            replace()
    batcher.push(2, state(20), replace=True)
    assert batcher.discard(0)
    assert {agent: response["out"][0] for agent, response in batcher.execute(fake).items()} == {1: 1, 2: 20}


def test_a_batcher_serves_inferers_of_the_same_model_only() -> None:
    fake = FakeInferer(echo)
    batcher = Batcher(fake)
    batcher.push(0, state(3))
    with pytest.raises(IncompatibleModelError, match="new Batcher"):
        batcher.execute(FakeInferer(inputs={"first": (12,)}))
    assert batcher.execute(FakeInferer(echo))[0]["out"][0] == 3


def test_a_bare_inferers_batcher_serves_wrappers_but_not_the_reverse() -> None:
    fake = summing()
    tracker = RecurrentTracker.wrap(fake)
    tracker.begin_agent(0)
    bare, wrapped = Batcher(fake), Batcher(tracker)
    bare.push(0, {"obs": [1], "h_in": [50]})
    response = bare.execute(tracker)[0]
    assert dict(response) == {"act": [1]}
    wrapped.push(0, {"obs": [1]})
    with pytest.raises(MissingInputError, match="h_in"):
        wrapped.execute(fake)
    assert wrapped.execute(tracker)[0]["act"] == 3


def test_wrappers_may_write_into_rows() -> None:
    fake = FakeInferer(echo, inputs={"first": (11,), "epsilon": (2,)})
    noisy = EpsilonInjector(StatefulInferer(BaseWrapper(), fake), "epsilon", ConstantGenerator.ones())
    mine = {"first": np.zeros((1, 11), np.float32)}
    noisy.infer_arrays(mine)
    noisy.infer_batch({0: state(0)})
    assert fake.sizes == [1, 1]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 6)),
            st.tuples(st.just("extend"), st.sets(st.integers(0, 6))),
            st.tuples(st.sampled_from(["bad", "execute", "fail", "clear"]), st.integers(0, 6)),
        ),
        max_size=30,
    ),
    st.integers(1, 4),
)
def test_random_calls_match_a_dictionary(actions: list[tuple[str, Any]], take: int) -> None:
    broken: set[int] = set()

    def run(view: ScratchPadView) -> None:
        if broken & set(view.ids):
            raise RuntimeError("broken")
        echo(view)

    fake = FakeInferer(run, take=lambda count: min(count, take))
    batched = fake.into_batched()
    waiting: dict[int, float] = {}
    for clock, (action, which) in enumerate(actions):
        agents = which if isinstance(which, set) else {which}
        fresh = {agent: clock + agent / 8 for agent in agents}
        if action in ("push", "extend"):
            fill = extend_all if action == "extend" else push_all
            if agents & waiting.keys():
                with pytest.raises(DuplicateIdError):
                    fill(batched, {agent: state(value) for agent, value in fresh.items()})
            else:
                fill(batched, {agent: state(value) for agent, value in fresh.items()})
                waiting.update(fresh)
        elif action == "bad":
            with pytest.raises(InputError):
                batched.extend([(100, state(1)), (101, {"first": np.zeros(1)})])
        elif action == "clear":
            batched.clear()
            waiting.clear()
        elif action == "fail" and which in waiting:
            broken.add(which)
            with pytest.raises(RuntimeError):
                batched.execute()
            broken.clear()
            # A user might push failed states again; here they wait for the next execute.
        elif action == "execute":
            responses = batched.execute()
            assert list(responses) == list(waiting)
            assert {agent: float(response["out"][0]) for agent, response in responses.items()} == waiting
            waiting.clear()
        assert len(batched) == len(waiting)
