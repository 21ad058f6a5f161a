"""Evaluate many weight sets of one network at once, on the same seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any, Unpack

from .._argument_checks import as_count
from ..errors import EvaluationError
from ..inferer.pool import PolicyPool
from ..inferer.pool_seats import PoolSeats
from .acting import Player
from .api import DEFAULT_ENVS, make_pool
from .options import (
    EvaluateOptions,
    Naming,
    Stepping,
    Watching,
    Wiring,
    check_names,
    group_of,
    refuse_planning,
)
from .parallel_envs import ParallelPool
from .progress import progress_bar
from .result import Evaluation
from .rollout import Rollout
from .team import connect, setting_of


def evaluate_pool(
    pool: PolicyPool,
    env: Any = None,
    *,
    names: Iterable[Hashable] | None = None,
    episodes: int = 100,
    num_envs: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    progress: bool = False,
    **options: Unpack[EvaluateOptions],
) -> dict[Hashable, Evaluation]:
    """Play episodes with every weight set of a pool; one call answers all of them in each step.

    Every set plays the seeds `seed` to `seed + episodes - 1`, so `compare` pairs their results.

    >>> pool = memojax.PolicyPool(memojax.policies.bundled("acrobot_ppo"))
    >>> pool.add("main")
    >>> pool.add("rival", {name: 0.5 * weight for name, weight in pool.params("main").items()})
    >>> results = memojax.evaluation.evaluate_pool(pool, "Acrobot-v1", episodes=2, max_steps=9)
    >>> {name: result.returns.tolist() for name, result in results.items()}
    {'main': [-9.0, -9.0], 'rival': [-9.0, -9.0]}

    Args:
        names: the sets that play; None means all.
        env: the environment, as in `memojax.evaluate`.
        episodes: number of episodes of each set.
        num_envs: environments side by side, for all sets together; 16 for each set, or fewer if there are
            fewer episodes.
        seed: seed of the first episode of each set.
        deterministic: take the best action, and feed zeros as noise.
        progress: whether to show a bar with the running mean.
        **options: the keywords of `memojax.evaluate`. The pool has its own plans, so options of loading are
            refused.

    Returns:
        Name -> its result. The times, the calls and the plans are those of all sets together. After Ctrl-C
        the results hold the finished episodes, and are marked as `interrupted`.

    Raises:
        IncompatibleModelError: a name is not in the pool.
        EvaluationError: the pool is empty, or the environment has several agents; otherwise as in
            `memojax.evaluate`.
    """
    count = as_count("episodes", episodes, EvaluationError)
    seed = as_count("seed", seed, EvaluationError, least=0)
    check_names(options)
    refuse_planning(options)
    sets = list(pool.names if names is None else dict.fromkeys(names))
    if not sets:
        raise EvaluationError("the pool has no weight sets: add some first")
    for name in sets:
        pool.params(name)
    env = pool.network.metadata.get("env_id") if env is None else env
    if env is None:
        raise EvaluationError("no environment is given, and the model's metadata names none: pass env=")
    wanted = DEFAULT_ENVS * len(sets) if num_envs is None else as_count("num_envs", num_envs, EvaluationError)
    width = min(count * len(sets), wanted)
    stepping, label = group_of(Stepping, options), group_of(Naming, options).name or "pool"
    with contextlib.ExitStack() as stack:
        envs = make_pool(env, width, stepping, group_of(Watching, options), label)
        stack.callback(envs.close)
        if isinstance(envs, ParallelPool):
            raise EvaluationError(
                f"{envs.name} has several agents: pass evaluate a mapping of agents to members, pool[name]"
            )
        seats = PoolSeats(pool)
        connection = connect(seats, envs, group_of(Wiring, options), deterministic)
        player = Player(seats, connection, label, envs.name, deterministic)
        player.sets = lambda name, episode: sets[episode % len(sets)]
        metadata = pool.network.metadata
        setting = setting_of({"": player}, label, count * len(sets), width, deterministic, metadata)
        seeds = [seed + index // len(sets) for index in range(count * len(sets))]
        rollout = Rollout({"": player}, envs, setting, seeds, stepping.max_steps)
        title = f"{label} on {envs.name}"
        bar = progress_bar(title, len(seeds)) if progress else contextlib.nullcontext(_silent)
        with bar as report:
            whole = rollout.run(report)
    return {name: _share(whole, str(name), place, len(sets), count) for place, name in enumerate(sets)}


def _share(whole: Evaluation, name: str, place: int, sets: int, asked: int) -> Evaluation:
    """The episodes of one set, numbered as if it had played alone."""
    episodes = tuple(
        replace(episode, index=episode.index // sets)
        for episode in whole.episodes
        if episode.index % sets == place
    )
    steps = sum(episode.length for episode in episodes)
    return replace(whole, model=name, episodes=episodes, asked=asked, steps=steps)


def _silent(done: int, mean: float, error: float, size: int) -> None:
    pass
