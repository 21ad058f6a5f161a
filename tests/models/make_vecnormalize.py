"""Make `vecnormalize.pkl`: statistics as Stable-Baselines3's `VecNormalize.save` writes them.

Needs `pip install stable-baselines3 'gymnasium[classic-control]'`. Prints the statistics that the test
expects.
"""

from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


def main() -> None:
    """Step Pendulum a little, save, print."""
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=0), clip_obs=5.0)
    env.action_space.seed(0)
    env.reset()
    for _ in range(50):
        env.step([env.action_space.sample() for _ in range(env.num_envs)])
    env.save(str(Path(__file__).with_name("vecnormalize.pkl")))
    print(env.obs_rms.mean.tolist(), env.obs_rms.var.tolist(), env.epsilon, env.clip_obs)


if __name__ == "__main__":
    main()
