"""Wrappers stacked in either order, swaps of the inferer inside, and bundled policies that need them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax import (
    BaseWrapper,
    ConstantGenerator,
    EpsilonInjector,
    EpsilonInjectorWrapper,
    HighQualityNoiseGenerator,
    Inferer,
    InfererWrapper,
    MemoizingDynamicInferer,
    RecurrentInfo,
    RecurrentTracker,
    RecurrentTrackerWrapper,
    ScratchPadView,
    StatefulInferer,
    TypedModel,
)
from memojax.errors import (
    IncompatibleModelError,
    MissingInputError,
    UnknownInputError,
)

from ..helpers import (
    FakeInferer,
    counting_lstm,
    counts,
    noisy_echo,
    policy,
    policy_oracle,
    rows,
    summing,
    track_stacked,
)

Wrap = Callable[[Inferer], Any]


def owned_epsilon_inside(inferer: Inferer) -> Inferer:
    return RecurrentTracker.wrap(EpsilonInjector(inferer, "epsilon", ConstantGenerator(0.5)))


def owned_epsilon_outside(inferer: Inferer) -> Inferer:
    return EpsilonInjector(RecurrentTracker.wrap(inferer), "epsilon", ConstantGenerator(0.5))


def stacked_epsilon_inside(inferer: Inferer) -> Inferer:
    inner = EpsilonInjectorWrapper(BaseWrapper(), inferer, "epsilon", ConstantGenerator(0.5))
    return RecurrentTrackerWrapper(inner, inferer).wrap(inferer)


def stacked_epsilon_outside(inferer: Inferer) -> Inferer:
    inner = RecurrentTrackerWrapper(BaseWrapper(), inferer)
    return inferer.into_stateful(EpsilonInjectorWrapper(inner, inferer, "epsilon", ConstantGenerator(0.5)))


def mixed_epsilon_inside(inferer: Inferer) -> Inferer:
    noisy = EpsilonInjector(inferer, "epsilon", ConstantGenerator(0.5))
    return track_stacked(noisy)


STACKS = [
    owned_epsilon_inside,
    owned_epsilon_outside,
    stacked_epsilon_inside,
    stacked_epsilon_outside,
    mixed_epsilon_inside,
]


@pytest.mark.parametrize("stack", STACKS)
def test_wrappers_compose_in_both_orders(stack: Wrap, rng: np.random.Generator) -> None:
    inferer = MemoizingDynamicInferer(policy())
    stacked = stack(inferer)
    assert stacked.input_shapes() == [("obs", [4])]
    assert stacked.output_shapes() == [("act", [2]), ("choice", [])]
    assert stacked.raw_input_shapes() == inferer.raw_input_shapes()
    state = np.zeros((3, 3), np.float32)
    for step in range(6):
        obs = rng.standard_normal((3, 4)).astype(np.float32)
        expected = policy_oracle(obs, 0.5, state)
        if step % 3 == 2:
            responses = stacked.infer_batch({agent: {"obs": obs[agent]} for agent in range(3)})
            given = {"act": np.stack([responses[agent]["act"] for agent in range(3)])}
        else:
            given = stacked.infer_arrays({"obs": jnp.asarray(obs) if step % 3 else obs})
        assert isinstance(given["act"], jax.Array if step % 3 == 1 else np.ndarray)
        np.testing.assert_allclose(given["act"], expected["act"], rtol=1e-5, atol=1e-5)
        state = expected["h_out"]


def test_two_trackers_share_out_the_state() -> None:
    outer_pair, inner_pair = (
        RecurrentInfo(f"lstm_{name}_state", f"lstm_{name}_state") for name in ("hidden", "cell")
    )
    fake = counting_lstm(take=lambda count: 1)
    for tracker in (
        RecurrentTracker(RecurrentTracker(fake, [inner_pair]), [outer_pair]),
        StatefulInferer(
            RecurrentTrackerWrapper(
                RecurrentTrackerWrapper(BaseWrapper(), fake, [inner_pair]), fake, [outer_pair]
            ),
            fake,
        ),
    ):
        for agent in (1, 2):
            tracker.begin_agent(agent)
        assert counts(tracker, [1]) == [(1, 2)]
        assert counts(tracker, [2, 1]) == [(1, 2), (2, 4)]


class Centre(InfererWrapper):
    """A user's wrapper that changes an input in place."""

    def api(self, inferer: Inferer) -> Any:
        return inferer.api

    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        view.input_slot_mut(0)[:] -= 1
        BaseWrapper().invoke(inferer, view)
        view.output_slot_mut(0)[:] *= 10

    def begin_agent(self, inferer: Inferer, agent: int) -> None: ...

    def end_agent(self, inferer: Inferer, agent: int) -> None: ...


def test_a_users_wrapper_changes_neither_the_callers_rows_nor_xlas() -> None:
    typed = TypedModel.from_function(lambda _, x: {"act": 2 * x["obs"]}, (), {"obs": ((1,), np.float32)})
    centred = MemoizingDynamicInferer(typed).into_stateful(Centre())
    mine = rows(1, 2, 3)
    for obs in (mine, jnp.asarray(mine)):
        act = centred.infer_arrays({"obs": obs})["act"]
        assert isinstance(act, type(obs))
        assert act.ravel().tolist() == [0, 20, 40]
    assert centred.infer_single({"obs": mine[1]})["act"] == 20
    assert mine.ravel().tolist() == [1, 2, 3]


