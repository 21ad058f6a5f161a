"""Weight sets of a pool in evaluations: as one agent, as a team, and all of them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memojax as mj
from memojax import errors, evaluation, policies

from ..helpers import mostly_slow
from .test_evaluation_teams import Team

pytest.importorskip("gymnasium")


def _pool(name: str, count: int = 3) -> mj.PolicyPool:
    pool = mj.PolicyPool(policies.bundled(name), capacity=4)
    pool.add("set 0")
    for i in range(1, count):
        pool.add(f"set {i}", _scaled(pool.params("set 0"), 1 + 0.7 * i))
    return pool


def _scaled(params: Any, factor: float) -> dict[str, Any]:
    rng = np.random.default_rng(int(factor * 10))
    return {
        name: (weight * rng.uniform(-factor, factor, weight.shape)).astype(weight.dtype)
        if weight.dtype.kind == "f"
        else weight
        for name, weight in params.items()
    }


def _alone(pool: mj.PolicyPool, name: Any) -> mj.Inferer:
    return mj.load(pool.network.with_params(pool.params(name)))


def test_a_member_plays_as_its_own_policy_does() -> None:
    pool = _pool("acrobot_ppo")
    how: Any = {"env": "Acrobot-v1", "episodes": 4, "num_envs": 4, "max_steps": 60}
    for name in pool.names:
        found = mj.evaluate(pool[name], **how)
        np.testing.assert_array_equal(found.returns, mj.evaluate(_alone(pool, name), **how).returns)


@pytest.mark.parametrize("name", ["acrobot_ppo", "recurrent_lstm"])
@pytest.mark.parametrize("num_envs", mostly_slow([5], [None]))
def test_all_sets_play_the_same_seeds_in_one_call(name: str, num_envs: int | None) -> None:
    pool = _pool(name)
    recurrent = name == "recurrent_lstm"
    how: Any = {"episodes": 4, "max_steps": 40, "seed": 3}
    if recurrent:
        how |= {"env": "CartPole-v1", "observation_transforms": [mj.SelectObs([0, 2])]}
    results = evaluation.evaluate_pool(pool, num_envs=num_envs, **how)
    assert list(results) == pool.names
    for key, found in results.items():
        alone = mj.evaluate(_alone(pool, key), num_envs=2, **how)
        assert found.model == key
        np.testing.assert_array_equal(found.seeds, [3, 4, 5, 6])
        np.testing.assert_allclose(found.returns, alone.returns, rtol=1e-5)
        np.testing.assert_array_equal(found.lengths, alone.lengths)
        assert found.steps == alone.steps
    if num_envs is None:
        assert max(results["set 0"].batch_sizes) == 12
    evaluation.compare(results["set 0"], results["set 1"])


def test_some_sets_may_be_named() -> None:
    pool = _pool("acrobot_ppo")
    results = evaluation.evaluate_pool(pool, names=["set 2"], episodes=2, max_steps=5)
    assert list(results) == ["set 2"]
    with pytest.raises(errors.IncompatibleModelError, match="'nobody' is not in the pool"):
        evaluation.evaluate_pool(pool, names=["nobody"], episodes=2)


def test_pools_that_cannot_be_evaluated_are_refused() -> None:
    with pytest.raises(errors.EvaluationError, match="no weight sets"):
        evaluation.evaluate_pool(mj.PolicyPool(policies.bundled("acrobot_ppo")))
    pool = _walkers()
    with pytest.raises(errors.EvaluationError, match="several agents"):
        evaluation.evaluate_pool(pool, lambda: Team(scout=False))
    with pytest.raises(errors.EvaluationError, match="bucketing="):
        evaluation.evaluate_pool(_pool("acrobot_ppo"), bucketing="pow2")


def _walkers() -> mj.PolicyPool:
    weights = np.array([[1.0, -1.0], [2.0, 0.5]], np.float32)
    typed = mj.TypedModel.from_function(
        lambda w, inputs: {"logits": inputs["obs"] @ w}, weights, {"obs": ((2,), np.float32)}
    )
    pool = mj.PolicyPool(typed)
    pool.add("a")
    pool.add("b", -weights)
    return pool


def test_members_of_one_pool_are_answered_in_one_call() -> None:
    pool = _walkers()
    team = {"walker_0": pool["a"], "walker_1": pool["b"], "walker_2": pool["a"]}
    make = lambda: Team(scout=False)  # noqa: E731
    found = mj.evaluate(team, make, episodes=4, num_envs=4)
    apart = {agent: _alone(pool, member.name) for agent, member in team.items()}
    wanted = mj.evaluate(apart, make, episodes=4, num_envs=4)
    for agent in team:
        np.testing.assert_array_equal(found.agent_returns(agent), wanted.agent_returns(agent))
    assert max(found.batch_sizes) == 12
    assert max(wanted.batch_sizes) == 4
    assert sum(found.batch_sizes.values()) == found.steps / 4
