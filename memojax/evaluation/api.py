"""`evaluate`: the front door of evaluations."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from .._argument_checks import as_count
from .._types import Source
from ..errors import EvaluationError
from ..inferer.base import Inferer
from ..inferer.layers import innermost, metadata_of
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..spaces.connection import Wiring
from .envs import EnvPool, LocalPool, WorkerPool, is_env, is_parallel
from .options import (
    EvaluateOptions,
    Naming,
    Stepping,
    check_names,
    group_of,
    refuse_planning,
)
from .parallel_envs import ParallelPool
from .planning import Planning, Warmup, load_policy
from .progress import progress_bar
from .result import Episode, Evaluation
from .rollout import Rollout
from .team import join_players, setting_of
from .watching import Watching, watched_maker

log: logging.Logger = logging.getLogger("memojax")

DEFAULT_ENVS = 16
"""Environments side by side where the caller gives no number: enough to fill a batch."""


Policy: TypeAlias = "Inferer | TypedModel | Source"


def evaluate(
    inferer: Policy | Mapping[str, Policy],
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

    Environments run side by side, and the inferer is asked once per step for all of them. An environment
    whose episode ends goes on with the next one; when none is left, the batch shrinks. Episode `i` is reset
    with `seed + i`: a run repeats, does not depend on `num_envs`, and meets the same luck as another model's
    run.

    >>> import memojax
    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), "Acrobot-v1", episodes=4)
    >>> len(result.returns), result.mean_return > -200
    (4, True)

    Args:
        inferer: any inferer; or what `memojax.load` takes. For several agents, one policy for all, or agent
            -> policy; "archer" stands for "archer_0", "archer_1", ...
        env: a Gymnasium id, an `EnvSpec`, a function that makes one environment, or one environment. None:
            the `env_id` in the model's own metadata. PettingZoo's parallel environments have several agents;
            the return of an episode is the sum over them, `Evaluation.agent_returns` has each agent's own.
        episodes: how many to play.
        num_envs: environments side by side; `DEFAULT_ENVS`, or as many as there are episodes.
        seed: of the first episode.
        deterministic: take the best action and feed zeros as noise. Otherwise draw actions and noise, for
            each episode from a stream of its own. A model that draws its own random numbers goes by the
            inferer's seed.
        progress: whether to show a bar with the running mean.
        on_episode: called with each finished `Episode`.

    Keyword Args:
        vectorization: "sync" steps the environments in this process, "async" in worker processes.
        workers: how many processes; one per core without it.
        max_steps: ends an episode after so many steps, as truncated.
        observation: part of the observation -> input, where names and shapes do not tell; the input's name
            for an observation in one piece.
        action: the output that gives the action, where names and shapes do not tell.
        epsilon: the noise input, where its name does not tell.
        recurrent: pairs of (input, output) of hidden state, kept by episode. None: found by name; empty: no
            state.
        observation_transforms: run on each batch of observations before the model, in order:
            `NormalizeObs`, `SelectObs`, any callable.
        action_transforms: run on each batch of actions before the environment: `ScaleAction`, `ClipAction`,
            any callable. None: Box actions are clipped to the space, unless the metadata says
            `clip_actions: false`.
        bucketing: which batch sizes get a plan, as for `memojax.load`; the others are padded. None: powers of
            two up to `num_envs` where rows are independent, each size where they are not.
        on_miss: as for `memojax.load`. With the default, "compile", the plans for the full batch and for the
            smaller batches that come next are compiled ahead, beside the run. With "pad", a row's plan
            depends on time, so runs may differ in the last bits.
        preload: batch sizes to compile before the first step, while the environments are made and reset.
        cache_dir: folder that keeps compiled plans for other processes.
        maxsize: the most plans to keep, the one for the full batch not counted.
        device: where the policy runs: "cpu", "gpu", "gpu:1", or a `jax.Device`.
        render: open a window that shows the first environment.
        video: folder for films of the first environment's episodes, by Gymnasium's `RecordVideo`.
        name: what to call the policy in the result.

    `bucketing` to `device` belong to loading: for an inferer, which is loaded already, give them to
    `memojax.load`.

    Returns:
        The result. After Ctrl-C it has the episodes that were finished, and is marked as `interrupted`.

    Raises:
        UnknownEnvironmentError: no such environment; the closest are named.
        SpaceMismatchError: the spaces do not fit the model; both sides are named.
        EnvironmentFailedError, WorkerDiedError: an environment raised, or its process died.
        ActionError: the policy gave NaN, or an action outside of a discrete space.
        EvaluationError: the base of these; `error.partial` is the `Evaluation` of the episodes before.
    """
    count = as_count("episodes", episodes, EvaluationError)
    seed = as_count("seed", seed, EvaluationError, least=0)
    check_names(options)
    stepping, wiring = group_of(Stepping, options), group_of(Wiring, options)
    planning, watching = group_of(Planning, options), group_of(Watching, options)
    given = inferer if isinstance(inferer, Mapping) else {"": inferer}
    if any(isinstance(one, Inferer) for one in given.values()):
        refuse_planning(options)
    loaded = {key: one if isinstance(one, Inferer) else typed_model(one) for key, one in given.items()}
    metadata = metadata_of(loaded[""]) if "" in loaded else {}
    if env is None and "env_id" not in metadata:
        raise EvaluationError(
            "which environment? The model's metadata names none (`env_id`): give env=, on the command line "
            "--env"
        )
    env = metadata["env_id"] if env is None else env
    width = _width(env, count, num_envs)
    name = group_of(Naming, options).name or _names_of(given, loaded)
    with contextlib.ExitStack() as stack:
        policies: dict[str, Inferer] = {}
        warmups: list[Warmup] = []
        for key, one in loaded.items():
            if isinstance(one, Inferer):
                policies[key] = one
                continue
            policies[key], warmup = load_policy(one, planning, width, seed)
            stack.callback(warmup.close)
            warmups.append(warmup)
        pool = _pool(env, width, stepping, watching, name)
        stack.callback(pool.close)
        players = join_players(pool, policies, wiring, name, deterministic)
        setting = setting_of(players, name, count, width, deterministic, metadata)
        for sentence in setting.advice:
            log.warning("%s", sentence)
        seeds = range(seed, seed + count)
        rollout = Rollout(players, pool, setting, seeds, stepping.max_steps, on_episode, warmups)
        title = f"{name} on {pool.name}"
        bar = progress_bar(title, count) if progress else contextlib.nullcontext(_silent)
        with bar as report:
            return rollout.run(report)


