"""A policy in the place of a Stable-Baselines3 model: equal returns to the digit; skipped without it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memojax as mj
from memojax import errors

torch = pytest.importorskip("torch")
sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")

InvalidActionEnvDiscrete = pytest.importorskip("sb3_contrib.common.envs").InvalidActionEnvDiscrete
evaluate_masked = pytest.importorskip("sb3_contrib.common.maskable.evaluation").evaluate_policy
EvalCallback = pytest.importorskip("stable_baselines3.common.callbacks").EvalCallback
make_vec_env = pytest.importorskip("stable_baselines3.common.env_util").make_vec_env
evaluate_policy = pytest.importorskip("stable_baselines3.common.evaluation").evaluate_policy

warnings.filterwarnings("ignore", module="torch")
EPISODES = 6


def _export(
    module: Any, args: tuple[Any, ...], inputs: list[str], outputs: list[str], path: Path, batch: Any
) -> Path:
    torch.onnx.export(
        module.eval(),
        args,
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=batch,
        opset_version=17,
        dynamo=False,
    )
    return path


class Best(torch.nn.Module):
    """The best action of an actor-critic, as Stable-Baselines3's documentation exports it."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any) -> Any:
        return self.policy(obs, deterministic=True)


class Actor(torch.nn.Module):
    """The squashed mean of SAC's actor, in [-1, 1]."""

    def __init__(self, policy: Any):
        super().__init__()
        self.actor = policy.actor

    def forward(self, obs: Any) -> Any:
        return self.actor(obs, deterministic=True)


class Recurrent(torch.nn.Module):
    """Logits and the actor's next state; the file keeps sb3-contrib's layout [layers, n, hidden]."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any, h_in: Any, c_in: Any, episode_starts: Any) -> Any:
        distribution, (h, c) = self.policy.get_distribution(obs, (h_in, c_in), episode_starts)
        return distribution.distribution.logits, h, c


class Masked(torch.nn.Module):
    """Logits of a maskable policy from one-hot rows; the file applies `action_masks` if it is an input."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any, *action_masks: Any) -> Any:
        logits = self.policy.action_net(self.policy.mlp_extractor.forward_actor(obs))
        for mask in action_masks:
            logits = torch.where(mask > 0, logits, torch.full_like(logits, -1e8))
        return logits


def _returns(
    evaluate: Any, model: Any, make: Any, envs: int, **options: Any
) -> tuple[list[float], list[int]]:
    np.random.seed(7)  # sb3-contrib's environments draw from NumPy's global stream  # noqa: NPY002
    env = make_vec_env(make, n_envs=envs, seed=7)
    try:
        return evaluate(model, env, n_eval_episodes=EPISODES, return_episode_rewards=True, **options)
    finally:
        env.close()


N = {0: "n"}


def _ppo(folder: Path, env: str, width: int, steps: int) -> tuple[Any, Path]:
    """A model that has learned for `steps`, and its file for observations of `width` numbers."""
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=1).learn(steps)
    path = _export(
        Best(model.policy),
        (torch.zeros(1, width),),
        ["obs"],
        ["actions", "values", "log_prob"],
        folder / "m.onnx",
        {"obs": N, "actions": N},
    )
    return model, path


@pytest.mark.parametrize("envs", [1, 3])
def test_ppo_with_discrete_actions(tmp_path: Path, envs: int) -> None:
    model, path = _ppo(tmp_path, "CartPole-v1", 4, 128)
    policy = mj.load(path)
    wanted = _returns(evaluate_policy, model, "CartPole-v1", envs)
    assert _returns(evaluate_policy, policy, "CartPole-v1", envs) == wanted
    assert _returns(evaluate_policy, pickle.loads(pickle.dumps(policy)), "CartPole-v1", envs) == wanted


@pytest.mark.parametrize("envs", [1, 3])
def test_ppo_with_box_actions_is_clipped_to_the_space(tmp_path: Path, envs: int) -> None:
    model, path = _ppo(tmp_path, "Pendulum-v1", 3, 64)
    agent = mj.load(path).for_env(make_vec_env("Pendulum-v1"))
    mine, wanted = (
        _returns(evaluate_policy, agent, "Pendulum-v1", envs),
        _returns(evaluate_policy, model, "Pendulum-v1", envs),
    )
    np.testing.assert_allclose(mine[0], wanted[0], rtol=1e-6)
    assert mine[1] == wanted[1]


@pytest.mark.parametrize("envs", [1, 3])
def test_sac_is_scaled_to_the_space(tmp_path: Path, envs: int) -> None:
    model = sb3.SAC(
        "MlpPolicy", "Pendulum-v1", learning_starts=10, seed=1, policy_kwargs={"net_arch": [32, 32]}
    ).learn(30)
    path = _export(
        Actor(model.policy),
        (torch.zeros(1, 3),),
        ["obs"],
        ["action"],
        tmp_path / "m.onnx",
        {"obs": N, "action": N},
    )
    agent = mj.load(path).for_env(make_vec_env("Pendulum-v1"), action_transforms=[mj.ScaleAction()])
    mine, wanted = (
        _returns(evaluate_policy, agent, "Pendulum-v1", envs),
        _returns(evaluate_policy, model, "Pendulum-v1", envs),
    )
    np.testing.assert_allclose(mine[0], wanted[0], rtol=1e-6)


