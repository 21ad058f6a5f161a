"""One policy at work: it makes a batch of the observations, and actions of the outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ActionError, EvaluationError, MemojaxError, SpaceMismatchError
from ..inferer.base import Inferer
from ..inferer.pool_seats import PoolSeats
from ..model.signature import TensorSpec
from ..spaces.connection import Connection
from ..wrapper.recurrent import RecurrentTracker
from .envs import as_actions


@dataclass(eq=False)
class Seat:
    """An agent in an environment, with its observation and its policy.

    Attributes:
        name: the agent's name in its environment; empty for a single agent.
        agent: the agent's number for the inferer.
        generator: the agent's own stream of random numbers.
        player: the policy that acts for the agent.
        episode, seed, steps: the agent's place in the evaluation.
    """

    name: str
    agent: int
    generator: np.random.Generator
    player: Player
    episode: int
    seed: int
    observation: Any = None
    mask: Any = None
    steps: int = 0

    def where(self) -> str:
        """The coming step, for an error."""
        name = f", agent {self.name}" if self.name else ""
        return f"episode {self.episode}, seed {self.seed}, step {self.steps + 1}{name}"

    def seen_in(self) -> str:
        """The step that gave the observation, for an error."""
        name = f", agent {self.name}" if self.name else ""
        when = f"step {self.steps}" if self.steps else "reset"
        return f"episode {self.episode}, seed {self.seed}, {when}{name}"


class Player:
    """A policy joined to an environment."""

    def __init__(
        self, inferer: Inferer, connection: Connection, model: str, env_id: str, deterministic: bool
    ):
        """Put a tracker around `inferer` if it has hidden state; the names are for errors."""
        self.connection = connection
        self.inferer: Inferer = RecurrentTracker(inferer, connection.memory) if connection.memory else inferer
        self._model, self._env_id, self._deterministic = model, env_id, deterministic
        self._pool = inferer if isinstance(inferer, PoolSeats) else None
        self.sets: Callable[[str, int], Hashable] = lambda name, episode: None
        """The weight set of an agent, by its name and its episode's number, for a player of a pool."""

    def begin(self, agent: int, name: str, episode: int) -> None:
        """Let the inferer know a new agent, whose name in the environment is `name`."""
        self.inferer.begin_agent(agent)
        if self._pool is not None:
            self._pool.assign(agent, self.sets(name, episode))

    def act(self, seats: Sequence[Seat], calls: dict[int, list[float]]) -> list[Any]:
        """An action for each seat, in the environments' form; `calls` takes the seconds by batch size.

        Raises:
            SpaceMismatchError: an observation is not in the declared space.
            ActionError: an output is NaN, or an action lies outside of a discrete space.
            EvaluationError: the inferer raised.
        """
        join = self.connection
        inputs = self._inputs(seats)
        started = time.perf_counter()
        try:
            outputs = self.inferer.infer_arrays(inputs, ids=[seat.agent for seat in seats])
        except MemojaxError as cause:
            raise EvaluationError(f"the policy failed on a batch of {len(seats)}: {cause}") from cause
        calls.setdefault(len(seats), []).append(time.perf_counter() - started)
        try:
            actions = join.actor(outputs, [seat.generator for seat in seats])
        except ActionError as failure:
            where = f"[{seats[failure.row].where()}]; {_blame(inputs, failure.row)}"
            raise ActionError(f"{self._model}: {failure} {where}", failure.row) from None
        for transform in join.action_transforms:
            actions = transform(actions)
        return as_actions(actions.astype(join.actor.space.dtype, copy=False))

    def _inputs(self, seats: Sequence[Seat]) -> dict[str, np.ndarray]:
        join = self.connection
        try:
            rows = join.reader([seat.observation for seat in seats])
        except SpaceMismatchError as failure:
            if failure.row is None:
                raise
            where = f"[{self._env_id}, {seats[failure.row].seen_in()}]"
            raise SpaceMismatchError(
                f"{failure} {where}: correct its observation_space, or wrap it", failure.row
            ) from failure.__cause__
        inputs = {feed.input.name: feed(rows) for feed in join.feeds}
        inputs.update((spec.name, self._noise(spec, seats)) for spec in join.noise)
        inputs.update((spec.name, self._masks(spec, seats)) for spec in join.masks)
        inputs.update((spec.name, _starts(spec, seats)) for spec in join.starts)
        return inputs

    def _noise(self, spec: TensorSpec, seats: Sequence[Seat]) -> np.ndarray:
        if self._deterministic:
            return np.zeros((len(seats), *spec.shape), spec.dtype)
        draws = [seat.generator.standard_normal(spec.shape) for seat in seats]
        return np.stack(draws).astype(spec.dtype)

    def _masks(self, spec: TensorSpec, seats: Sequence[Seat]) -> np.ndarray:
        ones = np.ones(spec.shape, spec.dtype)
        try:
            return np.stack(
                [
                    ones if seat.mask is None else np.asarray(seat.mask, spec.dtype).reshape(spec.shape)
                    for seat in seats
                ]
            )
        except ValueError as cause:
            raise SpaceMismatchError(
                f"info['action_mask'] of {self._env_id} does not fit the model's input {spec}: {cause}"
            ) from cause


def _starts(spec: TensorSpec, seats: Sequence[Seat]) -> np.ndarray:
    first = np.array([seat.steps == 0 for seat in seats])
    return first.reshape(-1, *spec.shape).astype(spec.dtype)


def _blame(inputs: Mapping[str, np.ndarray], row: int) -> str:
    fed = [name for name, value in inputs.items() if value.dtype.kind == "f" and np.isnan(value[row]).any()]
    return f"its input {fed[0]!r} was already NaN" if fed else "its inputs were numbers"
