"""`memojax.evaluate`: episodes dealt to a shrinking batch, spaces matched to inputs and outputs, errors that keep what was done."""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, final

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import memojax as mj
from memojax import errors, policies
from memojax.evaluation import Episode, compare, plot
from memojax.evaluation.result import plus_minus
from memojax.evaluation.spaces import canonical

from . import tiny_envs
from .tiny_envs import UNIT, Count, Masked, Tiny, Wrong

MODELS = Path(__file__).parent / "models"
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


@final
class Policy(mj.Inferer):
    """A policy of NumPy closures: nothing compiles; it notes the batches and the agents that it saw."""

    def __init__(
        self,
        run: Run,
        inputs: Mapping[str, Any] = {"obs": (2,)},
        outputs: Mapping[str, Any] = {"logits": (2,)},
        metadata: Mapping[str, str] = {},
    ):
        self.run, self.metadata = run, metadata
        self._api = mj.ModelApi(_specs(inputs), _specs(outputs))
        self.batches: list[Mapping[str, np.ndarray]] = []
        self.sizes: list[int] = []
        self.alive: set[int] = set()

    @property
    def raw_api(self) -> mj.ModelApi:
        return self._api

    @property
    def api(self) -> mj.ModelApi:
        return self._api

    def select_batch_size(self, max_count: int) -> int:
        return max_count

    def infer_raw(self, view: mj.ScratchPadView) -> None:
        given = {spec.name: np.array(view.input_slot(slot)) for slot, spec in enumerate(self._api.inputs)}
        results = self._answer(given, len(view))
        for slot, spec in enumerate(self._api.outputs):
            view.set_output(slot, results[spec.name])

    def infer_arrays(self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None) -> Any:
        assert ids is not None
        assert set(ids) == self.alive
        for spec in self._api.inputs:
            assert inputs[spec.name].dtype == spec.dtype
            assert inputs[spec.name].shape == (len(ids), *spec.shape)
        return self._answer(inputs, len(ids))

    def _answer(self, inputs: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
        self.batches.append(inputs)
        self.sizes.append(n)
        answers = self.run(inputs)
        return {s.name: np.broadcast_to(np.asarray(answers[s.name], s.dtype), (n, *s.shape)) for s in self._api.outputs}

    def is_ready(self, count: int) -> bool:
        return True

    def prepare(self, count: int) -> Future[None]:
        raise NotImplementedError

    def begin_agent(self, agent: int) -> None:
        assert agent not in self.alive
        self.alive.add(agent)

    def end_agent(self, agent: int) -> None:
        self.alive.remove(agent)


def _specs(given: Mapping[str, Any]) -> tuple[mj.TensorSpec, ...]:
    """From name -> element shape (float32), or name -> (element shape, dtype)."""
    typed = {name: spec if spec and isinstance(spec[-1], type) else (spec, np.float32) for name, spec in given.items()}
    return tuple(mj.TensorSpec(name, shape, np.dtype(dtype)) for name, (shape, dtype) in typed.items())


def first(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Prefers action 0."""
    return {"logits": [1.0, 0.0]}


def linear(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Decides by the observation, row by row."""
    return {"logits": inputs["obs"] * [1.0, 2.0]}


# The bundled policies


@pytest.mark.parametrize(
    ("name", "episodes"),
    [("acrobot_ppo", 24), ("pendulum_ppo", 20), ("recurrent_lstm", 20)],
)
def test_bundled_policies_reach_their_recorded_return(name: str, episodes: int) -> None:
    card = policies.card(name)
    select = [mj.SelectObs(card["observation_indices"])] if card["observation_indices"] else []
    result = mj.evaluate(policies.bundled(name), episodes=episodes, num_envs=4, seed=20_000, observation_transforms=select)
    assert result.env_id == card["env_id"]
    spread = math.hypot(max(result.standard_error, card["std_return"] / math.sqrt(episodes)), card["standard_error"])
    assert abs(result.mean_return - card["mean_return"]) <= 3 * spread
    assert result.steps == result.lengths.sum()


@pytest.mark.slow
def test_evaluating_the_trainings_own_seeds_gives_its_own_return_back() -> None:
    result = mj.evaluate(policies.bundled("pendulum_ppo"), episodes=200, num_envs=50, seed=10_000)
    assert result.mean_return == pytest.approx(policies.card("pendulum_ppo")["mean_return"], abs=0.05)


def test_the_recurrent_policy_needs_its_memory() -> None:
    inferer = mj.load(policies.bundled("recurrent_lstm"))
    options: Any = {"episodes": 4, "num_envs": 4, "max_steps": 120, "observation_transforms": [mj.SelectObs([0, 2])]}
    remembering = mj.evaluate(inferer, **options)
    assert remembering.mean_length == 120
    assert {"h_out -> h_in", "c_out -> c_in"} <= set(remembering.feeds)
    tracked = mj.RecurrentTracker.wrap(inferer)
    tracked.begin_agent(0)
    assert mj.evaluate(tracked, env="CartPole-v1", **options).mean_length == 120
    assert tracked.agents == [0]  # those that it served before are still there, those of the evaluation are gone


def test_plans_tell_what_ran() -> None:
    inferer = mj.load(policies.bundled("acrobot_ppo"), preload=[3])
    inferer.infer_arrays({"obs": np.zeros((3, 6), np.float32)})
    result = mj.evaluate(inferer, episodes=3, max_steps=70)
    assert {plan.size: plan.calls for plan in result.plans} == dict(result.batch_sizes)
    assert sum(size * count for size, count in result.batch_sizes.items()) == result.steps
    made = sum(plan.compile_ms for plan in result.plans if plan.size != 3)
    assert result.compile_seconds == pytest.approx(made / 1e3)
    assert result.policy_seconds <= result.seconds
    assert result.metadata["algorithm"] == "PPO"
    assert result.model == "acrobot_ppo"


# Dealing episodes


def test_the_batch_shrinks_as_episodes_end() -> None:
    policy = Policy(linear)
    result = mj.evaluate(policy, Tiny, episodes=10, num_envs=10)
    assert policy.sizes == sorted(policy.sizes, reverse=True)
    assert policy.sizes[0] == 10
    assert len(policy.sizes) == result.lengths.max()
    assert dict(result.batch_sizes) == {size: policy.sizes.count(size) for size in set(policy.sizes)}
    assert policy.alive == set()


def test_free_environments_take_the_next_episode() -> None:
    policy = Policy(linear)
    result = mj.evaluate(policy, Tiny, episodes=12, num_envs=4)
    assert set(policy.sizes[: -int(result.lengths.max())]) == {4}
    assert [episode.index for episode in result.episodes] == list(range(12))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_repeats_and_does_not_depend_on_num_envs(deterministic: bool) -> None:
    runs = [mj.evaluate(Policy(linear), Tiny, episodes=9, num_envs=n, seed=5, deterministic=deterministic) for n in (1, 4, 9, 4)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.returns, runs[0].returns)
        np.testing.assert_array_equal(run.lengths, runs[0].lengths)
    np.testing.assert_array_equal(runs[0].seeds, range(5, 14))
    assert mj.evaluate(Policy(linear), Tiny, episodes=9, seed=99).lengths.tolist() != runs[0].lengths.tolist()


def test_worker_processes_give_the_same() -> None:
    here = mj.evaluate(Policy(linear), tiny_envs.tiny, episodes=8, num_envs=3)
    there = mj.evaluate(Policy(linear), tiny_envs.tiny, episodes=8, num_envs=3, vectorization="async", workers=2)
    np.testing.assert_array_equal(there.returns, here.returns)
    np.testing.assert_array_equal(there.lengths, here.lengths)


def test_environments_may_be_given_in_many_ways() -> None:
    policy = Policy(lambda inputs: {"logits": inputs["obs"][:, 2:3] * [-1.0, 1.0]}, {"obs": (4,)})
    by_id = mj.evaluate(policy, "CartPole-v1", episodes=2, max_steps=20)
    one = gym.make("CartPole-v1")
    for env in (gym.spec("CartPole-v1"), lambda: gym.make("CartPole-v1"), one, "gymnasium:CartPole-v1"):
        np.testing.assert_array_equal(mj.evaluate(policy, env, episodes=2, max_steps=20).lengths, by_id.lengths)
    assert one.reset()[0].shape == (4,)  # not closed: it is not ours


def test_max_steps_truncates() -> None:
    result = mj.evaluate(Policy(first), Tiny, episodes=6, max_steps=4)
    assert result.lengths.max() == 4
    assert [episode.truncated for episode in result.episodes] == [length == 4 for length in result.lengths] or result.lengths.min() < 4
    assert result.returns.tolist() == result.lengths.tolist()


def test_episodes_are_told_as_they_finish() -> None:
    told: list[Episode] = []
    result = mj.evaluate(Policy(first), Tiny, episodes=5, on_episode=told.append)
    assert sorted(told, key=lambda episode: episode.index) == list(result.episodes)


def test_ctrl_c_gives_what_is_done_so_far() -> None:
    policy = Policy(first)

    def stop(episode: Episode) -> None:
        if len(seen := [*stopped, episode]) == 3:
            raise KeyboardInterrupt
        stopped[:] = seen

    stopped: list[Episode] = []
    result = mj.evaluate(policy, Tiny, episodes=50, num_envs=2, on_episode=stop)
    assert result.interrupted
    assert len(result.episodes) == 3
    assert result.asked == 50
    assert "3 of 50 episodes" in str(result)
    assert policy.alive == set()


def test_an_exception_of_the_caller_keeps_its_type_and_says_how_far_it_was() -> None:
    def complain(episode: Episode) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        mj.evaluate(Policy(first), Tiny, episodes=3, on_episode=complain)
    assert "1 of 3 episodes" in caught.value.__notes__[0]


# Observations


def _seen(space: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[list[Mapping[str, np.ndarray]], mj.Evaluation]:
    policy = Policy(first, inputs)
    result = mj.evaluate(policy, lambda: Tiny(space), episodes=2, num_envs=2, **options)
    return policy.batches, result


def test_dict_parts_go_by_name() -> None:
    space = spaces.Dict({"goal": UNIT, "position": UNIT, "camera": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    batches, result = _seen(space, {"obs/Position": (2,), "goal": (2,), "camera": (3, 4, 4)})
    assert set(result.feeds) == {"position -> obs/Position", "goal -> goal", "camera -> camera (channels first)"}
    assert batches[0]["camera"].max() > 1


def test_dict_parts_go_by_shape_where_names_differ() -> None:
    space = spaces.Dict({"a": spaces.Box(0, 1, (5,)), "b": spaces.Discrete(3), "unused": spaces.Box(0, 1, (2, 2))})
    batches, result = _seen(space, {"features": (5,), "kind": (3,)})
    assert set(result.feeds) == {"a -> features", "b -> kind (one-hot)"}
    np.testing.assert_array_equal(batches[0]["kind"].sum(axis=1), 1)


def test_tuples_and_nested_spaces_have_parts_too() -> None:
    space = spaces.Tuple((UNIT, spaces.Dict({"left": UNIT, "right": spaces.MultiBinary(3)})))
    _, result = _seen(space, {"obs_0": (2,), "1.left": (2,), "switches": (3,)})
    assert set(result.feeds) == {"0 -> obs_0", "1.left -> 1.left", "1.right -> switches"}


def test_discrete_observations_are_indices_or_one_hot() -> None:
    batches, _ = _seen(spaces.Discrete(4, start=10), {"state": ((), np.int64)})
    assert batches[0]["state"].min() >= 10
    batches, _ = _seen(spaces.Discrete(4, start=10), {"state": (4,)})
    np.testing.assert_array_equal(batches[0]["state"].sum(axis=1), 1)
    batches, _ = _seen(spaces.MultiDiscrete([2, 3]), {"state": (5,)})
    np.testing.assert_array_equal(batches[0]["state"].sum(axis=1), 2)
    batches, _ = _seen(spaces.MultiDiscrete([2, 3]), {"state": ((2,), np.int32)})
    assert batches[0]["state"].max() <= 2


def test_the_caller_may_say_which_part_feeds_which_input() -> None:
    space = spaces.Dict({"a": UNIT, "b": UNIT})
    batches, result = _seen(space, {"x": (2,), "y": (2,)}, observation={"b": "x", "a": "y"})
    assert set(result.feeds) == {"b -> x", "a -> y"}
    _, result = _seen(UNIT, {"x": (2,)}, observation="x")
    assert result.feeds == ("observation -> x",)
    assert batches


@pytest.mark.parametrize(
    ("space", "inputs", "options", "message"),
    [
        (UNIT, {"obs": (3,)}, {}, r"observation: float32\[2\].*obs: float32\[n, 3\]"),
        (UNIT, {"obs": ((2,), np.int64)}, {}, r"observation: float32\[2\].*obs: int64"),
        (UNIT, {"obs": (2,), "command": (3,)}, {}, r"command: float32\[n, 3\].*observation -> obs fits"),
        (spaces.Dict({"a": UNIT, "b": UNIT}), {"x": (2,)}, {}, r"a: float32\[2\]; b: float32\[2\].*x: float32\[n, 2\]"),
        (spaces.Dict({"a": UNIT, "b": UNIT}), {"x": (4,)}, {}, "FlattenObservation"),
        (spaces.Dict({"pos": UNIT}), {"pos": (3,)}, {}, r"pos: float32\[2\].*pos: float32\[n, 3\]"),
        (
            spaces.Dict({"pos": UNIT}),
            {"pos": (2,), "vel": (2,)},
            {},
            r"gives  pos: float32\[2\].*needs .*vel: float32\[n, 2\].*pos -> pos fits",
        ),
        (spaces.Text(5), {"obs": (2,)}, {}, "Text"),
        (UNIT, {"obs": (2,)}, {"observation": {"nope": "obs"}}, "part 'nope'.*'observation'"),
        (UNIT, {"obs": (2,)}, {"observation": "nope"}, "input 'nope'.*'obs'"),
        (spaces.Dict({"a": UNIT, "b": UNIT}), {"x": (2,)}, {"observation": "x"}, "has the parts a, b"),
        (UNIT, {"obs": (2,)}, {"epsilon": "nope"}, "epsilon= names"),
        (UNIT, {"obs": (1,)}, {"observation_transforms": [mj.SelectObs([5])]}, r"elements \[5\].*\[2\]"),
    ],
)
def test_observations_that_do_not_fit_name_both_sides(space: Any, inputs: Any, options: Any, message: str) -> None:
    with pytest.raises(errors.SpaceMismatchError, match=f"(?s){message}"):
        _seen(space, inputs, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": np.zeros(2, np.float32)}, "part 'b'.*only 'a'"),
        ({"a": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}, r"'a' as float32\[2\], but gave float32\[3\]"),
        ({"a": np.array(["x", "y"]), "b": np.zeros(1, np.float32)}, r"'a' as float32\[2\], but gave <U1"),
        (np.zeros(3), "part 'a'.*but gave"),
    ],
)
def test_an_environment_that_leaves_its_own_space_is_named_with_what_was_done(wrong: Any, message: str) -> None:
    space = spaces.Dict({"a": UNIT, "b": spaces.Box(0, 1, (1,))})
    with pytest.raises(errors.SpaceMismatchError, match=message) as caught:
        mj.evaluate(Policy(first, {"a": (2,), "b": (1,)}), lambda: Wrong(space, wrong=wrong), episodes=2)
    assert caught.value.partial.steps == 4


def test_an_environment_in_a_worker_that_leaves_its_own_space_is_named_with_what_was_done() -> None:
    with pytest.raises(errors.SpaceMismatchError, match=r"declares 'observation' as float32\[2\], but gave float32\[5\]") as caught:
        mj.evaluate(Policy(first), tiny_envs.shapeless, episodes=4, num_envs=4, vectorization="async", workers=2)
    assert caught.value.partial.interrupted
    assert caught.value.partial.steps == 8


# Actions


def _acted(
    space: Any, outputs: Mapping[str, Any], answers: Mapping[str, Any], metadata: Mapping[str, str] = {}, **options: Any
) -> list[Any]:
    envs: list[Tiny] = []

    def make() -> Tiny:
        envs.append(Tiny(UNIT, space))
        return envs[-1]

    mj.evaluate(Policy(lambda _: answers, outputs=outputs, metadata=metadata), make, episodes=2, num_envs=1, **options)
    return envs[0].actions


def test_discrete_actions() -> None:
    three = spaces.Discrete(3)
    assert set(_acted(three, {"logits": (3,)}, {"logits": [0.0, 2.0, 1.0]})) == {1}
    assert set(_acted(three, {"action": ((), np.int64)}, {"action": 2})) == {2}
    assert set(_acted(three, {"out": ((1,), np.int32)}, {"out": [2]})) == {2}
    assert set(_acted(spaces.Discrete(3, start=5), {"q": (3,)}, {"q": [0.0, 2.0, 1.0]})) == {6}


def test_multi_discrete_actions() -> None:
    space = spaces.MultiDiscrete([2, 3])
    for shape, answer, wanted in (((5,), [0, 1, 5, 0, 9], [1, 2]), (((2,), np.int64), [1, 0], [1, 0])):
        for action in _acted(space, {"actions": shape}, {"actions": answer}):
            np.testing.assert_array_equal(action, wanted)
    for action in _acted(spaces.MultiDiscrete([3, 3]), {"logits": (2, 3)}, {"logits": [[0, 0, 1], [1, 0, 0]]}):
        np.testing.assert_array_equal(action, [2, 0])


def test_multi_binary_actions() -> None:
    space = spaces.MultiBinary(3)
    for outputs, answer in (((3,), [-1, 2, 0.3]), (((3,), np.int8), [0, 1, 1])):
        for action in _acted(space, {"out": outputs}, {"out": answer}):
            np.testing.assert_array_equal(action, [0, 1, 1])
    for action in _acted(space, {"probs": (3,)}, {"probs": [0.1, 0.9, 0.4]}):
        np.testing.assert_array_equal(action, [0, 1, 0])


def test_box_actions_are_clipped_unless_the_model_or_the_caller_says_otherwise() -> None:
    space, far = spaces.Box(-2, 2, (2,), np.float32), {"action": [-9.0, 1.0]}
    assert _acted(space, {"action": (2,)}, far)[0].tolist() == [-2, 1]
    variants: list[dict[str, Any]] = [{"action_transforms": []}, {"metadata": {"clip_actions": "false"}}]
    for options in variants:
        with pytest.raises(errors.EnvironmentFailedError, match="is not in Box"):
            _acted(space, {"action": (2,)}, far, **options)
    squashed = {"action": [-1.0, 0.5]}
    assert _acted(space, {"action": (2,)}, squashed, action_transforms=[mj.ScaleAction(), mj.ClipAction()])[0].tolist() == [-2, 1]
    assert _acted(space, {"action": (1, 2)}, {"action": [[0, 1]]})[0].tolist() == [0, 1]


def test_deterministic_outputs_are_preferred_where_that_is_asked() -> None:
    outputs = {"continuous_actions": (1,), "deterministic_continuous_actions": (1,), "version_number": (1,), "value": (1,)}
    answers = {"continuous_actions": [1.0], "deterministic_continuous_actions": [2.0], "version_number": [3.0], "value": [4.0]}
    box = spaces.Box(-5, 5, (1,))
    assert _acted(box, outputs, answers)[0] == [2.0]
    assert _acted(box, outputs, answers, deterministic=False)[0] == [1.0]
    assert _acted(box, outputs, answers, action="value")[0] == [4.0]


def test_stochastic_actions_follow_the_scores() -> None:
    counts = np.bincount([int(a) for a in _sampled({"logits": (3,)}, {"logits": np.log([0.2, 0.8, 1e-9])})], minlength=3)
    assert counts[2] == 0
    assert 0.1 < counts[0] / counts.sum() < 0.3
    probabilities = np.bincount([int(a) for a in _sampled({"probs": (3,)}, {"probs": [0.2, 0.8, 0.0]})], minlength=3)
    np.testing.assert_array_equal(probabilities, counts)  # the same stream of draws
    assert set(_sampled({"q_values": (3,)}, {"q_values": [0.2, 0.8, 0.0]})) == {1}
    bits = np.array(_acted(spaces.MultiBinary(2), {"logits": (2,)}, {"logits": [-9.0, 0.0]}, deterministic=False))
    assert set(bits[:, 1]) == {0, 1}
    assert set(bits[:, 0]) == {0}


def _sampled(outputs: Mapping[str, Any], answers: Mapping[str, Any]) -> list[Any]:
    actions: list[Any] = []

    class Noting(Tiny):
        def step(self, action: Any) -> Any:
            actions.append(action)
            return super().step(action)

    mj.evaluate(Policy(lambda _: answers, outputs=outputs), lambda: Noting(UNIT, spaces.Discrete(3)), episodes=60, deterministic=False)
    return actions


@pytest.mark.parametrize(
    ("space", "outputs", "options", "message"),
    [
        (spaces.Discrete(4), {"logits": (3,)}, {}, r"Discrete\(4\): float\[n, 4\].*logits: float32\[n, 3\]"),
        (UNIT, {"value": (2,), "log_prob": ()}, {}, r"value: float32\[n, 2\]; log_prob"),
        (UNIT, {"a": (2,), "b": (2,)}, {}, "several outputs fit.*'a', 'b'.*action="),
        (UNIT, {"a": (2,)}, {"action": "nope"}, "'nope'; there are 'a'"),
        (UNIT, {"a": (2,), "b": (3,)}, {"action": "b"}, r"b: float32\[n, 3\]"),
        (spaces.Dict({"a": UNIT}), {"a": (2,)}, {}, "Dict.*are supported"),
        (spaces.Box(0, 9, (2,), np.int32), {"a": (2,)}, {}, "whole numbers"),
        (spaces.Discrete(2), {"logits": (2,)}, {"action_transforms": [mj.ClipAction()]}, "for Box actions"),
        (spaces.Box(-np.inf, np.inf, (2,)), {"a": (2,)}, {"action_transforms": [mj.ScaleAction()]}, "no finite bounds"),
    ],
)
def test_actions_that_do_not_fit_name_both_sides(space: Any, outputs: Any, options: Any, message: str) -> None:
    with pytest.raises(errors.SpaceMismatchError, match=f"(?s){message}"):
        _acted(space, outputs, {}, **options)


def test_nan_and_impossible_actions_are_named_with_what_was_done() -> None:
    def late(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {"action": np.nan if len(policy.sizes) == 6 else 0.5}

    policy = Policy(late, outputs={"action": (1,)})
    with pytest.raises(errors.ActionError, match=r"output 'action' is NaN.*seed.*step 6.*its inputs were numbers") as caught:
        mj.evaluate(policy, lambda: Tiny(UNIT, spaces.Box(-1, 1, (1,))), episodes=9, num_envs=9)
    assert len(caught.value.partial.episodes) == 9 - policy.sizes[-1]
    assert policy.alive == set()
    with pytest.raises(errors.ActionError, match=r"gives the action 7.*takes 0 to 2"):
        _acted(spaces.Discrete(3), {"action": ((), np.int64)}, {"action": 7})
    with pytest.raises(errors.ActionError, match="input 'obs' was NaN already"):
        mj.evaluate(Policy(linear), lambda: Wrong(wrong=np.full(2, np.nan, np.float32)), episodes=1, max_steps=3)


# Noise, masks, memory


def test_epsilon_is_zero_or_a_stream_of_each_episode() -> None:
    inputs = {"obs": (2,), "epsilon": (3,)}
    run = lambda inputs: {"logits": inputs["epsilon"][:, :2]}  # noqa: E731
    still = Policy(run, inputs)
    result = mj.evaluate(still, Tiny, episodes=3)
    assert not any(batch["epsilon"].any() for batch in still.batches)
    assert "zeros -> epsilon" in result.feeds
    one, many = Policy(run, inputs), Policy(run, inputs)
    returns = [mj.evaluate(p, Tiny, episodes=3, num_envs=n, deterministic=False).returns.tolist() for p, n in ((one, 1), (many, 3))]
    assert returns[0] == returns[1]
    np.testing.assert_array_equal(one.batches[0]["epsilon"][0], many.batches[0]["epsilon"][0])
    assert len({batch["epsilon"].tobytes() for batch in one.batches}) == len(one.batches)
    named = mj.evaluate(Policy(first, {"obs": (2,), "z": (3,)}), Tiny, episodes=1, epsilon="z")
    assert named.feeds == ("observation -> obs", "zeros -> z")


def test_action_masks_are_ones_or_what_the_environment_allows() -> None:
    inputs = {"obs": (2,), "action_masks": (3,)}
    run = lambda inputs: {"logits": np.where(inputs["action_masks"] > 0, [3.0, 2.0, 1.0], -np.inf)}  # noqa: E731
    for env, wanted in ((Tiny, 0), (Masked, 2)):
        policy = Policy(run, inputs, {"logits": (3,)})
        made: list[Tiny] = []
        mj.evaluate(policy, lambda env=env, made=made: made.append(env(UNIT, spaces.Discrete(3))) or made[-1], episodes=2, num_envs=1)
        assert set(made[0].actions) == {wanted}
    with pytest.raises(errors.SpaceMismatchError, match=r"action_mask.*action_masks: float32\[n, 4\]"):
        mj.evaluate(Policy(run, {**inputs, "action_masks": (4,)}, {"logits": (3,)}), lambda: Masked(UNIT, spaces.Discrete(3)), episodes=1)


@pytest.mark.parametrize("recurrent", [None, [("h_in", "h_out")]])
def test_hidden_state_starts_at_zero_in_every_episode(recurrent: Any) -> None:
    def total(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        summed = inputs["h_in"] + inputs["obs"]
        return {"action": summed, "h_out": summed}

    policy = Policy(total, {"obs": (1,), "h_in": (1,)}, {"action": (1,), "h_out": (1,)})
    result = mj.evaluate(policy, Count, episodes=7, num_envs=3, recurrent=recurrent)
    for n, total_return in zip(result.lengths, result.returns, strict=True):
        assert total_return == sum(step * (step + 1) / 2 for step in range(1, n + 1))


def test_an_observed_input_is_no_hidden_state() -> None:
    policy = Policy(lambda inputs: {"obs": inputs["obs"], "logits": [1, 0]}, {"obs": (2,)}, {"obs": (2,), "logits": (2,)})
    assert mj.evaluate(policy, Tiny, episodes=1).feeds == ("observation -> obs",)


# Transforms


def test_normalize_reads_what_stable_baselines3_saved(tmp_path: Path) -> None:
    mean, var = (
        [-0.2209197614000545, -0.014244381514218935, 0.9692461583762729],
        [0.4105259192061474, 0.540466135884771, 15.805067418202954],
    )
    rows = np.array([[0.5, -1.0, 3.0], [99.0, 0.0, 0.0]])
    wanted = np.clip((rows - mean) / np.sqrt(np.array(var) + 1e-8), -5, 5)
    np.savez(tmp_path / "stats.npz", mean=mean, var=var, clip_obs=5.0)
    (tmp_path / "stats.json").write_text(json.dumps({"obs_rms": {"mean": mean, "var": var}, "clip_obs": 5.0}))
    assert "stable_baselines3" not in sys.modules
    for source in (
        MODELS / "vecnormalize.pkl",
        tmp_path / "stats.npz",
        str(tmp_path / "stats.json"),
        {"mean": mean, "var": var, "clip_obs": 5},
    ):
        normalized = mj.NormalizeObs.from_vecnormalize(source)(rows)
        np.testing.assert_allclose(normalized, wanted, rtol=1e-6)
        assert normalized.dtype == np.float32


def test_normalize_parts() -> None:
    statistics = {"obs_rms": {"a": {"mean": [1.0], "var": [4.0]}, "b": {"mean": [0.0], "var": [1.0]}}, "norm_obs_keys": ["a"]}
    normalize = mj.NormalizeObs.from_vecnormalize(statistics)
    result = normalize({"a": np.array([[5.0]]), "b": np.array([[7.0]])})
    assert result["a"] == pytest.approx(2.0)
    assert result["b"] == 7.0
    with pytest.raises(errors.SpaceMismatchError, match="parts a, the observation is one array"):
        normalize(np.zeros((1, 1)))
    with pytest.raises(errors.SpaceMismatchError, match="has the parts c"):
        normalize({"c": np.zeros((1, 1))})
    with pytest.raises(errors.SpaceMismatchError, match=r"shape \[1\], the observation is \[2\]"):
        normalize({"a": np.zeros((1, 2))})


def test_normalize_refuses_what_is_no_statistics(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "noise.pkl").write_bytes(b"\x80\x04nothing")
    (tmp_path / "empty.json").write_text("{}")
    for name in ("bomb.pkl", "noise.pkl", "empty.json", "missing.pkl"):
        with pytest.raises(errors.EvaluationError, match=name):
            mj.NormalizeObs.from_vecnormalize(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(errors.EvaluationError, match="must be alike"):
        mj.NormalizeObs([0.0, 0.0], [1.0])
    with pytest.raises(errors.EvaluationError, match="negative"):
        mj.NormalizeObs([0.0], [-1.0])


def test_transforms_run_before_the_model() -> None:
    batches, _ = _seen(UNIT, {"obs": (1,)}, observation_transforms=[mj.NormalizeObs([9.0, 0.0], [1.0, 1.0]), mj.SelectObs([0])])
    assert batches[0]["obs"].max() < -7


def test_scaling_without_bounds_says_where_it_belongs() -> None:
    with pytest.raises(errors.EvaluationError, match="give low and high"):
        mj.ScaleAction()(np.zeros((1, 1)))


# What goes wrong around the policy


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Acrobat-v1", "did you mean 'Acrobot-v1'"),
        ("CartPole-v7", "did you mean 'CartPole-v1'"),
        ("Nothing-like-it", "module:id imports"),
        ("no_such_module:Env-v0", "no module 'no_such_module'"),
        ("LunarLander-v3", "needs a package that is missing.*[Bb]ox2[Dd]"),
    ],
)
def test_unknown_environments_are_answered_with_the_closest(env: str, message: str) -> None:
    if env == "LunarLander-v3" and _installed("Box2D"):
        pytest.skip("Box2D is installed here")
    with pytest.raises(errors.UnknownEnvironmentError, match=message):
        mj.evaluate(Policy(first), env, episodes=1)


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_raises_is_named_with_what_was_done(vectorization: Any) -> None:
    policy = Policy(first)
    with pytest.raises(errors.EnvironmentFailedError, match=r"(?s)raising raised in step: RuntimeError: the simulator lost") as caught:
        mj.evaluate(policy, tiny_envs.raising, episodes=20, num_envs=20, vectorization=vectorization, workers=2)
    assert "step 7, action 0" in str(caught.value)
    partial = caught.value.partial
    assert partial.interrupted
    assert 0 < len(partial.episodes) < 20
    assert partial.lengths.max() <= 6
    assert policy.alive == set()
    if vectorization == "async":
        assert "in worker" in str(caught.value)
        assert "tiny_envs.py" in str(caught.value)
    else:
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_worker_that_dies_is_named_with_what_was_done() -> None:
    with pytest.raises(errors.WorkerDiedError, match=r"worker \d \(process \d+\) exited with code 3") as caught:
        mj.evaluate(Policy(first), tiny_envs.dying, episodes=20, num_envs=20, vectorization="async", workers=2)
    assert 0 < len(caught.value.partial.episodes) < 20


@pytest.mark.skipif(sys.platform == "win32", reason="no signals on Windows")
def test_a_worker_that_is_killed_is_named_with_what_was_done() -> None:
    with pytest.raises(errors.WorkerDiedError, match=r"worker \d \(process \d+\) .*9") as caught:
        mj.evaluate(Policy(first), tiny_envs.killed, episodes=20, num_envs=20, vectorization="async", workers=2)
    assert 0 < len(caught.value.partial.episodes) < 20


def test_a_reward_that_is_nan_is_named_with_what_was_done() -> None:
    class Lost(Tiny):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, float("nan") if self.steps == 7 else reward, *rest

    with pytest.raises(errors.EnvironmentFailedError, match=r"reward NaN.*step 7, action 0") as caught:
        mj.evaluate(Policy(first), Lost, episodes=20, num_envs=20)
    assert 0 < len(caught.value.partial.episodes) < 20
    assert not math.isnan(caught.value.partial.mean_return)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_made(vectorization: Any) -> None:
    with pytest.raises(errors.EnvironmentFailedError, match="could not be made: FileNotFoundError: no licence"):
        mj.evaluate(Policy(first), tiny_envs.unmakeable, episodes=1, vectorization=vectorization)


def test_old_gym_environments_are_told_what_is_expected() -> None:
    class Old(Tiny):
        def step(self, action: Any) -> Any:
            return super().step(action)[:4]

    with pytest.raises(errors.EnvironmentFailedError, match="step gave 4 values, expected observation, reward"):
        mj.evaluate(Policy(first), Old, episodes=1)


def test_a_policy_that_fails_is_named_with_the_batch() -> None:
    def fail(inputs: Any) -> Any:
        raise errors.CompileError("out of memory")

    with pytest.raises(errors.EvaluationError, match="failed on a batch of 3: out of memory") as caught:
        mj.evaluate(Policy(fail), Tiny, episodes=3)
    assert caught.value.partial.steps == 0
    assert math.isnan(caught.value.partial.mean_return)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes is a positive whole number, got 0"),
        ({"num_envs": -1}, "num_envs is a positive"),
        ({"max_steps": 1.5}, "max_steps is a positive"),
        ({"vectorization": "threads"}, "'sync' or 'async'"),
        ({"env": None}, "which environment"),
        ({"env": 7}, "not 7"),
        ({"env": Tiny(), "num_envs": 2}, "one environment was given"),
        ({"env": Tiny(), "vectorization": "async"}, "cannot be sent to worker processes"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(errors.EvaluationError, match=message):
        mj.evaluate(Policy(first), **{"env": Tiny, **options})


def test_vector_environments_are_refused_with_the_way_out() -> None:
    with pytest.raises(errors.EvaluationError, match="num_envs="):
        mj.evaluate(Policy(first), gym.make_vec("CartPole-v1", num_envs=2))


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'memojax\[rl\]'"):
        mj.evaluate(Policy(first), "CartPole-v1")


# Results


def test_a_result_is_json_and_has_its_statistics_right() -> None:
    result = mj.evaluate(Policy(linear), Tiny, episodes=8, name="mine")
    values = result.returns
    assert result.mean_return == pytest.approx(values.mean())
    assert result.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(8))
    low, high = result.confidence_interval()
    assert high - low == pytest.approx(2 * 2.364624 * result.standard_error, rel=1e-5)  # Student's t, 7 degrees of freedom
    data = json.loads(json.dumps(result.to_dict()))
    assert data["returns"] == values.tolist()
    assert data["model"] == "mine"
    assert data["confidence_interval_95"] == [low, high]
    assert "mine on Tiny: return" in repr(result)


def test_one_episode_has_no_standard_error() -> None:
    result = mj.evaluate(Policy(linear), Tiny, episodes=1)
    assert math.isnan(result.standard_error)
    assert all(map(math.isnan, result.confidence_interval()))


def test_policies_are_compared_seed_by_seed() -> None:
    zero, one = ({"logits": [1, 0]}, {"logits": [0, 1]})
    better = mj.evaluate(Policy(lambda _: zero), Tiny, episodes=10, name="better")
    worse = mj.evaluate(Policy(lambda _: one), Tiny, episodes=10, num_envs=3, name="worse")
    result = compare(better, worse)
    assert result.difference == pytest.approx(-better.mean_length)
    assert result.significant
    assert result.episodes == 10
    assert compare(better, better).interval == (0, 0)
    with pytest.raises(errors.EvaluationError, match="no seed in common"):
        compare(better, mj.evaluate(Policy(first), Tiny, episodes=2, seed=100))
    with pytest.raises(errors.EvaluationError, match="on one environment"):
        compare(better, mj.evaluate(Policy(first), lambda: Tiny(), episodes=2))


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (-81.92, 1.451, "-81.9 ± 1.5"),
        (0.12345, 0.0123, "0.123 ± 0.012"),
        (500, 0, "500.0 ± 0.0"),
        (1234.5, 120.0, "1234 ± 120"),
        (3.0, math.nan, "3.0"),
        (math.nan, math.nan, "-"),
    ],
)
def test_numbers_have_as_many_digits_as_their_error_justifies(mean: float, error: float, text: str) -> None:
    assert plus_minus(mean, error) == text


@pytest.mark.parametrize(
    ("name", "plain"), [("obs/Position", "position"), ("Observations", "obs"), ("obs_0", "0"), ("action_masks", "actionmask"), ("s", "s")]
)
def test_names_are_compared_by_what_matters(name: str, plain: str) -> None:
    assert canonical(name) == plain


def test_results_can_be_drawn_in_a_notebook() -> None:
    pytest.importorskip("matplotlib")
    result = mj.evaluate(Policy(linear), Tiny, episodes=8)
    returns, latency = plot(result).axes
    assert "Tiny: return of 8 episodes" in returns.get_title()
    assert latency.get_xlabel() == "batch size"
    with pytest.raises(errors.EvaluationError, match="no evaluation"):
        plot([])


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    mj.evaluate(Policy(first), Tiny, episodes=3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err.strip() == ""


# Bundled files


def test_bundled_policies_are_small_and_complete() -> None:
    assert policies.names() == ["acrobot_ppo", "pendulum_ppo", "recurrent_lstm"]
    for name in policies.names():
        assert policies.bundled(name).stat().st_size < 100_000
        assert {"env_id", "mean_return", "standard_error", "episodes", "observation_indices"} <= policies.card(name).keys()


@pytest.mark.parametrize("name", ["acrobat_ppo", "../policies/acrobot_ppo", ""])
def test_other_names_are_answered_with_those_that_exist(name: str) -> None:
    with pytest.raises(errors.ModelLoadError, match="acrobot_ppo, pendulum_ppo, recurrent_lstm"):
        policies.bundled(name)
