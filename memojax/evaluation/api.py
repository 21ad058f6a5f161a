"""`evaluate`: the front door of evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

from .._types import Source
from ..api import load
from ..errors import EvaluationError
from ..inferer.base import Inferer
from ..lowering.typed_model import TypedModel
from .connection import Wiring, connect, innermost, metadata_of
from .envs import LocalPool, WorkerPool, import_gymnasium
from .options import EvaluateOptions, Naming, Stepping, check_count, check_names, group_of
from .progress import progress_bar
from .result import Episode, Evaluation
from .rollout import Rollout, Setting

DEFAULT_ENVS = 16
"""Environments side by side where the caller gives no number: enough to fill a batch."""


def evaluate(
    inferer: Inferer | TypedModel | Source,
    env: Any = None,
    *,
    episodes: int = 100,
    num_envs: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    progress: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Play episodes of a Gymnasium environment; report the return with its uncertainty, and what it cost.

    Environments run side by side, and the inferer is asked once per step for all of them. An environment whose
    episode ends goes on with the next one; when none is left, the batch shrinks. Episode `i` is reset with
    `seed + i`: a run repeats, does not depend on `num_envs`, and meets the same luck as another model's run.

    >>> import memojax
    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), "Acrobot-v1", episodes=4)
    >>> len(result.returns), result.mean_return > -200
    (4, True)

    Args:
        inferer: any inferer; or what `memojax.load` takes.
        env: a Gymnasium id, an `EnvSpec`, a function that makes one environment, or one environment. None: the
            `env_id` in the model's own metadata.
        episodes: how many to play.
        num_envs: environments side by side; `DEFAULT_ENVS`, or as many as there are episodes.
        seed: of the first episode.
        deterministic: take the best action and feed zeros as noise. Otherwise draw actions and noise, for each episode
            from a stream of its own. A model that draws its own random numbers goes by the inferer's seed.
        progress: whether to show a bar with the running mean.
        on_episode: called with each finished `Episode`.

    Keyword Args:
        vectorization: "sync" steps the environments in this process, "async" in worker processes.
        workers: how many processes; one per core without it.
        max_steps: ends an episode after so many steps, as truncated.
        observation: part of the observation -> input, where names and shapes do not tell; the input's name for an
            observation in one piece.
        action: the output that gives the action, where names and shapes do not tell.
        epsilon: the noise input, where its name does not tell.
        recurrent: pairs of (input, output) of hidden state, kept by episode. None: found by name; empty: no state.
        observation_transforms: run on each batch of observations before the model, in order: `NormalizeObs`,
            `SelectObs`, any callable.
        action_transforms: run on each batch of actions before the environment: `ScaleAction`, `ClipAction`, any
            callable. None: Box actions are clipped to the space, unless the metadata says `clip_actions: false`.
        name: what to call the policy in the result.

    Returns:
        The result. After Ctrl-C it has the episodes that were finished, and is marked as `interrupted`.

    Raises:
        UnknownEnvironmentError: no such environment; the closest are named.
        SpaceMismatchError: the spaces do not fit the model; both sides are named.
        EnvironmentFailedError, WorkerDiedError: an environment raised, or its process died.
        ActionError: the policy gave NaN, or an action outside of a discrete space.
        EvaluationError: the base of these; `error.partial` is the `Evaluation` of the episodes before.
    """
    count = check_count("episodes", episodes)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise EvaluationError(f"seed is a whole number from 0, got {seed!r}")
    check_names(options)
    stepping, wiring = group_of(Stepping, options), group_of(Wiring, options)
    policy = inferer if isinstance(inferer, Inferer) else load(inferer)
    metadata = metadata_of(policy)
    if env is None and "env_id" not in metadata:
        raise EvaluationError(
            "which environment? The model's metadata names none (`env_id`): give env=, on the command line --env"
        )
    env = metadata["env_id"] if env is None else env
    width = _width(env, count, num_envs)
    pool = (
        LocalPool(env, width)
        if stepping.vectorization == "sync"
        else WorkerPool(env, width, stepping.workers)
    )
    try:
        connection = connect(policy, pool, wiring, deterministic)
        setting = Setting(
            model=group_of(Naming, options).name or _name_of(inferer, innermost(policy)),
            asked=count,
            num_envs=width,
            deterministic=deterministic,
            metadata=dict(metadata),
            action=str(connection.actor),
            feeds=connection.told(deterministic),
        )
        seeds = range(seed, seed + count)
        rollout = Rollout(connection, pool, setting, seeds, stepping.max_steps, on_episode)
        title = f"{setting.model} on {pool.name}"
        bar = progress_bar(title, count) if progress else contextlib.nullcontext(_silent)
        with bar as report:
            return rollout.run(report)
    finally:
        pool.close()


def _width(env: Any, episodes: int, num_envs: int | None) -> int:
    gymnasium = import_gymnasium()
    if isinstance(env, gymnasium.Env):
        if num_envs not in (None, 1):
            raise EvaluationError(
                f"num_envs={num_envs}, but one environment was given: give its id, or a function that makes one"
            )
        return 1
    return min(episodes, DEFAULT_ENVS if num_envs is None else check_count("num_envs", num_envs))


def _name_of(source: Any, base: Any) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).stem
    name = getattr(getattr(base, "typed", None), "name", "")
    return Path(name).stem if name and not name.startswith("<") else "policy"


def _silent(done: int, mean: float, error: float, size: int) -> None:
    pass
