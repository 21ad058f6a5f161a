"""Play episodes with a policy: many environments side by side, one call of the inferer per step."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ActionError, EnvironmentFailedError, EvaluationError, MemojaxError, SpaceMismatchError
from ..model.signature import TensorSpec
from ..plans.plan import PlanInfo
from .connection import Connection, innermost
from .envs import EnvPool, Outcome, as_actions
from .planning import Warmup
from .progress import Report
from .result import Episode, Evaluation

_agents = itertools.count(1 << 40)
"""Agents of evaluations have numbers of their own, so that evaluating an inferer disturbs none that it serves."""


@dataclass(frozen=True)
class Setting:
    """What is known of an evaluation before its first reset; `Evaluation` has the same fields."""

    model: str
    asked: int
    num_envs: int
    deterministic: bool
    metadata: Mapping[str, str]
    action: str
    feeds: Sequence[str]
    observation_transforms: Sequence[str] = ()
    action_transforms: Sequence[str] = ()
    advice: Sequence[str] = ()


@dataclass(eq=False)
class _Playing:
    """An episode under way."""

    index: int
    seed: int
    slot: int
    agent: int
    generator: np.random.Generator
    outcome: Outcome
    total: float = 0.0
    length: int = 0


class Rollout:
    """One evaluation from its first reset on."""

    def __init__(
        self,
        connection: Connection,
        pool: EnvPool,
        setting: Setting,
        seeds: range,
        max_steps: int | None = None,
        on_episode: Callable[[Episode], None] | None = None,
        warmup: Warmup | None = None,
    ):
        """Play one episode for each of `seeds`, each of at most `max_steps`; `warmup` compiles beside it."""
        self._connection, self._pool, self._setting = connection, pool, setting
        self._inferer = connection.player
        self._base = innermost(connection.player)
        self._waiting = enumerate(seeds)
        self._limit = max_steps or 1 << 62
        self._undealt = len(seeds)
        self._on_episode = on_episode
        self._warmup = warmup or Warmup()
        self._alive: list[_Playing] = []
        self._finished: list[Episode] = []
        self._mean = self._squares = 0.0
        self._steps = 0
        self._calls: dict[int, list[float]] = {}
        self._before = {plan.size: plan for plan in _plans(self._base)}
        self._padded_before = _padded(self._base)
        self._started = time.perf_counter()

    def run(self, report: Report) -> Evaluation:
        interrupted = False
        try:
            self._begin(range(self._setting.num_envs))
            self._warmup.wait()
            while self._alive:
                size = len(self._alive)
                self._step()
                if not self._undealt:  # from now on the batch shrinks
                    self._warmup.ahead(size)
                report(len(self._finished), *self._running(), size)
        except KeyboardInterrupt:
            interrupted = True
        except EvaluationError as failure:
            failure.partial = self._result(interrupted=True)
            raise
        except Exception as failure:
            failure.add_note(
                f"memojax.evaluate was stopped by this; so far: {self._result(interrupted=True)}"
            )
            raise
        finally:
            for playing in self._alive:
                with contextlib.suppress(MemojaxError):
                    self._inferer.end_agent(playing.agent)
        return self._result(interrupted)

    def _begin(self, slots: Iterable[int]) -> None:
        """Deal the next episodes to `slots`, as far as there are any."""
        dealt = [(slot, *episode) for slot, episode in zip(slots, self._waiting, strict=False)]
        if not dealt:
            return
        self._undealt -= len(dealt)
        try:
            outcomes = self._pool.reset({slot: seed for slot, _, seed in dealt})
        except EnvironmentFailedError as failure:
            index, seed = next((index, seed) for slot, index, seed in dealt if slot == failure.slot)
            raise EnvironmentFailedError(
                f"{failure} [episode {index}, seed {seed}]", failure.slot
            ) from failure.__cause__
        for (slot, index, seed), outcome in zip(dealt, outcomes, strict=True):
            agent = next(_agents)
            self._inferer.begin_agent(agent)
            generator = np.random.Generator(np.random.SFC64([seed, 0x6D6A]))
            self._alive.append(_Playing(index, seed, slot, agent, generator, outcome))
        self._alive.sort(key=lambda playing: playing.slot)

    def _step(self) -> None:
        """One call of the policy, one step of each environment that is alive."""
        actions = as_actions(self._act())
        try:
            outcomes = self._pool.step(
                {playing.slot: action for playing, action in zip(self._alive, actions, strict=True)}
            )
        except EnvironmentFailedError as failure:
            row = next(row for row, playing in enumerate(self._alive) if playing.slot == failure.slot)
            taken = np.asarray(actions[row]).tolist()
            raise EnvironmentFailedError(
                f"{failure} [{_where(self._alive[row])}, action {taken}]", failure.slot
            ) from failure.__cause__
        going: list[_Playing] = []
        ended: list[_Playing] = []
        for playing, outcome in zip(self._alive, outcomes, strict=True):
            playing.outcome = outcome
            playing.total += outcome.reward
            playing.length += 1
            over = outcome.terminated or outcome.truncated or playing.length >= self._limit
            (ended if over else going).append(playing)
        self._steps += len(outcomes)
        self._alive = going
        for playing in ended:
            self._inferer.end_agent(playing.agent)
            episode = Episode(
                playing.index, playing.seed, playing.total, playing.length, not playing.outcome.terminated
            )
            self._finished.append(episode)
            offset = episode.total - self._mean
            self._mean += offset / len(self._finished)
            self._squares += offset * (episode.total - self._mean)
            if self._on_episode is not None:
                self._on_episode(episode)
        if ended:
            self._begin([playing.slot for playing in ended])

    def _act(self) -> np.ndarray:
        """Actions of the policy for all that are alive, as the environments take them."""
        join = self._connection
        inputs = self._inputs()
        started = time.perf_counter()
        try:
            outputs = self._inferer.infer_arrays(inputs, ids=[playing.agent for playing in self._alive])
        except MemojaxError as cause:
            raise EvaluationError(f"the policy failed on a batch of {len(self._alive)}: {cause}") from cause
        self._calls.setdefault(len(self._alive), []).append(time.perf_counter() - started)
        try:
            actions = join.actor(outputs, [playing.generator for playing in self._alive])
        except ActionError as failure:
            where = f"[{_where(self._alive[failure.row])}]; {_blame(inputs, failure.row)}"
            raise ActionError(f"{self._setting.model}: {failure} {where}", failure.row) from None
        for transform in join.action_transforms:
            actions = transform(actions)
        return actions.astype(join.actor.space.dtype, copy=False)

    def _inputs(self) -> dict[str, np.ndarray]:
        join = self._connection
        try:
            rows = join.reader([playing.outcome.observation for playing in self._alive])
        except SpaceMismatchError as failure:
            if failure.row is None:
                raise
            playing = self._alive[failure.row]
            when = f"step {playing.length}" if playing.length else "reset"
            where = f"{self._pool.name}, episode {playing.index}, seed {playing.seed}, {when}"
            raise SpaceMismatchError(
                f"{failure} [{where}]: mend its observation_space, or wrap it", failure.row
            ) from failure.__cause__
        inputs = {feed.input.name: feed(rows) for feed in join.feeds}
        inputs.update((spec.name, self._noise(spec)) for spec in join.noise)
        inputs.update((spec.name, self._masks(spec)) for spec in join.masks)
        inputs.update((spec.name, self._starts(spec)) for spec in join.starts)
        return inputs

    def _running(self) -> tuple[float, float]:
        """Mean return and its standard error so far."""
        count = len(self._finished)
        error = math.sqrt(self._squares / (count - 1) / count) if count > 1 else math.nan
        return self._mean if count else math.nan, error

    def _noise(self, spec: TensorSpec) -> np.ndarray:
        if self._setting.deterministic:
            return np.zeros((len(self._alive), *spec.shape), spec.dtype)
        draws = [playing.generator.standard_normal(spec.shape) for playing in self._alive]
        return np.stack(draws).astype(spec.dtype)

    def _masks(self, spec: TensorSpec) -> np.ndarray:
        given = [playing.outcome.mask for playing in self._alive]
        ones = np.ones(spec.shape, spec.dtype)
        try:
            return np.stack(
                [ones if mask is None else np.asarray(mask, spec.dtype).reshape(spec.shape) for mask in given]
            )
        except ValueError as cause:
            raise SpaceMismatchError(
                f"info['action_mask'] of {self._pool.name} does not fit the model's input {spec}: {cause}"
            ) from cause

    def _starts(self, spec: TensorSpec) -> np.ndarray:
        first = np.array([playing.length == 0 for playing in self._alive])
        return first.reshape(-1, *spec.shape).astype(spec.dtype)

    def _result(self, interrupted: bool) -> Evaluation:
        seconds = time.perf_counter() - self._started
        plans = []
        compiled = 0.0
        for plan in _plans(self._base):
            before = self._before.get(plan.size)
            if before is None or before.compile_ms != plan.compile_ms:
                compiled += plan.compile_ms / 1e3
            plans.append(replace(plan, calls=plan.calls - (before.calls if before else 0)))
        medians = {
            size: float(np.median(calls[1:])) * 1e6
            for size, calls in sorted(self._calls.items())
            if len(calls) > 1
        }
        return Evaluation(
            env_id=self._pool.name,
            episodes=tuple(sorted(self._finished, key=lambda episode: episode.index)),
            steps=self._steps,
            seconds=seconds,
            policy_seconds=sum(map(sum, self._calls.values())),
            compile_seconds=compiled,
            batch_sizes={size: len(calls) for size, calls in sorted(self._calls.items(), reverse=True)},
            call_us=medians,
            plans=plans,
            interrupted=interrupted,
            padded_rows=_padded(self._base) - self._padded_before,
            **vars(self._setting),
        )


def _plans(base: Any) -> list[PlanInfo]:
    return base.plans() if hasattr(base, "plans") else []


def _padded(base: Any) -> int:
    return base.cache_info().padded_rows if hasattr(base, "cache_info") else 0


def _where(playing: _Playing) -> str:
    return f"episode {playing.index}, seed {playing.seed}, step {playing.length + 1}"


def _blame(inputs: Mapping[str, np.ndarray], row: int) -> str:
    fed = [name for name, value in inputs.items() if value.dtype.kind == "f" and np.isnan(value[row]).any()]
    return f"its input {fed[0]!r} was NaN already" if fed else "its inputs were numbers"
