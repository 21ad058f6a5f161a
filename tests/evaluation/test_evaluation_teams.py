"""Environments with several agents: one policy for all or one for each, and each agent's return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import memojax as mj
from memojax import errors, evaluation, policies

from ..evaluation_fakes import Policy, first, linear
from ..tiny_envs import UNIT, Tiny

EYES = {"scout": spaces.Box(-1, 1, (3,), np.float32)}
HANDS = {"scout": spaces.Box(-1, 1, (1,), np.float32)}


class Team:
    """Walkers see two numbers and choose one of two actions; a scout sees three and gives one. PettingZoo's
    API by duck.

    The reward of a walker is 1 for action 0; of the scout it is its action. Walker i leaves after 3 + i
    steps; the episode ends when all have left, the scout with the last walker.
    """

    metadata = {"name": "team_v0"}  # noqa: RUF012

    def __init__(self, walkers: int = 3, scout: bool = True, **at: Any):
        self.possible_agents = [f"walker_{i}" for i in range(walkers)] + (["scout"] if scout else [])
        self.agents: list[str] = []
        self.at = at
        self.seen: list[Mapping[str, Any]] = []

    def observation_space(self, agent: str) -> Any:
        return EYES.get(agent, UNIT)

    def action_space(self, agent: str) -> Any:
        return HANDS.get(agent, spaces.Discrete(2))

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.steps = np.random.default_rng(seed), 0
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> Any:
        assert set(actions) == set(self.agents)
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
        self.seen.append(actions)
        self.steps += 1
        if self.steps == self.at.get("raises"):
            raise RuntimeError("the ball is lost")
        before = self.agents
        rewards = {
            agent: float(np.sum(action)) if agent == "scout" else float(action == 0)
            for agent, action in actions.items()
        }
        left = [agent for agent in before if agent != "scout" and self.steps < 3 + int(agent[-1])]
        self.agents = [*left, *(["scout"] if left and "scout" in before else [])]
        ended = {agent: agent not in self.agents for agent in before}
        cut = dict.fromkeys(before, False)
        if self.at.get("cut") and not self.agents:
            ended, cut = cut, ended
        return self._observe(before), rewards, ended, cut, {agent: {} for agent in before}

    def _observe(self, agents: Any = None) -> dict[str, Any]:
        return {
            agent: self.rng.uniform(-1, 1, self.observation_space(agent).shape).astype(np.float32)
            for agent in agents or self.agents
        }

    def close(self) -> None:
        pass


def _scout() -> Policy:
    return Policy(lambda inputs: {"action": inputs["obs"][:, :1]}, {"obs": (3,)}, {"action": (1,)})


@pytest.mark.parametrize("num_envs", [1, 4, 6])
def test_each_agent_has_its_policy_and_its_return(num_envs: int) -> None:
    walker, scout = Policy(linear), _scout()
    result = mj.evaluate({"walker": walker, "scout": scout}, Team, episodes=6, num_envs=num_envs)
    assert result.env_id == "team_v0"
    assert result.lengths.tolist() == [5] * 6
    assert result.steps == 30
    by_agent = np.array(
        [result.agent_returns(agent) for agent in ("walker_0", "walker_1", "walker_2", "scout")]
    )
    np.testing.assert_allclose(by_agent.sum(axis=0), result.returns)
    assert walker.alive == scout.alive == set()
    # Walkers of all environments are one batch, which shrinks as they leave.
    assert max(walker.sizes) == 3 * num_envs
    assert max(scout.sizes) == num_envs
    one = mj.evaluate({"walker": Policy(linear), "scout": _scout()}, Team, episodes=6, num_envs=2, seed=0)
    np.testing.assert_array_equal(result.returns, one.returns)
    assert "walker_0: argmax of logits; scout: action" in result.action


def test_one_policy_may_act_for_all() -> None:
    policy = Policy(first)
    result = mj.evaluate(policy, lambda: Team(scout=False), episodes=2, num_envs=2)
    assert result.returns.tolist() == [12.0, 12.0]
    assert result.agent_returns("walker_2").tolist() == [5.0, 5.0]
    assert np.isnan(result.agent_returns("nobody")).all()
    assert policy.sizes[0] == 6
    assert result.feeds == ("observation -> obs",)


def test_an_agents_name_comes_before_its_kind() -> None:
    special, rest = Policy(first), Policy(linear)
    mj.evaluate({"walker_1": special, "walker": rest}, lambda: Team(scout=False), episodes=1)
    assert max(special.sizes) == 1
    assert max(rest.sizes) == 2


def test_draws_of_agents_differ_and_repeat() -> None:
    def run(num_envs: int) -> Any:
        policy = Policy(lambda _: {"logits": [0.0, 0.0]})
        make = lambda: Team(scout=False)  # noqa: E731
        return mj.evaluate(policy, make, episodes=8, num_envs=num_envs, deterministic=False)

    result = run(8)
    assert not np.array_equal(result.agent_returns("walker_1"), result.agent_returns("walker_2"))
    np.testing.assert_array_equal(result.returns, run(3).returns)


def test_files_get_few_plans_and_memory_by_agent() -> None:
    class Blind(Team):
        def action_space(self, agent: str) -> Any:
            return spaces.Discrete(2)

    file = policies.bundled("recurrent_lstm")
    make = lambda: Blind(scout=False)  # noqa: E731
    result = mj.evaluate(file, make, episodes=4, num_envs=4)
    exact = mj.evaluate(file, make, episodes=4, num_envs=1, bucketing="exact")
    np.testing.assert_array_equal(result.returns, exact.returns)
    assert {"h_out -> h_in", "c_out -> c_in"} <= set(result.feeds)
    assert {plan.size for plan in result.plans} <= {1, 2, 4, 8, 16}


def test_limits_cut_episodes_off() -> None:
    assert mj.evaluate(
        Policy(first), lambda: Team(scout=False), episodes=1, max_steps=2
    ).lengths.tolist() == [2]
    for cut in (False, True):
        result = mj.evaluate(Policy(first), lambda cut=cut: Team(scout=False, cut=cut), episodes=1)
        assert result.episodes[0].truncated is cut


def test_one_environment_may_be_given_and_stays_open() -> None:
    env = Team(scout=False)
    assert len(mj.evaluate(Policy(first), env, episodes=3).episodes) == 3
    with pytest.raises(errors.EvaluationError, match="is a single environment"):
        mj.evaluate(Policy(first), env, episodes=3, num_envs=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"walker": Policy(linear)}, "no policy for agent 'scout'.*walker_0, walker_1, walker_2, scout"),
        ({"walker": Policy(linear), "scout": _scout(), "cook": _scout()}, "no agent for policy 'cook'"),
        ({"walker": _scout(), "scout": _scout()}, r"team_v0 \(walker_0\)"),
    ],
)
def test_policies_that_do_not_fit_the_agents_are_refused(given: Any, message: str) -> None:
    with pytest.raises(errors.EvaluationError, match=f"(?s){message}"):
        mj.evaluate(given, Team)


def test_a_mapping_for_a_single_agent_is_refused() -> None:
    with pytest.raises(errors.EvaluationError, match="one agent: pass one policy"):
        mj.evaluate({"a": Policy(first)}, Tiny)


def test_an_environment_that_raises_is_named_with_the_partial_result() -> None:
    with pytest.raises(
        errors.EnvironmentFailedError,
        match=r"the ball is lost.*step 4, action \{'walker_1': 0, 'walker_2': 0\}",
    ) as caught:
        mj.evaluate(Policy(first), lambda: Team(scout=False, raises=4), episodes=2)
    assert caught.value.slot == 0


def test_an_environment_without_agents_is_named() -> None:
    class Empty(Team):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            answer = super().reset(seed)
            self.agents = []
            return answer

    with pytest.raises(errors.EnvironmentFailedError, match="left no agents"):
        mj.evaluate({"walker": Policy(first), "scout": _scout()}, Empty, episodes=1)


def test_a_bad_action_names_the_agent() -> None:
    nan = Policy(lambda _: {"action": np.nan}, {"obs": (3,)}, {"action": (1,)})
    with pytest.raises(errors.ActionError, match="step 1, agent scout"):
        mj.evaluate({"walker": Policy(first), "scout": nan}, Team, episodes=1)


def test_results_of_teams_are_kept_and_merged(tmp_path: Any) -> None:
    parts = [mj.evaluate(Policy(first), lambda: Team(scout=False), episodes=2, seed=seed) for seed in (0, 2)]
    merged = evaluation.merge(parts)
    evaluation.save(merged, tmp_path / "team.json")
    (again,) = evaluation.load(tmp_path / "team.json")
    np.testing.assert_array_equal(again.agent_returns("walker_1"), [4.0] * 4)
    assert merged.rows()[0]["return of walker_2"] == 5.0


def test_pettingzoos_own_environments() -> None:
    pettingzoo = pytest.importorskip("pettingzoo")
    from pettingzoo.utils.conversions import aec_to_parallel  # pyright: ignore[reportMissingImports]

    module = pytest.importorskip("pettingzoo.classic.rps_v2", exc_type=ImportError)
    make = lambda: aec_to_parallel(module.env(max_cycles=5))  # noqa: E731
    policy = Policy(lambda _: {"logits": [0.0, 1.0, 0.0]}, {"obs": (4,)}, {"logits": (3,)})
    result = mj.evaluate(policy, make, episodes=3, num_envs=2)
    assert pettingzoo.__version__
    assert result.env_id == "rps_v2"
    assert result.lengths.tolist() == [5, 5, 5]
    assert result.returns.tolist() == [0.0] * 3
    with pytest.raises(errors.EvaluationError, match="aec_to_parallel"):
        mj.evaluate(policy, module.env, episodes=1)
