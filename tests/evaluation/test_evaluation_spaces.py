"""Matching of observations and actions in `memojax.evaluate`: spaces, noise, masks, memory, transforms."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import memojax as mj
from memojax import errors

from .. import tiny_envs
from ..evaluation_fakes import Policy, first, linear
from ..tiny_envs import UNIT, Count, Masked, Tiny, Wrong

MODELS = Path(__file__).parents[1] / "models"


# Observations


def _seen(
    space: Any, inputs: Mapping[str, Any], **options: Any
) -> tuple[list[Mapping[str, np.ndarray]], mj.Evaluation]:
    policy = Policy(first, inputs)
    result = mj.evaluate(policy, lambda: Tiny(space), episodes=2, num_envs=2, **options)
    return policy.batches, result


def test_dict_parts_go_by_name() -> None:
    space = spaces.Dict({"goal": UNIT, "position": UNIT, "camera": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    batches, result = _seen(space, {"obs/Position": (2,), "goal": (2,), "camera": (3, 4, 4)})
    assert set(result.feeds) == {
        "position -> obs/Position",
        "goal -> goal",
        "camera -> camera (channels first)",
    }
    assert batches[0]["camera"].max() > 1


def test_dict_parts_go_by_shape_where_names_differ() -> None:
    space = spaces.Dict(
        {"a": spaces.Box(0, 1, (5,)), "b": spaces.Discrete(3), "unused": spaces.Box(0, 1, (2, 2))}
    )
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
        (
            spaces.Dict({"a": UNIT, "b": UNIT}),
            {"x": (2,)},
            {},
            r"a: float32\[2\]; b: float32\[2\].*x: float32\[n, 2\]",
        ),
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
def test_observations_that_do_not_fit_name_both_sides(
    space: Any, inputs: Any, options: Any, message: str
) -> None:
    with pytest.raises(errors.SpaceMismatchError, match=f"(?s){message}"):
        _seen(space, inputs, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"a": np.zeros(2, np.float32)},
            r"part 'b'.*only 'a' \[<lambda>, episode 0, seed 0, step 2\]: correct its observation_space",
        ),
        (
            {"a": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)},
            r"'a' as float32\[2\], but gave float32\[3\]",
        ),
        ({"a": np.array(["x", "y"]), "b": np.zeros(1, np.float32)}, r"'a' as float32\[2\], but gave <U1"),
        (np.zeros(3), "part 'a'.*but gave"),
    ],
)
def test_an_environment_that_leaves_its_space_is_named_with_the_partial_result(
    wrong: Any, message: str
) -> None:
    space = spaces.Dict({"a": UNIT, "b": spaces.Box(0, 1, (1,))})
    with pytest.raises(errors.SpaceMismatchError, match=message) as caught:
        mj.evaluate(Policy(first, {"a": (2,), "b": (1,)}), lambda: Wrong(space, wrong=wrong), episodes=2)
    assert caught.value.partial.steps == 4


def test_a_worker_environment_that_leaves_its_space_is_named_with_the_partial_result() -> None:
    with pytest.raises(
        errors.SpaceMismatchError, match=r"declares 'observation' as float32\[2\], but gave float32\[5\]"
    ) as caught:
        mj.evaluate(
            Policy(first), tiny_envs.shapeless, episodes=4, num_envs=4, vectorization="async", workers=2
        )
    assert caught.value.partial.interrupted
    assert caught.value.partial.steps == 8


# Actions


def _acted(
    space: Any,
    outputs: Mapping[str, Any],
    answers: Mapping[str, Any],
    metadata: Mapping[str, str] = {},
    **options: Any,
) -> list[Any]:
    envs: list[Tiny] = []

    def make() -> Tiny:
        envs.append(Tiny(UNIT, space))
        return envs[-1]

    mj.evaluate(
        Policy(lambda _: answers, outputs=outputs, metadata=metadata), make, episodes=2, num_envs=1, **options
    )
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
    for action in _acted(
        spaces.MultiDiscrete([3, 3]), {"logits": (2, 3)}, {"logits": [[0, 0, 1], [1, 0, 0]]}
    ):
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
    assert _acted(space, {"action": (2,)}, squashed, action_transforms=[mj.ScaleAction(), mj.ClipAction()])[
        0
    ].tolist() == [-2, 1]
    assert _acted(space, {"action": (1, 2)}, {"action": [[0, 1]]})[0].tolist() == [0, 1]


def test_deterministic_outputs_are_preferred_on_request() -> None:
    outputs = {
        "continuous_actions": (1,),
        "deterministic_continuous_actions": (1,),
        "version_number": (1,),
        "value": (1,),
    }
    answers = {
        "continuous_actions": [1.0],
        "deterministic_continuous_actions": [2.0],
        "version_number": [3.0],
        "value": [4.0],
    }
    box = spaces.Box(-5, 5, (1,))
    assert _acted(box, outputs, answers)[0] == [2.0]
    assert _acted(box, outputs, answers, deterministic=False)[0] == [1.0]
    assert _acted(box, outputs, answers, action="value")[0] == [4.0]


def test_stochastic_actions_follow_the_scores() -> None:
    counts = np.bincount(
        [int(a) for a in _sampled({"logits": (3,)}, {"logits": np.log([0.2, 0.8, 1e-9])})], minlength=3
    )
    assert counts[2] == 0
    assert 0.1 < counts[0] / counts.sum() < 0.3
    probabilities = np.bincount(
        [int(a) for a in _sampled({"probs": (3,)}, {"probs": [0.2, 0.8, 0.0]})], minlength=3
    )
    np.testing.assert_array_equal(probabilities, counts)  # the same stream of draws
    assert set(_sampled({"q_values": (3,)}, {"q_values": [0.2, 0.8, 0.0]})) == {1}
    bits = np.array(
        _acted(spaces.MultiBinary(2), {"logits": (2,)}, {"logits": [-9.0, 0.0]}, deterministic=False)
    )
    assert set(bits[:, 1]) == {0, 1}
    assert set(bits[:, 0]) == {0}


def _sampled(outputs: Mapping[str, Any], answers: Mapping[str, Any]) -> list[Any]:
    actions: list[Any] = []

    class Noting(Tiny):
        def step(self, action: Any) -> Any:
            actions.append(action)
            return super().step(action)

    mj.evaluate(
        Policy(lambda _: answers, outputs=outputs),
        lambda: Noting(UNIT, spaces.Discrete(3)),
        episodes=60,
        deterministic=False,
    )
    return actions


@pytest.mark.parametrize(
    ("space", "outputs", "options", "message"),
    [
        (spaces.Discrete(4), {"logits": (3,)}, {}, r"Discrete\(4\): float\[n, 4\].*logits: float32\[n, 3\]"),
        (UNIT, {"value": (2,), "log_prob": ()}, {}, r"value: float32\[n, 2\]; log_prob"),
        (UNIT, {"a": (2,), "b": (2,)}, {}, "several outputs fit.*'a', 'b'.*action="),
        (UNIT, {"a": (2,)}, {"action": "nope"}, "'nope'; the outputs are 'a'"),
        (UNIT, {"a": (2,), "b": (3,)}, {"action": "b"}, r"b: float32\[n, 3\]"),
        (spaces.Dict({"a": UNIT}), {"a": (2,)}, {}, "Dict.*are supported"),
        (spaces.Box(0, 9, (2,), np.int32), {"a": (2,)}, {}, "whole numbers"),
        (spaces.Discrete(2), {"logits": (2,)}, {"action_transforms": [mj.ClipAction()]}, "need Box actions"),
        (
            spaces.Box(-np.inf, np.inf, (2,)),
            {"a": (2,)},
            {"action_transforms": [mj.ScaleAction()]},
            "no finite bounds",
        ),
    ],
)
def test_actions_that_do_not_fit_name_both_sides(
    space: Any, outputs: Any, options: Any, message: str
) -> None:
    with pytest.raises(errors.SpaceMismatchError, match=f"(?s){message}"):
        _acted(space, outputs, {}, **options)


def test_nan_and_impossible_actions_are_named_with_the_partial_result() -> None:
    def late(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {"action": np.nan if len(policy.sizes) == 6 else 0.5}

    policy = Policy(late, outputs={"action": (1,)})
    with pytest.raises(
        errors.ActionError, match=r"output 'action' is NaN.*seed.*step 6.*its inputs were numbers"
    ) as caught:
        mj.evaluate(policy, lambda: Tiny(UNIT, spaces.Box(-1, 1, (1,))), episodes=9, num_envs=9)
    assert len(caught.value.partial.episodes) == 9 - policy.sizes[-1]
    assert policy.alive == set()
    with pytest.raises(errors.ActionError, match=r"gives the action 7.*takes 0 to 2"):
        _acted(spaces.Discrete(3), {"action": ((), np.int64)}, {"action": 7})
    with pytest.raises(errors.ActionError, match="input 'obs' was already NaN"):
        mj.evaluate(
            Policy(linear), lambda: Wrong(wrong=np.full(2, np.nan, np.float32)), episodes=1, max_steps=3
        )


# Noise, masks, memory


def test_epsilon_is_zero_or_a_stream_of_each_episode() -> None:
    inputs = {"obs": (2,), "epsilon": (3,)}
    run = lambda inputs: {"logits": inputs["epsilon"][:, :2]}  # noqa: E731
    still = Policy(run, inputs)
    result = mj.evaluate(still, Tiny, episodes=3)
    assert not any(batch["epsilon"].any() for batch in still.batches)
    assert "zeros -> epsilon" in result.feeds
    one, many = Policy(run, inputs), Policy(run, inputs)
    returns = [
        mj.evaluate(p, Tiny, episodes=3, num_envs=n, deterministic=False).returns.tolist()
        for p, n in ((one, 1), (many, 3))
    ]
    assert returns[0] == returns[1]
    np.testing.assert_array_equal(one.batches[0]["epsilon"][0], many.batches[0]["epsilon"][0])
    assert len({batch["epsilon"].tobytes() for batch in one.batches}) == len(one.batches)
    named = mj.evaluate(Policy(first, {"obs": (2,), "z": (3,)}), Tiny, episodes=1, epsilon="z")
    assert named.feeds == ("observation -> obs", "zeros -> z")


def test_action_masks_are_ones_or_the_environments_own() -> None:
    inputs = {"obs": (2,), "action_masks": (3,)}
    run = lambda inputs: {"logits": np.where(inputs["action_masks"] > 0, [3.0, 2.0, 1.0], -np.inf)}  # noqa: E731
    for env, wanted in ((Tiny, 0), (Masked, 2)):
        policy = Policy(run, inputs, {"logits": (3,)})
        made: list[Tiny] = []
        mj.evaluate(
            policy,
            lambda env=env, made=made: made.append(env(UNIT, spaces.Discrete(3))) or made[-1],
            episodes=2,
            num_envs=1,
        )
        assert set(made[0].actions) == {wanted}
    with pytest.raises(errors.SpaceMismatchError, match=r"action_mask.*action_masks: float32\[n, 4\]"):
        mj.evaluate(
            Policy(run, {**inputs, "action_masks": (4,)}, {"logits": (3,)}),
            lambda: Masked(UNIT, spaces.Discrete(3)),
            episodes=1,
        )


@pytest.mark.parametrize("recurrent", [None, [("h_in", "h_out")]])
def test_hidden_state_starts_at_zero_in_every_episode(recurrent: Any) -> None:
    def total(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        summed = inputs["h_in"] + inputs["obs"]
        return {"action": summed, "h_out": summed}

    policy = Policy(total, {"obs": (1,), "h_in": (1,)}, {"action": (1,), "h_out": (1,)})
    result = mj.evaluate(policy, Count, episodes=7, num_envs=3, recurrent=recurrent)
    for n, total_return in zip(result.lengths, result.returns, strict=True):
        assert total_return == sum(step * (step + 1) / 2 for step in range(1, n + 1))


def test_inputs_that_nothing_feeds_are_answered_with_the_option_for_hidden_state() -> None:
    policy = Policy(first, {"obs": (2,), "core": (3,)}, {"logits": (2,), "later": (3,)})
    with pytest.raises(errors.SpaceMismatchError, match=r"nothing is left for core: .*recurrent=\["):
        mj.evaluate(policy, Tiny, episodes=1)


def test_an_observed_input_is_not_hidden_state() -> None:
    policy = Policy(
        lambda inputs: {"obs": inputs["obs"], "logits": [1, 0]}, {"obs": (2,)}, {"obs": (2,), "logits": (2,)}
    )
    assert mj.evaluate(policy, Tiny, episodes=1).feeds == ("observation -> obs",)


# Transforms


def test_normalize_reads_statistics_of_stable_baselines3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test may have imported it: from here on, an import of it or of a part of it fails.
    for module in [name for name in sys.modules if name.split(".")[0] == "stable_baselines3"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    mean, var = (
        [-0.2209197614000545, -0.014244381514218935, 0.9692461583762729],
        [0.4105259192061474, 0.540466135884771, 15.805067418202954],
    )
    rows = np.array([[0.5, -1.0, 3.0], [99.0, 0.0, 0.0]])
    wanted = np.clip((rows - mean) / np.sqrt(np.array(var) + 1e-8), -5, 5)
    np.savez(tmp_path / "stats.npz", mean=mean, var=var, clip_obs=5.0)
    (tmp_path / "stats.json").write_text(json.dumps({"obs_rms": {"mean": mean, "var": var}, "clip_obs": 5.0}))
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
    statistics = {
        "obs_rms": {"a": {"mean": [1.0], "var": [4.0]}, "b": {"mean": [0.0], "var": [1.0]}},
        "norm_obs_keys": ["a"],
    }
    normalize = mj.NormalizeObs.from_vecnormalize(statistics)
    result = normalize({"a": np.array([[5.0]]), "b": np.array([[7.0]])})
    assert result["a"] == pytest.approx(2.0)
    assert result["b"] == 7.0
    with pytest.raises(errors.SpaceMismatchError, match="parts a, but the observation is one array"):
        normalize(np.zeros((1, 1)))
    with pytest.raises(errors.SpaceMismatchError, match="but the observation has the parts c"):
        normalize({"c": np.zeros((1, 1))})
    with pytest.raises(errors.SpaceMismatchError, match=r"shape \[1\], but the observation \[2\]"):
        normalize({"a": np.zeros((1, 2))})


def test_normalize_refuses_files_without_statistics(tmp_path: Path) -> None:
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
    with pytest.raises(errors.EvaluationError, match="need equal names and shapes"):
        mj.NormalizeObs([0.0, 0.0], [1.0])
    with pytest.raises(errors.EvaluationError, match="negative"):
        mj.NormalizeObs([0.0], [-1.0])


def test_transforms_run_before_the_model() -> None:
    batches, _ = _seen(
        UNIT,
        {"obs": (1,)},
        observation_transforms=[mj.NormalizeObs([9.0, 0.0], [1.0, 1.0]), mj.SelectObs([0])],
    )
    assert batches[0]["obs"].max() < -7


def test_scaling_without_bounds_raises_with_the_way_out() -> None:
    with pytest.raises(errors.EvaluationError, match="pass low and high"):
        mj.ScaleAction()(np.zeros((1, 1)))
