"""Merges parts of one evaluation, from several processes or times, into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from ..errors import EvaluationError
from ..plans.plan import PlanInfo
from .result import Episode, Evaluation

_SAME = ("model", "env_id", "deterministic", "action", "feeds", "observation_transforms", "action_transforms")
"""Fields that are equal in all parts of one evaluation."""


def merge(parts: Iterable[Evaluation]) -> Evaluation:
    """The parts as one evaluation, with the episodes, statistics and intervals of one run over all seeds.

    Times add up, so they give the total work, not the wall clock of parts that ran at the same time.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> parts = [memojax.evaluate(policy, episodes=2, seed=seed, max_steps=5) for seed in (0, 2)]
    >>> memojax.evaluation.merge(parts).seeds
    array([0, 1, 2, 3])

    Raises:
        EvaluationError: no parts, parts of different evaluations, or a seed that is in two parts.
    """
    parts = list(parts)
    if not parts:
        raise EvaluationError("no parts to merge")
    first = parts[0]
    for part in parts[1:]:
        for name in _SAME:
            if (mine := getattr(first, name)) != (theirs := getattr(part, name)):
                raise EvaluationError(f"parts of different evaluations: {name} is {mine!r} and {theirs!r}")
    played = Counter(episode.seed for part in parts for episode in part.episodes)
    if twice := [seed for seed, count in played.items() if count > 1]:
        raise EvaluationError(f"seed {twice[0]} was played in two parts: give each part different seeds")
    return replace(
        first,
        episodes=_renumbered(parts),
        asked=sum(part.asked for part in parts),
        num_envs=max(part.num_envs for part in parts),
        steps=sum(part.steps for part in parts),
        seconds=sum(part.seconds for part in parts),
        policy_seconds=sum(part.policy_seconds for part in parts),
        compile_seconds=sum(part.compile_seconds for part in parts),
        batch_sizes=_calls(parts),
        call_us=_call_us(parts),
        plans=_plans(parts),
        interrupted=any(part.interrupted for part in parts),
        padded_rows=sum(part.padded_rows for part in parts),
    )


def _renumbered(parts: list[Evaluation]) -> tuple[Episode, ...]:
    """All episodes, numbered by seed; unfinished episodes of an interrupted part leave a gap."""
    episodes = [episode for part in parts for episode in part.episodes]
    begin = min((episode.seed - episode.index for episode in episodes), default=0)
    numbered = [replace(episode, index=episode.seed - begin) for episode in episodes]
    return tuple(sorted(numbered, key=lambda episode: episode.index))


def _calls(parts: list[Evaluation]) -> dict[int, int]:
    calls = Counter[int]()
    for part in parts:
        calls.update(part.batch_sizes)
    return dict(sorted(calls.items(), reverse=True))


def _call_us(parts: list[Evaluation]) -> dict[int, float]:
    """The parts' medians, weighted by their calls, since the single times are no longer known."""
    result = {}
    for size in sorted({size for part in parts for size in part.call_us}):
        timed = [part for part in parts if size in part.call_us]
        calls = sum(part.batch_sizes[size] for part in timed)
        result[size] = sum(part.call_us[size] * part.batch_sizes[size] for part in timed) / calls
    return result


def _plans(parts: list[Evaluation]) -> list[PlanInfo]:
    """One plan per size, with the calls of all parts."""
    plans: dict[int, PlanInfo] = {}
    for part in parts:
        for plan in part.plans:
            calls = plan.calls + (plans[plan.size].calls if plan.size in plans else 0)
            plans[plan.size] = replace(plans.get(plan.size, plan), calls=calls)
    return [plans[size] for size in sorted(plans)]
