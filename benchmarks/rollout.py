"""A rollout on the device compared with a Python loop over ONNX Runtime: 1,024 steps of N pendulums.

    python benchmarks/rollout.py [--steps 1024] [--envs 16 256 2048] [--rounds 5] [--json FILE]

The first two: environments in JAX, the bundled policy inside `lax.scan`, one call for all steps; by the pure
function, and with the kernels in it (`to_jax(kernels=True)`). Then the same environments in NumPy, and the
same policy in ONNX Runtime, called at each step. "Physics alone" is `lax.scan` over the environments, with
the actions of the first rollout: no policy makes the loop faster than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from _measure import machine
from rich.console import Console
from rich.table import Table

import memojax

_WARM = 0.15
"""Seconds of the same work before each measurement: threads of ONNX Runtime look for work that long."""

POLICY = Path(memojax.__file__).parent / "policies" / "pendulum_ppo.onnx"


def step(xp: ModuleType, state: Any, action: Any) -> tuple[Any, Any]:
    """Gymnasium's Pendulum-v1: state [N, 2] (angle, velocity) and torque [N] to next state and reward [N]."""
    angle, velocity = state[:, 0], state[:, 1]
    torque = xp.clip(action, -2.0, 2.0)
    wrapped = (angle + xp.pi) % (2 * xp.pi) - xp.pi
    reward = -(wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = xp.clip(velocity + (15.0 * xp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    return xp.stack([angle + velocity * 0.05, velocity], axis=1), reward


def observe(xp: ModuleType, state: Any) -> Any:
    """[N, 3]: cosine and sine of the angle, velocity."""
    return xp.stack([xp.cos(state[:, 0]), xp.sin(state[:, 0]), state[:, 1]], axis=1)


def in_scan(steps: int, kernels: bool = False) -> Callable[[np.ndarray], float]:
    """The rollout as one JAX function, which returns the mean reward."""
    act = policy(kernels)

    @jax.jit
    def rollout(state: jax.Array) -> jax.Array:
        def one(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return step(jnp, state, act(state))

        return jax.lax.scan(one, state, length=steps)[1].mean()

    return lambda state: float(rollout(state))


def policy(kernels: bool) -> Callable[[jax.Array], jax.Array]:
    """The bundled policy, state [N, 2] to torque [N]."""
    fn, params = memojax.to_jax(POLICY, kernels=kernels)

    def act(state: jax.Array) -> jax.Array:
        noise = jnp.zeros((state.shape[0], 1))
        return fn(params, {"obs": observe(jnp, state), "epsilon": noise})["action"][:, 0]

    return act


def physics_alone(start: np.ndarray, steps: int) -> Callable[[np.ndarray], float]:
    """The same rollout with the actions known before."""
    act = policy(kernels=False)

    def one(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        action = act(state)
        return step(jnp, state, action)[0], action

    actions = jax.jit(lambda state: jax.lax.scan(one, state, length=steps)[1])(start)
    replay = jax.jit(lambda state: jax.lax.scan(lambda *given: step(jnp, *given), state, actions)[1].mean())
    return lambda state: float(replay(state))


def in_python(steps: int) -> Callable[[np.ndarray], float]:
    """The rollout step by step, with the policy in ONNX Runtime; returns the mean reward."""
    session = onnxruntime.InferenceSession(str(POLICY), providers=["CPUExecutionProvider"])

    def rollout(state: np.ndarray) -> float:
        noise, total = np.zeros((len(state), 1), np.float32), 0.0
        for _ in range(steps):
            action = session.run(["action"], {"obs": observe(np, state), "epsilon": noise})[0][:, 0]
            state, reward = step(np, state, action)
            state = state.astype(np.float32)
            total += float(reward.mean())
        return total / steps

    return rollout


def warm(run: Callable[[np.ndarray], float], start: np.ndarray) -> None:
    """Run a contender until the threads of the one before sleep, and its own have settled on their cores."""
    until = time.perf_counter() + _WARM
    while time.perf_counter() < until:
        run(start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--envs", type=int, nargs="+", default=[16, 256, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = []
    for count in options.envs:
        start = np.random.default_rng(0).uniform([-np.pi, -1], [np.pi, 1], (count, 2)).astype(np.float32)
        contenders = {
            "scan": in_scan(options.steps),
            "kernels": in_scan(options.steps, kernels=True),
            "onnxruntime": in_python(options.steps),
            "physics": physics_alone(start, options.steps),
        }
        rewards = {name: run(start) for name, run in contenders.items()}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, run in contenders.items():
                warm(run, start)
                begun = time.perf_counter()
                run(start)
                times[name].append(time.perf_counter() - begun)
        ms = {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
        ratios = {
            name: sorted(slow / fast for fast, slow in zip(times[name], times["onnxruntime"], strict=True))
            for name in ("scan", "kernels")
        }
        results.append(
            {
                "envs": count,
                **{f"{name}_ms": taken for name, taken in ms.items()},
                "ratio": statistics.median(ratios["scan"]),
                "spread": [ratios["scan"][0], ratios["scan"][-1]],
                "kernels_ratio": statistics.median(ratios["kernels"]),
                "kernels_spread": [ratios["kernels"][0], ratios["kernels"][-1]],
                "mean_reward": rewards,
            }
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    table = Table(title=f"{options.steps} steps, medians of {options.rounds} interleaved rounds")
    for heading in (
        "environments",
        "lax.scan ms",
        "with kernels ms",
        "ONNX Runtime loop ms",
        "times faster",
        "with kernels",
        "spread",
        "physics alone ms",
        "mean rewards",
    ):
        table.add_column(heading, justify="right")
    for row in results:
        low, high = row["kernels_spread"]
        table.add_row(
            str(row["envs"]),
            *(f"{row[f'{name}_ms']:.1f}" for name in ("scan", "kernels", "onnxruntime")),
            *(f"{row[name]:.1f}" for name in ("ratio", "kernels_ratio")),
            f"{low:.1f}-{high:.1f}",
            f"{row['physics_ms']:.1f}",
            " ".join(f"{value:.3f}" for value in row["mean_reward"].values()),
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
