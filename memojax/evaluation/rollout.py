"""Plays episodes: many environments side by side, one call of each policy per step."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import EnvironmentFailedError, EvaluationError, MemojaxError
from ..inferer.layers import innermost
from ..plans.plan import PlanInfo
from .acting import Player, Seat
from .envs import EnvPool
from .planning import Warmup
from .progress import Report
from .result import Episode, Evaluation

_agents = itertools.count(1 << 40)
"""Agents of evaluations have separate numbers, so evaluating an inferer does not disturb agents it serves."""

_STREAM = 0x6D6A
"""Separates a policy's draws from those of an environment with the same seed."""


@dataclass(frozen=True)
class Setting:
    """The facts about an evaluation before its first reset; `Evaluation` has the same fields."""

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
    """An episode in progress."""

    index: int
    seed: int
    slot: int
    seats: dict[str, Seat] = field(default_factory=dict)
    total: float = 0.0
    by_agent: dict[str, float] = field(default_factory=dict)
    length: int = 0


class Rollout:
    """One evaluation, from its first reset."""

    def __init__(
        self,
        players: Mapping[str, Player],
        pool: EnvPool,
        setting: Setting,
        seeds: Sequence[int],
        max_steps: int | None = None,
        on_episode: Callable[[Episode], None] | None = None,
        warmups: Sequence[Warmup] = (),
    ):
        """Play one episode for each of `seeds`, each of at most `max_steps`.

        Args:
            players: agent -> the policy that acts for it; "" stands for a single agent.
            pool: the environments.
            setting: the facts for the result.
            seeds: one seed per episode.
            max_steps: limit of steps per episode.
            on_episode: called with each finished episode.
            warmups: compiles that run beside the evaluation.
        """
        self._players, self._pool, self._setting = players, pool, setting
        self._waiting = enumerate(seeds)
        self._undealt = len(seeds)
        self._limit = max_steps or 1 << 62
        self._on_episode = on_episode
        self._warmups = warmups
        self._alive: list[_Playing] = []
        # Agents that the policies know: noted before they begin, so an interrupt leaves no agent behind.
        self._known: dict[int, Player] = {}
        self._finished: list[Episode] = []
        self._mean = self._squares = 0.0
        self._steps = 0
        self._calls: dict[int, list[float]] = {}
        bases = {id(base): base for base in (innermost(player.inferer) for player in players.values())}
        self._bases = [_Before(base) for base in bases.values()]
        self._started = time.perf_counter()

    def run(self, report: Report) -> Evaluation:
        """Play until all episodes are finished, or Ctrl-C."""
        interrupted = False
        try:
            self._begin(range(self._setting.num_envs))
            for warmup in self._warmups:
                warmup.wait()
            while self._alive:
                rows = self._step()
                report(len(self._finished), *self._running(), rows)
                if not self._undealt:  # From now on the batch shrinks.
                    for warmup in self._warmups:
                        warmup.ahead(rows)
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
            for agent, player in self._known.items():
                with contextlib.suppress(MemojaxError):
                    player.inferer.end_agent(agent)
        return self._result(interrupted)

    def _begin(self, slots: Iterable[int]) -> None:
        """Give the next episodes to `slots`, as far as there are any."""
        dealt = [
            _Playing(index, seed, slot) for slot, (index, seed) in zip(slots, self._waiting, strict=False)
        ]
        if not dealt:
            return
        self._undealt -= len(dealt)
        try:
            outcomes = self._pool.reset({playing.slot: playing.seed for playing in dealt})
        except EnvironmentFailedError as failure:
            where = next(playing for playing in dealt if playing.slot == failure.slot)
            raise EnvironmentFailedError(
                f"{failure} [episode {where.index}, seed {where.seed}]", failure.slot
            ) from failure.__cause__
        for playing, outcome in zip(dealt, outcomes, strict=True):
            self._alive.append(playing)
            self._seat(playing, outcome)
        self._alive.sort(key=lambda playing: playing.slot)

    def _seat(self, playing: _Playing, outcome: Any) -> None:
        """Give the present agents their observations; agents that are gone leave their seats."""
        seen = self._pool.seen(outcome)
        for name in [name for name in playing.seats if name not in seen]:
            self._leave(playing.seats.pop(name))
        for name, (observation, mask) in seen.items():
            if (seat := playing.seats.get(name)) is None:
                seat = playing.seats[name] = self._new_seat(playing, name)
            seat.observation, seat.mask = observation, mask

    def _new_seat(self, playing: _Playing, name: str) -> Seat:
        player, agent = self._players[name], next(_agents)
        self._known[agent] = player
        player.begin(agent, name, playing.index)
        own = [list(self._players).index(name)] if name else []
        generator = np.random.Generator(np.random.SFC64([playing.seed, _STREAM, *own]))
        return Seat(name, agent, generator, player, playing.index, playing.seed)

    def _leave(self, seat: Seat) -> None:
        """Let the policy forget the agent of a seat."""
        seat.player.inferer.end_agent(seat.agent)
        del self._known[seat.agent]

    def _step(self) -> int:
        """One call of each policy, one step of each living environment; returns the most rows of a call."""
        turns: dict[Player, list[tuple[_Playing, Seat]]] = {}
        for playing in self._alive:
            for seat in playing.seats.values():
                turns.setdefault(seat.player, []).append((playing, seat))
        actions: dict[int, dict[str, Any]] = {playing.slot: {} for playing in self._alive}
        for player, turn in turns.items():
            chosen = player.act([seat for _, seat in turn], self._calls)
            for (playing, seat), action in zip(turn, chosen, strict=True):
                actions[playing.slot][seat.name] = action
        try:
            outcomes = self._pool.step({slot: self._pool.joint(parts) for slot, parts in actions.items()})
        except EnvironmentFailedError as failure:
            playing = next(playing for playing in self._alive if playing.slot == failure.slot)
            seat = next(iter(playing.seats.values()))
            taken = {name: np.asarray(action).tolist() for name, action in actions[playing.slot].items()}
            step = f"episode {seat.episode}, seed {seat.seed}, step {seat.steps + 1}"
            raise EnvironmentFailedError(
                f"{failure} [{step}, action {taken.get('', taken)}]", failure.slot
            ) from failure.__cause__
        self._take_in(outcomes)
        return max(len(turn) for turn in turns.values())

    def _take_in(self, outcomes: Sequence[Any]) -> None:
        """Count rewards, finish episodes that are over, and begin others in their place."""
        going: list[_Playing] = []
        ended: list[tuple[_Playing, bool]] = []
        for playing, outcome in zip(self._alive, outcomes, strict=True):
            playing.length += 1
            for seat in playing.seats.values():
                seat.steps += 1
            for name, reward in self._pool.rewards(outcome).items():
                playing.total += reward
                if name:
                    playing.by_agent[name] = playing.by_agent.get(name, 0.0) + reward
            if outcome.terminated or outcome.truncated or playing.length >= self._limit:
                ended.append((playing, not outcome.terminated))
            else:
                going.append(playing)
                self._seat(playing, outcome)
        self._steps += len(outcomes)
        self._alive = going
        for playing, truncated in ended:
            self._finish(playing, truncated)
        if ended:
            self._begin([playing.slot for playing, _ in ended])

    def _finish(self, playing: _Playing, truncated: bool) -> None:
        for seat in playing.seats.values():
            self._leave(seat)
        episode = Episode(
            playing.index, playing.seed, playing.total, playing.length, truncated, playing.by_agent
        )
        self._finished.append(episode)
        offset = episode.total - self._mean
        self._mean += offset / len(self._finished)
        self._squares += offset * (episode.total - self._mean)
        if self._on_episode is not None:
            self._on_episode(episode)

    def _running(self) -> tuple[float, float]:
        """Mean return and its standard error so far."""
        count = len(self._finished)
        error = math.sqrt(self._squares / (count - 1) / count) if count > 1 else math.nan
        return self._mean if count else math.nan, error

    def _result(self, interrupted: bool) -> Evaluation:
        seconds = time.perf_counter() - self._started
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
            compile_seconds=sum(base.compiled() for base in self._bases),
            batch_sizes={size: len(calls) for size, calls in sorted(self._calls.items(), reverse=True)},
            call_us=medians,
            plans=[plan for base in self._bases for plan in base.plans()],
            interrupted=interrupted,
            padded_rows=sum(base.padded() for base in self._bases),
            **vars(self._setting),
        )


class _Before:
    """The state of an inferer before the run, to count this run's work only."""

    def __init__(self, base: Any):
        self._base = base
        self._plans = {plan.size: plan for plan in self._now()}
        self._padded = self._padding()

    def plans(self) -> list[PlanInfo]:
        """The inferer's plans, with the calls since then."""
        known = self._plans
        return [
            replace(plan, calls=plan.calls - (known[plan.size].calls if plan.size in known else 0))
            for plan in self._now()
        ]

    def compiled(self) -> float:
        """Compile seconds of the plans made since then."""
        old = {size: plan.compile_ms for size, plan in self._plans.items()}
        return sum(plan.compile_ms for plan in self._now() if old.get(plan.size) != plan.compile_ms) / 1e3

    def padded(self) -> int:
        """Padded rows since then."""
        return self._padding() - self._padded

    def _now(self) -> list[PlanInfo]:
        return self._base.plans() if hasattr(self._base, "plans") else []

    def _padding(self) -> int:
        return self._base.cache_info().padded_rows if hasattr(self._base, "cache_info") else 0
