"""`memojax.evaluate`: episodes in a shrinking batch, matched spaces, errors with partial results."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import memojax as mj
from memojax import errors, policies
from memojax.evaluation import Episode, compare, plot
from memojax.evaluation.statistics import plus_minus
from memojax.model.exporter_names import canonical

from .. import tiny_envs
from ..evaluation_fakes import Policy, first, linear
from ..tiny_envs import Tiny

# The bundled policies


@pytest.mark.parametrize(
    ("name", "episodes"),
    [("acrobot_ppo", 24), ("pendulum_ppo", 20), ("recurrent_lstm", 20)],
)
def test_bundled_policies_reach_their_recorded_return(name: str, episodes: int) -> None:
    card = policies.card(name)
    select = [mj.SelectObs(card["observation_indices"])] if card["observation_indices"] else []
    result = mj.evaluate(
        policies.bundled(name), episodes=episodes, num_envs=4, seed=20_000, observation_transforms=select
    )
    assert result.env_id == card["env_id"]
    spread = math.hypot(
        max(result.standard_error, card["std_return"] / math.sqrt(episodes)), card["standard_error"]
    )
    assert abs(result.mean_return - card["mean_return"]) <= 3 * spread
    assert result.steps == result.lengths.sum()


@pytest.mark.slow
def test_evaluating_the_training_seeds_gives_the_recorded_return() -> None:
    result = mj.evaluate(policies.bundled("pendulum_ppo"), episodes=200, num_envs=50, seed=10_000)
    assert result.mean_return == pytest.approx(policies.card("pendulum_ppo")["mean_return"], abs=0.05)


def test_the_recurrent_policy_needs_its_memory() -> None:
    inferer = mj.load(policies.bundled("recurrent_lstm"))
    options: Any = {
        "episodes": 4,
        "num_envs": 4,
        "max_steps": 120,
        "observation_transforms": [mj.SelectObs([0, 2])],
    }
    remembering = mj.evaluate(inferer, **options)
    assert remembering.mean_length == 120
    assert {"h_out -> h_in", "c_out -> c_in"} <= set(remembering.feeds)
    tracked = mj.RecurrentTracker.wrap(inferer)
    tracked.begin_agent(0)
    assert mj.evaluate(tracked, env="CartPole-v1", **options).mean_length == 120
    assert tracked.agents == [
        0
    ]  # Agents that it served before are still there, and agents of the evaluation are gone.


def test_plans_count_the_calls_of_the_run() -> None:
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
    runs = [
        mj.evaluate(Policy(linear), Tiny, episodes=9, num_envs=n, seed=5, deterministic=deterministic)
        for n in (1, 4, 9, 4)
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.returns, runs[0].returns)
        np.testing.assert_array_equal(run.lengths, runs[0].lengths)
    np.testing.assert_array_equal(runs[0].seeds, range(5, 14))
    assert mj.evaluate(Policy(linear), Tiny, episodes=9, seed=99).lengths.tolist() != runs[0].lengths.tolist()


def test_worker_processes_give_the_same() -> None:
    here = mj.evaluate(Policy(linear), tiny_envs.tiny, episodes=8, num_envs=3)
    there = mj.evaluate(
        Policy(linear), tiny_envs.tiny, episodes=8, num_envs=3, vectorization="async", workers=2
    )
    np.testing.assert_array_equal(there.returns, here.returns)
    np.testing.assert_array_equal(there.lengths, here.lengths)


def test_environments_may_be_given_in_many_ways() -> None:
    policy = Policy(lambda inputs: {"logits": inputs["obs"][:, 2:3] * [-1.0, 1.0]}, {"obs": (4,)})
    by_id = mj.evaluate(policy, "CartPole-v1", episodes=2, max_steps=20)
    one = gym.make("CartPole-v1")
    for env in (gym.spec("CartPole-v1"), lambda: gym.make("CartPole-v1"), one, "gymnasium:CartPole-v1"):
        np.testing.assert_array_equal(
            mj.evaluate(policy, env, episodes=2, max_steps=20).lengths, by_id.lengths
        )
    assert one.reset()[0].shape == (4,)  # Not closed, because it belongs to the caller.


def test_max_steps_truncates() -> None:
    result = mj.evaluate(Policy(first), Tiny, episodes=6, max_steps=4)
    assert result.lengths.max() == 4
    assert [episode.truncated for episode in result.episodes] == [
        length == 4 for length in result.lengths
    ] or result.lengths.min() < 4
    assert result.returns.tolist() == result.lengths.tolist()


def test_episodes_are_told_as_they_finish() -> None:
    told: list[Episode] = []
    result = mj.evaluate(Policy(first), Tiny, episodes=5, on_episode=told.append)
    assert sorted(told, key=lambda episode: episode.index) == list(result.episodes)


def test_ctrl_c_gives_the_finished_episodes() -> None:
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


def test_an_exception_of_the_caller_keeps_its_type_and_notes_the_progress() -> None:
    def complain(episode: Episode) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        mj.evaluate(Policy(first), Tiny, episodes=3, on_episode=complain)
    assert "1 of 3 episodes" in caught.value.__notes__[0]


# Results


def test_a_result_is_json_and_has_its_statistics_right() -> None:
    result = mj.evaluate(Policy(linear), Tiny, episodes=8, name="mine")
    values = result.returns
    assert result.mean_return == pytest.approx(values.mean())
    assert result.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(8))
    low, high = result.confidence_interval()
    assert high - low == pytest.approx(
        2 * 2.364624 * result.standard_error, rel=1e-5
    )  # Student's t, 7 degrees of freedom
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
    ("name", "plain"),
    [
        ("obs/Position", "position"),
        ("Observations", "obs"),
        ("obs_0", "0"),
        ("action_masks", "actionmask"),
        ("s", "s"),
    ],
)
def test_names_are_compared_without_decoration(name: str, plain: str) -> None:
    assert canonical(name) == plain


def test_results_can_be_drawn_in_a_notebook() -> None:
    pytest.importorskip("matplotlib")
    result = mj.evaluate(Policy(linear), Tiny, episodes=8)
    returns, latency = plot(result).axes
    assert "Tiny: return of 8 episodes" in returns.get_title()
    assert latency.get_xlabel() == "batch size"
    with pytest.raises(errors.EvaluationError, match="no evaluation"):
        plot([])


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    mj.evaluate(Policy(first), Tiny, episodes=3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err.strip() == ""


# Bundled files


def test_bundled_policies_are_small_and_complete() -> None:
    assert policies.names() == ["acrobot_ppo", "pendulum_ppo", "recurrent_lstm"]
    for name in policies.names():
        assert policies.bundled(name).stat().st_size < 100_000
        assert {
            "env_id",
            "mean_return",
            "standard_error",
            "episodes",
            "observation_indices",
        } <= policies.card(name).keys()


@pytest.mark.parametrize("name", ["acrobat_ppo", "../policies/acrobot_ppo", ""])
def test_other_names_are_answered_with_existing_ones(name: str) -> None:
    with pytest.raises(errors.ModelLoadError, match="acrobot_ppo, pendulum_ppo, recurrent_lstm"):
        policies.bundled(name)
