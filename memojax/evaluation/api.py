"""The function `evaluate`."""

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
"""Default number of environments side by side: enough to fill a batch."""


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
    """Play episodes of a Gymnasium environment; report the return with its uncertainty, and the costs.

    Environments run side by side, and each step is one call of the inferer for all of them. An environment
    whose episode ends begins the next one; when no episode is left, the batch shrinks. Episode `i` is reset
    with `seed + i`. So a run can be repeated, does not depend on `num_envs`, and has the same luck as another
    model's run.

    >>> import memojax
    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), "Acrobot-v1", episodes=4)
    >>> len(result.returns), result.mean_return > -200
    (4, True)

    Args:
        inferer: any inferer, or any source for `memojax.load`. For several agents: one policy for all, or a
            mapping agent -> policy; "archer" stands for "archer_0", "archer_1", ...
        env: a Gymnasium id, an `EnvSpec`, a function that makes one environment, or one environment. None
            means the `env_id` in the model's metadata. PettingZoo's parallel environments have several
            agents. An episode's return is then the sum over them, and `Evaluation.agent_returns` has each
            agent's own.
        episodes: number of episodes.
        num_envs: number of environments side by side; by default `DEFAULT_ENVS`, or the number of episodes if
            that is smaller.
        seed: seed of the first episode.
        deterministic: take the best action, and feed zeros as noise. Otherwise draw actions and noise, for
            each episode from its own stream. The inferer's seed governs a model that itself draws random
            numbers.
        progress: whether to show a bar with the running mean.
        on_episode: function that is called with each finished `Episode`.

    Keyword Args:
        vectorization ("sync" | "async"): "sync" steps the environments in this process, "async" in worker
            processes.
        workers (int | None): number of worker processes; by default one per core.
        max_steps (int | None): number of steps after which an episode ends as truncated.
        observation (Mapping[str, str] | str | None): part of the observation -> input, if names and shapes do
            not tell. For an observation in one piece, the input's name.
        action (str | None): output that gives the action, if names and shapes do not tell.
        epsilon (str | None): noise input, if its name does not tell.
        recurrent (Iterable[tuple[str, str]] | None): pairs of (input, output) of hidden state, kept by
            episode. None finds them by name; an empty list means no state.
        observation_transforms (Sequence[Callable]): applied in order to each batch of observations before the
            model: `NormalizeObs`, `SelectObs`, any callable.
        action_transforms (Sequence[Callable] | None): applied to each batch of actions before the
            environment: `ScaleAction`, `ClipAction`, any callable. None clips Box actions to the space,
            unless the metadata says `clip_actions: false`.
        bucketing (Bucketing | None): batch sizes that get a plan, as in `memojax.load`; others are padded.
            None means powers of two up to `num_envs` if rows are independent, else each size.
        on_miss (OnMiss): as in `memojax.load`. With the default, "compile", the plans for the full batch and
            for the next smaller batches compile ahead, beside the run. With "pad", a row's plan depends on
            time, so runs may differ in the last bits.
        preload (Iterable[int]): batch sizes to compile before the first step, while the environments are made
            and reset.
        cache_dir (str | PathLike[str] | None): folder that keeps compiled plans for other processes.
        maxsize (int | None): number of plans to keep beside the one for the full batch.
        device (str | jax.Device | None): device of the policy, as for `memojax.load`: "auto", "cpu", "gpu",
            "gpu:1", or a `jax.Device`.
        devices (str | Sequence[str | jax.Device] | None): devices that share the rows of each batch, as for
            `memojax.load`.
        sharding (NamedSharding | None): alternative to `devices`, as for `memojax.load`.
        render (bool): open a window that shows the first environment.
        video (str | PathLike[str] | None): folder for videos of the first environment's episodes, made by
            Gymnasium's `RecordVideo`.
        name (str | None): name of the policy in the result.

    `bucketing` to `sharding` concern loading: for an inferer, pass them to `memojax.load` instead.

    Returns:
        The result. After Ctrl-C it holds the finished episodes, and is marked as `interrupted`.

    Raises:
        UnknownEnvironmentError: no such environment; the message names the closest ones.
        SpaceMismatchError: the spaces do not fit the model; the message names both sides.
        EnvironmentFailedError, WorkerDiedError: an environment raised, or its process died.
        ActionError: the policy gave NaN, or an action outside of a discrete space.
        EvaluationError: the base of these errors; `error.partial` is the `Evaluation` of the finished
            episodes.
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
            "no environment is given, and the model's metadata names none (`env_id`): pass env=, on the "
            "command line --env"
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
        pool = make_pool(env, width, stepping, watching, name)
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


def make_pool(env: Any, width: int, stepping: Stepping, watching: Watching, name: str) -> EnvPool:
    """The environments of an evaluation.

    Raises:
        EvaluationError: the agents take turns, or a window or video is asked of a worker process.
    """
    if stepping.vectorization == "sync":
        watched = watched_maker(env, watching, name) if watching.render_mode else None
        local = LocalPool(env, width, watched)
        if hasattr(local.envs[0], "agent_iter"):
            local.close()
            raise EvaluationError(
                f"{local.name}: agents take turns here, but evaluate asks them all at once: pass "
                "pettingzoo.utils.conversions.aec_to_parallel(env)"
            )
        return ParallelPool(local) if is_parallel(local.envs[0]) else local
    if watching.render_mode:
        raise EvaluationError(
            "an environment in a worker process cannot be shown or filmed: leave out vectorization='async'"
        )
    return WorkerPool(env, width, stepping.workers)


def _width(env: Any, episodes: int, num_envs: int | None) -> int:
    if is_env(env):
        if num_envs not in (None, 1):
            raise EvaluationError(
                f"num_envs={num_envs}, but env= is a single environment: pass its id, or a function that "
                "makes one"
            )
        return 1
    return min(
        episodes, DEFAULT_ENVS if num_envs is None else as_count("num_envs", num_envs, EvaluationError)
    )


def _names_of(given: Mapping[str, Any], loaded: Mapping[str, Any]) -> str:
    """The policy's name; several policies are listed after the agents that they act for."""
    names = {key: _name_of(one, innermost(loaded[key])) for key, one in given.items()}
    return names[""] if "" in names else ", ".join(f"{key}: {name}" for key, name in names.items())


def _name_of(source: Any, base: Any) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).stem
    name = getattr(getattr(base, "typed", base), "name", "")
    return Path(name).stem if name and not name.startswith("<") else "policy"


def _silent(done: int, mean: float, error: float, size: int) -> None:
    pass
