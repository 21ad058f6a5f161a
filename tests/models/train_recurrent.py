"""Train and export `memojax/policies/recurrent_lstm.onnx`: CartPole-v1 without its velocities, PPO with an
LSTM.

Needs `pip install torch==2.13.0 stable-baselines3 sb3-contrib 'gymnasium[classic-control]' onnx onnxruntime`.
Took 5 minutes on one CPU core, the memoryless PPO it is compared with included.
"""

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _export import Normalize, Roles, evaluate, export, write
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

ENV_ID = "CartPole-v1"
KEPT = [0, 2]  # cart position and pole angle; the two velocities can only be had by remembering
SEED = 0
TIMESTEPS = 150_000
ENVS = 8
HIDDEN = 32
BATCHING: dict[str, Any] = {"n_steps": 32, "batch_size": 256}
HYPERPARAMETERS: dict[str, Any] = {"gae_lambda": 0.8, "gamma": 0.98}
LEARNING_RATE, CLIP_RANGE, EPOCHS = 1e-3, 0.2, 20
ROLES: Roles = {
    "observation": "obs",
    "action": "logits",
    "action_kind": "argmax",
    "epsilon": None,
    "recurrent": [["h_in", "h_out"], ["c_in", "c_out"]],
}


class Actor(nn.Module):
    """obs [batch, 2], h_in and c_in [batch, HIDDEN] -> logits [batch, 2], h_out, c_out."""

    def __init__(self, ppo: RecurrentPPO, env: VecNormalize) -> None:
        super().__init__()
        self.normalize = Normalize(env)
        self.lstm = ppo.policy.get_submodule("lstm_actor")
        self.head = nn.Sequential(ppo.policy.mlp_extractor.policy_net, ppo.policy.action_net)

    def forward(self, obs: Tensor, h_in: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # One time step: the LSTM wants [time, batch, k] and [layers, batch, HIDDEN].
        out, (h_out, c_out) = self.lstm(self.normalize(obs)[None], (h_in[None], c_in[None]))
        return self.head(out[0]), h_out[0], c_out[0]


def make_env() -> gym.Env:
    """CartPole that shows only the KEPT elements."""
    env = gym.make(ENV_ID)
    assert isinstance(env.observation_space, Box)
    space = Box(env.observation_space.low[KEPT], env.observation_space.high[KEPT])
    return TransformObservation(env, lambda obs: obs[KEPT], space)


def memoryless_return() -> float:
    """What a PPO MLP with the same masked observations and time steps reaches."""
    env = VecNormalize(make_vec_env(make_env, n_envs=ENVS, seed=SEED))
    ppo = PPO("MlpPolicy", env, seed=SEED, device="cpu", n_steps=128, **HYPERPARAMETERS)
    ppo.learn(TIMESTEPS)
    head = nn.Sequential(Normalize(env), ppo.policy.mlp_extractor.policy_net, ppo.policy.action_net)
    model = export(Memoryless(head), {"obs": len(KEPT)}, ["logits"], opset=17, dynamo=False)
    return float(evaluate(model, make_env, ROLES | {"recurrent": []}).mean())


class Memoryless(nn.Module):
    """obs [batch, 2] -> logits [batch, 2]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(obs)


def main() -> None:
    """Train, export, measure, write."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    env = VecNormalize(make_vec_env(make_env, n_envs=ENVS, seed=SEED))
    ppo = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        seed=SEED,
        device="cpu",
        n_epochs=EPOCHS,
        **BATCHING,
        **HYPERPARAMETERS,
        learning_rate=lambda left: LEARNING_RATE * left,
        clip_range=lambda left: CLIP_RANGE * left,
        policy_kwargs={
            "ortho_init": False,
            "activation_fn": nn.ReLU,
            "lstm_hidden_size": HIDDEN,
            "net_arch": [32],
        },
    )
    ppo.learn(TIMESTEPS)
    seconds = time.perf_counter() - start
    widths = {"obs": len(KEPT), "h_in": HIDDEN, "c_in": HIDDEN}
    model = export(Actor(ppo, env), widths, ["logits", "h_out", "c_out"], opset=17, dynamo=False)
    assert "LSTM" in {node.op_type for node in model.graph.node}
    returns = evaluate(model, make_env, ROLES)
    forgetful = evaluate(model, make_env, ROLES, forget=True)
    write(
        "recurrent_lstm",
        model,
        returns,
        env_id=ENV_ID,
        algorithm="RecurrentPPO",
        roles=ROLES,
        observation_indices=KEPT,
        observation_transform="cart position and pole angle only: elements 0 and 2 of the environment's "
        "observation",
        mean_return_state_zeroed=round(float(np.mean(forgetful)), 3),
        mean_return_memoryless_ppo=round(memoryless_return(), 3),
        seed=SEED,
        total_timesteps=ppo.num_timesteps,
        training_seconds=round(seconds),
        hyperparameters={
            "n_envs": ENVS,
            "lstm_hidden_size": HIDDEN,
            "net_arch": [32],
            "activation": "ReLU",
            "normalize": True,
            "n_epochs": EPOCHS,
            "learning_rate": f"linear {LEARNING_RATE}",
            "clip_range": f"linear {CLIP_RANGE}",
            **BATCHING,
            **HYPERPARAMETERS,
        },
    )


if __name__ == "__main__":
    main()
