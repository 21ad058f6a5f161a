"""Train and export `memojax/policies/pendulum_ppo.onnx`: Pendulum-v1, PPO, 64-64 MLP with an epsilon input.

Needs `pip install torch==2.13.0 stable-baselines3 'gymnasium[classic-control]' onnx onnxscript onnxruntime`.
Took 2 minutes on one CPU core.
"""

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _export import Roles, evaluate, export, write
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn

ENV_ID = "Pendulum-v1"
SEED = 0
TIMESTEPS = 200_000
ENVS = 4
MAX_TORQUE = 2.0
HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 1024,
    "batch_size": 64,
    "gae_lambda": 0.95,
    "gamma": 0.9,
    "n_epochs": 10,
    "learning_rate": 1e-3,
}
ROLES: Roles = {
    "observation": "obs",
    "action": "action",
    "action_kind": "value",
    "epsilon": "epsilon",
    "recurrent": [],
}


class Actor(nn.Module):
    """obs [batch, 3], epsilon [batch, 1] ~ N(0, 1) -> action [batch, 1], a torque in [-2, 2]."""

    def __init__(self, ppo: PPO) -> None:
        super().__init__()
        self.mean = nn.Sequential(ppo.policy.mlp_extractor.policy_net, ppo.policy.action_net)
        self.log_std = ppo.policy.log_std

    def forward(self, obs: Tensor, epsilon: Tensor) -> Tensor:
        return MAX_TORQUE * (self.mean(obs) + self.log_std.exp() * epsilon).clamp(-1.0, 1.0)


def make_training_env() -> gym.Env:
    """Pendulum with torque in [-1, 1], the scale of PPO's initial noise."""
    return RescaleAction(gym.make(ENV_ID), np.float32(-1.0), np.float32(1.0))


def main() -> None:
    """Train, export, measure, write."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    env = make_vec_env(make_training_env, n_envs=ENVS, seed=SEED)
    ppo = PPO(
        "MlpPolicy", env, seed=SEED, device="cpu", policy_kwargs={"net_arch": [64, 64]}, **HYPERPARAMETERS
    )
    ppo.learn(TIMESTEPS)
    seconds = time.perf_counter() - start
    model = export(Actor(ppo), {"obs": 3, "epsilon": 1}, ["action"], opset=18, dynamo=True)
    returns = evaluate(model, lambda: gym.make(ENV_ID), ROLES)
    noisy = evaluate(model, lambda: gym.make(ENV_ID), ROLES, noise=np.random.default_rng(SEED))
    write(
        "pendulum_ppo",
        model,
        returns,
        env_id=ENV_ID,
        algorithm="PPO",
        roles=ROLES,
        observation_indices=None,
        observation_transform="none",
        mean_return_with_noise=round(float(noisy.mean()), 3),
        seed=SEED,
        total_timesteps=ppo.num_timesteps,
        training_seconds=round(seconds),
        hyperparameters={"n_envs": ENVS, "net_arch": [64, 64], **HYPERPARAMETERS},
    )


if __name__ == "__main__":
    main()