@pytest.fixture(scope="module")
def dqn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = sb3.DQN("MlpPolicy", "CartPole-v1", learning_starts=10, seed=1).learn(60)
    path = _export(
        model.policy.q_net,
        (torch.zeros(1, 4),),
        ["obs"],
        ["q_values"],
        tmp_path_factory.mktemp("dqn") / "m.onnx",
        {"obs": N, "q_values": N},
    )
    return model, path


@pytest.mark.parametrize("envs", [1, 3])
def test_dqn(dqn: tuple[Any, Path], envs: int) -> None:
    model, path = dqn
    wanted = _returns(evaluate_policy, model, "CartPole-v1", envs)
    assert _returns(evaluate_policy, mj.load(path), "CartPole-v1", envs) == wanted


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = contrib.RecurrentPPO(
        "MlpLstmPolicy",
        "CartPole-v1",
        n_steps=32,
        batch_size=32,
        seed=1,
        policy_kwargs={"lstm_hidden_size": 16},
    ).learn(64)
    state = torch.zeros(1, 2, 16)
    path = _export(
        Recurrent(model.policy),
        (torch.zeros(2, 4), state, state, torch.ones(2)),  # with zeros, the flags are traced away
        ["obs", "h_in", "c_in", "episode_starts"],
        ["logits", "h_out", "c_out"],
        tmp_path_factory.mktemp("recurrent") / "m.onnx",
        {
            "obs": N,
            "h_in": {1: "n"},
            "c_in": {1: "n"},
            "episode_starts": N,
            "logits": N,
            "h_out": {1: "n"},
            "c_out": {1: "n"},
        },
    )
    return model, path


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("tracked", [False, True])
def test_recurrent_ppo(recurrent: tuple[Any, Path], envs: int, tracked: bool) -> None:
    model, path = recurrent
    policy: Any = mj.load(path)
    wanted = _returns(evaluate_policy, model, "CartPole-v1", envs)
    policy = mj.RecurrentTracker.wrap(policy) if tracked else policy
    assert _returns(evaluate_policy, policy, "CartPole-v1", envs) == wanted


def test_recurrent_ppo_in_evaluate(recurrent: tuple[Any, Path]) -> None:
    _, path = recurrent
    result = mj.evaluate(path, "CartPole-v1", episodes=5, num_envs=5)
    assert "episode start -> episode_starts" in result.feeds
    assert (
        mj.evaluate(path, "CartPole-v1", episodes=5, num_envs=2).returns.tolist() == result.returns.tolist()
    )


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("envs", [1, 3])
def test_maskable_ppo(tmp_path: Path, envs: int, in_file: bool) -> None:
    make = lambda **_: InvalidActionEnvDiscrete(dim=8, n_invalid_actions=5)  # noqa: E731
    model = contrib.MaskablePPO("MlpPolicy", make(), n_steps=32, batch_size=32, seed=1).learn(64)
    masks = (torch.ones(1, 8),) if in_file else ()
    names = ["obs", "action_masks"][: 1 + len(masks)]
    batch = dict.fromkeys((*names, "logits"), N)
    path = _export(
        Masked(model.policy), (torch.zeros(1, 8), *masks), names, ["logits"], tmp_path / "m.onnx", batch
    )
    agent = mj.load(path).for_env(make())
    wanted = _returns(evaluate_masked, model, make, envs)
    assert _returns(evaluate_masked, agent, make, envs) == wanted


def test_eval_callback(dqn: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = dqn
    results = []
    for judged in (model, mj.load(path).for_env(make_vec_env("CartPole-v1", n_envs=2, seed=7))):
        callback = EvalCallback(
            make_vec_env("CartPole-v1", n_envs=2, seed=7),
            n_eval_episodes=EPISODES,
            eval_freq=1,
            verbose=0,
            log_path=str(tmp_path / type(judged).__name__),
        )
        callback.init_callback(judged)
        assert callback.on_step()
        results.append((callback.last_mean_reward, callback.evaluations_results, callback.evaluations_length))
    assert results[0] == results[1]


def test_wrong_arguments_of_sb3_are_refused(recurrent: tuple[Any, Path]) -> None:
    _, path = recurrent
    policy = mj.load(path)
    _, state = policy.predict(np.zeros((3, 4), np.float32))
    assert state is not None
    with pytest.raises(errors.InputShapeError, match="pass the state that predict gave"):
        policy.predict(np.zeros((2, 4), np.float32), state)
    with pytest.raises(errors.InputShapeError, match="3 flags for 2 observations"):
        policy.predict(np.zeros((2, 4), np.float32), episode_start=[True] * 3)