# --- swapping the inferer
def test_the_inferer_is_swapped_and_the_state_kept() -> None:
    first, second, third = summing(), summing(take=lambda count: 1), summing()
    wrapper = RecurrentTrackerWrapper(BaseWrapper(), first)
    stateful = wrapper.wrap(first)
    stateful.begin_agent(7)
    batched = stateful.into_batched()
    batched.push(7, {"obs": [3]})
    assert stateful.replace_inferer(second) is first
    assert batched.execute()[7]["act"] == 3
    assert (first.sizes, second.sizes) == ([], [1])
    other = stateful.with_new_inferer(third)
    assert other.infer_batch({7: {"obs": [1]}})[7]["act"] == 7
    assert wrapper.states(7)["h_in"] == 7
    assert stateful.inferer is second


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"inputs": {"obs": (2,), "h_in": (1,)}}, "obs"),
        ({"inputs": {"seen": (1,), "h_in": (1,)}}, "seen"),
        ({"inputs": {"obs": (1,), "h_in": (1,), "extra": (1,)}}, "extra"),
        ({"inputs": {"obs": (1,)}}, "h_in"),
        ({"outputs": {"act": (1,), "h_out": (1,), "value": (1,)}}, "value"),
        ({"outputs": {"act": (1,)}}, "h_out"),
        ({"outputs": {"h_out": (1,), "act": (1,)}}, "act"),
        ({"dtype": np.float64}, "float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_incompatible_inferer_is_refused_and_nothing_changes(other: Any, message: str) -> None:
    first = summing()
    wrapper = RecurrentTrackerWrapper(BaseWrapper(), first)
    stateful = wrapper.wrap(first)
    stateful.begin_agent(0)
    stateful.infer_single({"obs": [2]})
    for swap in (stateful.replace_inferer, stateful.with_new_inferer):
        with pytest.raises(IncompatibleModelError, match=message):
            swap(summing(**other))
    assert stateful.inferer is first
    assert stateful.infer_single({"obs": [0]})["act"] == 4


@pytest.mark.parametrize(
    "other",
    [{"inputs": {"h_in": (1,), "obs": (1,)}}, {"outputs": {"act": (1,), "g": (1,)}}, {"dtype": np.float64}],
)
def test_wrappers_of_another_model_are_refused(other: Any) -> None:
    wrapper = RecurrentTrackerWrapper(BaseWrapper(), summing())
    with pytest.raises(IncompatibleModelError):
        wrapper.wrap(summing(**other))


def test_noise_for_another_model_is_refused() -> None:
    wrapper = EpsilonInjectorWrapper(BaseWrapper(), noisy_echo(), "epsilon")
    for inputs in ({"epsilon": (2,), "obs": (1,)}, {"obs": (1,)}, {"obs": (1,), "epsilon": (3,)}):
        with pytest.raises(IncompatibleModelError, match="epsilon"):
            wrapper.wrap(FakeInferer(inputs=inputs, outputs={"seen": (2,)}))


def test_a_stack_without_inputs_takes_its_rows_from_ids() -> None:
    tracker = RecurrentTracker.wrap(counting_lstm())
    tracker.begin_agent(4)
    assert tracker.infer_arrays({}, ids=[4])["hidden_output"].tolist() == [[1, 1]]
    assert tracker.infer_arrays({})["hidden_output"].shape == (0, 2)
    with pytest.raises(UnknownInputError):
        tracker.infer_arrays({"obs": rows(1)})
    with pytest.raises(MissingInputError):
        RecurrentTracker.wrap(summing()).infer_arrays({})


# --- the bundled policies
BUNDLED = Path(memojax.__file__).parent / "policies"


def test_the_bundled_recurrent_policy_is_tracked_as_by_hand(rng: np.random.Generator) -> None:
    inferer = memojax.load(BUNDLED / "recurrent_lstm.onnx")
    tracker = pickle.loads(pickle.dumps(RecurrentTracker.wrap(inferer)))
    assert tracker.infos == (RecurrentInfo("h_in", "h_out"), RecurrentInfo("c_in", "c_out"))
    spec = {name: (2, *shape) for name, shape in inferer.input_shapes()}
    state = {name: np.zeros(shape, np.float32) for name, shape in spec.items() if name != "obs"}
    for step in range(5):
        obs = rng.standard_normal(spec["obs"]).astype(np.float32)
        by_hand = inferer.infer_arrays({"obs": obs, **state})
        state = {name: by_hand[name.replace("in", "out")] for name in state}
        np.testing.assert_allclose(
            tracker.infer_arrays({"obs": obs})["logits"], by_hand["logits"], rtol=1e-5, atol=1e-6
        )
        if step == 2:
            tracker = pickle.loads(pickle.dumps(tracker))
    for name, array in state.items():
        np.testing.assert_allclose(tracker.states(1)[name], array[1], rtol=1e-5, atol=1e-6)


def test_the_bundled_noisy_policy_spreads_around_its_mean() -> None:
    inferer = memojax.load(BUNDLED / "pendulum_ppo.onnx")
    obs = {"obs": np.tile(np.array([[1, 0, 0]], np.float32), (2000, 1))}
    mean = EpsilonInjector(inferer, "epsilon", ConstantGenerator.zeros()).infer_arrays(obs)["action"]
    noisy = EpsilonInjector(inferer, "epsilon", HighQualityNoiseGenerator(0)).infer_arrays(obs)["action"]
    assert np.ptp(mean) < 1e-6
    assert noisy.std() > 0
    assert abs(noisy.mean() - mean.mean()) < 5 * noisy.std() / np.sqrt(2000)