def _pool(env: Any, width: int, stepping: Stepping, watching: Watching, name: str) -> EnvPool:
    if stepping.vectorization == "sync":
        watched = watched_maker(env, watching, name) if watching.render_mode else None
        local = LocalPool(env, width, watched)
        if hasattr(local.envs[0], "agent_iter"):
            local.close()
            raise EvaluationError(
                f"{local.name}: agents take turns here, but evaluate asks all at once: give "
                "pettingzoo.utils.conversions.aec_to_parallel(env)"
            )
        return ParallelPool(local) if is_parallel(local.envs[0]) else local
    if watching.render_mode:
        raise EvaluationError(
            "an environment in a worker process cannot be watched: leave out vectorization='async'"
        )
    return WorkerPool(env, width, stepping.workers)


def _width(env: Any, episodes: int, num_envs: int | None) -> int:
    if is_env(env):
        if num_envs not in (None, 1):
            raise EvaluationError(
                f"num_envs={num_envs}, but one environment was given: give its id, or a function that "
                "makes one"
            )
        return 1
    return min(
        episodes, DEFAULT_ENVS if num_envs is None else as_count("num_envs", num_envs, EvaluationError)
    )


def _names_of(given: Mapping[str, Any], loaded: Mapping[str, Any]) -> str:
    """The policy's name; of several, each after the agents that it acts for."""
    names = {key: _name_of(one, innermost(loaded[key])) for key, one in given.items()}
    return names[""] if "" in names else ", ".join(f"{key}: {name}" for key, name in names.items())


def _name_of(source: Any, base: Any) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).stem
    name = getattr(getattr(base, "typed", base), "name", "")
    return Path(name).stem if name and not name.startswith("<") else "policy"


def _silent(done: int, mean: float, error: float, size: int) -> None:
    pass
