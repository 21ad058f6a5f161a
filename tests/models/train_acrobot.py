"""Train and export `memojax/policies/acrobot_ppo.onnx`: Acrobot-v1, PPO, 64-64 MLP.

Needs `pip install torch==2.13.0 stable-baselines3 'gymnasium[classic-control]' onnx onnxruntime`.
Took 1.5 minutes on one CPU core.
"""

import time
from typing import Any

import gymnasium as gym
import torch
from _export import Normalize, Roles, evaluate, export, write
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

ENV_ID = "Acrobot-v1"
SEED = 0
TIMESTEPS = 500_000
ENVS = 16
HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 256,
    "batch_size": 256,
    "gae_lambda": 0.94,
    "gamma": 0.99,
    "n_epochs": 4,
}
ROLES: Roles = {
    "observation": "obs",
    "action": "logits",
    "action_kind": "argmax",
    "epsilon": None,
    "recurrent": [],
}


class Actor(nn.Module):
    """obs [batch, 6] -> logits [batch, 3]."""

    def __init__(self, ppo: PPO, env: VecNormalize) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Normalize(env), ppo.policy.mlp_extractor.policy_net, ppo.policy.action_net
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


def main() -> None:
    """Train, export, measure, write."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    env = VecNormalize(make_vec_env(ENV_ID, n_envs=ENVS, seed=SEED))
    ppo = PPO(
        "MlpPolicy", env, seed=SEED, device="cpu", policy_kwargs={"net_arch": [64, 64]}, **HYPERPARAMETERS
    )
    ppo.learn(TIMESTEPS)
    seconds = time.perf_counter() - start
    model = export(Actor(ppo, env), {"obs": 6}, ["logits"], opset=17, dynamo=False)
    returns = evaluate(model, lambda: gym.make(ENV_ID), ROLES)
    write(
        "acrobot_ppo",
        model,
        returns,
        env_id=ENV_ID,
        algorithm="PPO",
        roles=ROLES,
        observation_indices=None,
        observation_transform="none outside the graph: it normalizes its own input",
        seed=SEED,
        total_timesteps=ppo.num_timesteps,
        training_seconds=round(seconds),
        hyperparameters={"n_envs": ENVS, "net_arch": [64, 64], "normalize": True, **HYPERPARAMETERS},
    )


if __name__ == "__main__":
    main()
