"""Play episodes with a policy: many environments side by side, one call of the inferer per step."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Source
from ..api import load
from ..errors import (
    ActionError,
    EnvironmentFailedError,
    EvaluationError,
    IncompatibleModelError,
    MemojaxError,
    SpaceMismatchError,
)
from ..inferer.base import Inferer
from ..lowering.typed_model import TypedModel
from ..model.signature import TensorSpec
from ..plans.plan import PlanInfo
from ..wrapper.recurrent import RecurrentInfo, RecurrentTracker, find_pairs
from .envs import EnvPool, LocalPool, Outcome, Vectorization, WorkerPool, as_actions, import_gymnasium
from .progress import Report, progress_bar
from .result import Episode, Evaluation
from .spaces import (
    Actor,
    Feed,
    Field,
    ObservationReader,
    canonical,
    match_action,
    match_by_shape,
    match_observation,
)
from .transforms import ClipAction, Observations

Transform = Callable[[Observations], Observations]

DEFAULT_ENVS = 16
"""Environments side by side where nobody says: enough to fill a batch, few enough that its shrinking does not compile for long."""

_agents = itertools.count(1 << 40)
"""Agents of evaluations have numbers of their own, so that evaluating an inferer disturbs none that it serves."""


def evaluate(
    inferer: Inferer | TypedModel | Source,
    env: Any = None,
    *,
    episodes: int = 100,
    num_envs: int | None = None,
    seed: int = 0,
    vectorization: Vectorization = "sync",
    workers: int | None = None,
    max_steps: int | None = None,
    deterministic: bool = True,
    observation: Mapping[str, str] | str | None = None,
    action: str | None = None,
    epsilon: str | None = None,
    recurrent: Iterable[RecurrentInfo | tuple[str, str]] | None = None,
    observation_transforms: Sequence[Transform] = (),
    action_transforms: Sequence[Callable[[np.ndarray], np.ndarray]] | None = None,
    progress: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
    name: str | None = None,
) -> Evaluation:
    """Play `episodes` episodes of a Gymnasium environment and report the return, with its uncertainty, and what it cost.

    Environments run side by side, and the inferer is asked once per step for all of them. An environment whose episode ends goes on with
    the next one; when none is left, the batch shrinks, and each batch size runs on its own plan. Episode `i` is reset with `seed + i`, so
    that a run repeats, does not depend on `num_envs`, and meets the same luck as another model's run.

    >>> import memojax
    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), "Acrobot-v1", episodes=4)
    >>> len(result.returns), result.mean_return > -200
    (4, True)

    Args:
        inferer: any inferer; or what `memojax.load` takes.
        env: a Gymnasium id, an `EnvSpec`, a function that makes one environment, or one environment; where None, the `env_id` in the
            model's own metadata.
        num_envs: environments side by side (`DEFAULT_ENVS`, or as many as there are episodes).
        vectorization: "sync" steps the environments in this process, "async" in `workers` processes (one per core).
        max_steps: ends an episode after so many steps, as truncated.
        deterministic: take the best action and feed zeros as noise; otherwise draw actions and noise, for each episode from a stream of
            its own. (A model that draws its own random numbers goes by the inferer's seed.)
        observation: part of the observation -> input, where names and shapes do not tell; the input's name for one in a single piece.
        action: the output that gives the action, where names and shapes do not tell.
        epsilon: the noise input, where its name does not tell.
        recurrent: pairs of (input, output) of hidden state, kept by episode; found by name where None, none where empty.
        observation_transforms: run on each batch of observations before the model, in order: `NormalizeObs`, `SelectObs`, any callable.
        action_transforms: run on each batch of actions before the environment: `ScaleAction`, `ClipAction`, any callable; where None,
            Box actions are clipped to the space, unless the model's metadata says `clip_actions: false`.
        progress: whether to show a bar with the running mean.
        on_episode: called with each finished `Episode`.
        name: what to call the policy in the result.

    Returns:
        What was found. After Ctrl-C, what was done until then, marked as `interrupted`.

    Raises:
        UnknownEnvironmentError: no such environment; the closest are named.
        SpaceMismatchError: its spaces do not fit the model; both sides are named.
        EnvironmentFailedError, WorkerDiedError: an environment raised, or its process died.
        ActionError: the policy gave NaN, or an action outside of a discrete space.
        EvaluationError: the base of these; `error.partial` is the `Evaluation` of what was done before.
    """
    count = _checked("episodes", episodes)
    if max_steps is not None:
        _checked("max_steps", max_steps)
    if workers is not None:
        _checked("workers", workers)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise EvaluationError(f"seed is a whole number from 0, got {seed!r}")
    if vectorization not in ("sync", "async"):
        raise EvaluationError(f"vectorization is 'sync' or 'async', not {vectorization!r}")
    policy = inferer if isinstance(inferer, Inferer) else load(inferer)
    base = _innermost(policy)
    metadata: Mapping[str, str] = getattr(base, "metadata", {})
    if env is None and "env_id" not in metadata:
        raise EvaluationError(
            "which environment? The model's metadata names none (`env_id`): give env=, on the command line --env"
        )
    env = metadata["env_id"] if env is None else env
    width = _width(env, count, num_envs)
    pool = LocalPool(env, width) if vectorization == "sync" else WorkerPool(env, width, workers)
    try:
        reader = ObservationReader(pool.observation_space, observation_transforms)
        player, plan = _connect(
            policy,
            reader,
            pool,
            metadata,
            observation=observation,
            action=action,
            epsilon=epsilon,
            recurrent=recurrent,
            action_transforms=action_transforms,
            deterministic=deterministic,
        )
        described = {
            "model": name or _name_of(inferer, base),
            "asked": count,
            "num_envs": width,
            "deterministic": deterministic,
            "metadata": dict(metadata),
            "action": str(plan.actor),
            "feeds": plan.told(deterministic),
        }
        rollout = _Rollout(
            player, base, pool, reader, plan, range(seed, seed + count), max_steps, on_episode, described
        )
        bar = (
            progress_bar(f"{described['model']} on {pool.name}", count)
            if progress
            else contextlib.nullcontext(_silent)
        )
        with bar as report:
            return rollout.run(report)
    finally:
        pool.close()


@dataclass(frozen=True)
class _Connection:
    """How an environment and a model are joined."""

    feeds: Sequence[Feed]
    noise: Sequence[TensorSpec]
    masks: Sequence[TensorSpec]
    memory: Sequence[RecurrentInfo]
    actor: Actor
    action_transforms: Sequence[Callable[[np.ndarray], np.ndarray]]

    def told(self, deterministic: bool) -> tuple[str, ...]:
        """How each input is fed, for a reader."""
        return (
            *map(str, self.feeds),
            *(f"{'zeros' if deterministic else 'noise'} -> {spec.name}" for spec in self.noise),
            *(f"action mask -> {spec.name}" for spec in self.masks),
            *(f"{pair.outkey} -> {pair.inkey}" for pair in self.memory),
        )


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


class _Rollout:
    """One evaluation from its first reset on."""

    def __init__(
        self,
        inferer: Inferer,
        base: Any,
        pool: EnvPool,
        reader: ObservationReader,
        connection: _Connection,
        seeds: range,
        max_steps: int | None,
        on_episode: Callable[[Episode], None] | None,
        described: Mapping[str, Any],
    ):
        self._inferer, self._base, self._pool, self._reader, self._connection = (
            inferer,
            base,
            pool,
            reader,
            connection,
        )
        self._waiting = enumerate(seeds)
        self._limit = max_steps or 1 << 62
        self._on_episode = on_episode
        self._described = described
        self._alive: list[_Playing] = []
        self._finished: list[Episode] = []
        self._mean = self._squares = 0.0
        self._steps = 0
        self._calls: dict[int, list[float]] = {}
        self._before = {plan.size: plan for plan in _plans(base)}
        self._started = time.perf_counter()
        self._seconds: float | None = None

    def run(self, report: Report) -> Evaluation:
        interrupted = False
        try:
            self._begin(range(self._described["num_envs"]))
            while self._alive:
                size = len(self._alive)
                self._step()
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
        try:
            outcomes = self._pool.reset({slot: seed for slot, _, seed in dealt})
        except EnvironmentFailedError as failure:
            index, seed = next(
                (index, seed) for slot, index, seed in dealt if slot == getattr(failure, "slot", slot)
            )
            raise EnvironmentFailedError(f"{failure} [episode {index}, seed {seed}]") from failure.__cause__
        for (slot, index, seed), outcome in zip(dealt, outcomes, strict=True):
            agent = next(_agents)
            self._inferer.begin_agent(agent)
            self._alive.append(
                _Playing(
                    index, seed, slot, agent, np.random.Generator(np.random.SFC64([seed, 0x6D6A])), outcome
                )
            )
        self._alive.sort(key=lambda playing: playing.slot)

    def _step(self) -> None:
        """One call of the policy, one step of each environment that is alive."""
        actions = as_actions(self._act())
        try:
            outcomes = self._pool.step(
                {playing.slot: action for playing, action in zip(self._alive, actions, strict=True)}
            )
        except EnvironmentFailedError as failure:
            where = next((p for p in self._alive if p.slot == getattr(failure, "slot", None)), self._alive[0])
            taken = np.asarray(actions[self._alive.index(where)]).tolist()
            raise EnvironmentFailedError(
                f"{failure} [{_where(where)}, action {taken}]"
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
        join = self._connection
        try:
            rows = self._reader([playing.outcome.observation for playing in self._alive])
        except SpaceMismatchError as failure:
            if (row := getattr(failure, "row", None)) is None:
                raise
            playing = self._alive[row]
            where = f"{self._pool.name}, episode {playing.index}, seed {playing.seed}, {f'step {playing.length}' if playing.length else 'reset'}"
            raise SpaceMismatchError(
                f"{failure} [{where}]: mend its observation_space, or wrap it"
            ) from failure.__cause__
        inputs = {feed.input.name: feed(rows) for feed in join.feeds}
        inputs.update((spec.name, self._noise(spec)) for spec in join.noise)
        inputs.update((spec.name, self._masks(spec)) for spec in join.masks)
        started = time.perf_counter()
        try:
            outputs = self._inferer.infer_arrays(inputs, ids=[playing.agent for playing in self._alive])
        except MemojaxError as cause:
            raise EvaluationError(f"the policy failed on a batch of {len(self._alive)}: {cause}") from cause
        self._calls.setdefault(len(self._alive), []).append(time.perf_counter() - started)
        try:
            actions = join.actor(outputs, [playing.generator for playing in self._alive])
        except ActionError as failure:
            row = getattr(failure, "row", 0)
            fed = [
                name
                for name, value in inputs.items()
                if value.dtype.kind == "f" and np.isnan(value[row]).any()
            ]
            cause = f"its input {fed[0]!r} was NaN already" if fed else "its inputs were numbers"
            raise ActionError(
                f"{self._described['model']}: {failure} [{_where(self._alive[row])}]; {cause}"
            ) from None
        for transform in join.action_transforms:
            actions = transform(actions)
        return actions.astype(join.actor.space.dtype, copy=False)

    def _running(self) -> tuple[float, float]:
        """Mean return and its standard error so far."""
        count = len(self._finished)
        return self._mean if count else math.nan, math.sqrt(
            self._squares / (count - 1) / count
        ) if count > 1 else math.nan

    def _noise(self, spec: TensorSpec) -> np.ndarray:
        if self._described["deterministic"]:
            return np.zeros((len(self._alive), *spec.shape), spec.dtype)
        return np.stack([playing.generator.standard_normal(spec.shape) for playing in self._alive]).astype(
            spec.dtype
        )

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

    def _result(self, interrupted: bool) -> Evaluation:
        seconds = time.perf_counter() - self._started
        plans = []
        compiled = 0.0
        for plan in _plans(self._base):
            before = self._before.get(plan.size)
            compiled += (
                plan.compile_ms / 1e3 if before is None or before.compile_ms != plan.compile_ms else 0.0
            )
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
            **self._described,
        )


def _connect(
    inferer: Inferer,
    reader: ObservationReader,
    pool: EnvPool,
    metadata: Mapping[str, str],
    *,
    observation: Mapping[str, str] | str | None,
    action: str | None,
    epsilon: str | None,
    recurrent: Iterable[RecurrentInfo | tuple[str, str]] | None,
    action_transforms: Sequence[Any] | None,
    deterministic: bool,
) -> tuple[Inferer, _Connection]:
    """Join spaces and model; the inferer comes back with a tracker around it where there is hidden state."""
    pairs = _recurrent_pairs(inferer, reader.fields, recurrent)
    player = RecurrentTracker(inferer, pairs) if pairs else inferer
    feeds, rest = match_observation(reader.fields, player.api.inputs, pool.name, observation)
    if epsilon is not None and epsilon not in {spec.name for spec in rest}:
        raise SpaceMismatchError(
            f"epsilon= names the input {epsilon!r}; there are {', '.join(repr(spec.name) for spec in player.api.inputs)}"
        )
    noise = [spec for spec in rest if (spec.name == epsilon if epsilon is not None else _is_noise(spec))]
    masks = [spec for spec in rest if spec not in noise and canonical(spec.name) in ("actionmask", "mask")]
    rest = [spec for spec in rest if spec not in noise and spec not in masks]
    feeds = match_by_shape(reader.fields, feeds, rest, pool.name)
    random = bool(getattr(getattr(_innermost(inferer), "typed", None), "random", False))
    actor = match_action(
        pool.action_space,
        player.api.outputs,
        where=pool.name,
        chosen=action,
        deterministic=deterministic,
        random=random,
    )
    is_box = type(pool.action_space).__name__ == "Box"
    if action_transforms is None:
        wanted = metadata.get("clip_actions", "true").strip().casefold() not in ("false", "0", "no", "none")
        action_transforms = [ClipAction()] if is_box and wanted else []
    elif not is_box and any(hasattr(transform, "bind") for transform in action_transforms):
        raise SpaceMismatchError(
            f"ClipAction and ScaleAction are for Box actions; those of {pool.name} are {pool.action_space}"
        )
    bound = [
        transform.bind(pool.action_space) if hasattr(transform, "bind") else transform
        for transform in action_transforms
    ]
    return player, _Connection(feeds, noise, masks, pairs, actor, bound)


def _recurrent_pairs(
    inferer: Inferer, fields: Sequence[Field], given: Iterable[RecurrentInfo | tuple[str, str]] | None
) -> list[RecurrentInfo]:
    """Hidden state to keep; an input that the environment feeds by its name is none, whatever the outputs are called."""
    if given is not None:
        return [pair if isinstance(pair, RecurrentInfo) else RecurrentInfo(*pair) for pair in given]
    try:
        found = find_pairs(inferer.api)
    except IncompatibleModelError:
        return []
    observed = {canonical(field.name) for field in fields}
    found = [pair for pair in found if canonical(pair.inkey) not in observed]
    return found if len(found) < len(inferer.api.inputs) else []


def _is_noise(spec: TensorSpec) -> bool:
    name = canonical(spec.name)
    return spec.dtype.kind in "fV" and (name == "ep" or "epsilon" in name or "noise" in name)


def _width(env: Any, episodes: int, num_envs: int | None) -> int:
    gymnasium = import_gymnasium()
    if isinstance(env, gymnasium.Env):
        if num_envs not in (None, 1):
            raise EvaluationError(
                f"num_envs={num_envs}, but one environment was given: give its id, or a function that makes one"
            )
        return 1
    return min(episodes, DEFAULT_ENVS if num_envs is None else _checked("num_envs", num_envs))


def _checked(what: str, number: Any) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__") or number.__index__() < 1:
        raise EvaluationError(f"{what} is a positive whole number, got {number!r}")
    return number.__index__()


def _innermost(inferer: Any) -> Any:
    """The inferer that holds the plans, beneath all wrappers."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    return inferer


def _plans(base: Any) -> list[PlanInfo]:
    return base.plans() if hasattr(base, "plans") else []


def _name_of(source: Any, base: Any) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).stem
    name = getattr(getattr(base, "typed", None), "name", "")
    return Path(name).stem if name and not name.startswith("<") else "policy"


def _where(playing: _Playing) -> str:
    return f"episode {playing.index}, seed {playing.seed}, step {playing.length + 1}"


def _silent(done: int, mean: float, error: float, size: int) -> None:
    pass
