"""`predict` with Stable-Baselines3's signature, for its `evaluate_policy` and callbacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from .._types import Arrays
from ..errors import InputShapeError, SpaceMismatchError
from ..model.signature import TensorSpec
from ..rows.torch_arrays import from_torch, is_torch, to_torch
from ..spaces.actions import ActionKind, UnknownActions, action_kind
from ..spaces.connection import Connection, ModelFacts, Wiring, join
from ..spaces.observations import WHOLE, Field, ObservationReader, PlainObservations, Rows
from .base import Inferer
from .layers import innermost, metadata_of
from .vector_loop import VectorStep, vector_steps

log: logging.Logger = logging.getLogger("memojax")

State = tuple[np.ndarray, ...]
"""Hidden state of all agents: one array `[n, *shape]` per piece."""

_UNCLIPPED = (
    "predict gives the actions of output %r unchanged: without the action space they are neither clipped "
    "nor scaled; policy.for_env(env) knows the space"
)


@final
class Predictor:
    """A policy for the spaces of an environment, which Stable-Baselines3 accepts as a model.

    >>> import gymnasium
    >>> env = gymnasium.make("Acrobot-v1")
    >>> agent = memojax.load(memojax.policies.bundled("acrobot_ppo")).for_env(env)
    >>> action, state = agent.predict(env.reset(seed=0)[0], deterministic=True)
    >>> env.action_space.contains(int(action))
    True
    """

    def __init__(self, policy: Inferer, env: Any = None, wiring: Wiring | None = None, seed: int = 0):
        """Connect `policy` with the spaces of `env`, or, without `env`, with any observations.

        Args:
            policy: an inferer.
            env: any object with an `observation_space` and an `action_space`.
            wiring: the caller's choices; see `Wiring`.
            seed: seed of the draws if `deterministic` is False.

        Raises:
            SpaceMismatchError: the spaces do not fit the model; the message names both sides.
        """
        self.policy: Inferer = policy
        self.env: Any = env
        self._wiring, self._seed = wiring or Wiring(), seed
        self._generator = np.random.default_rng(seed)
        self._joined: dict[Any, Connection] = {}
        if env is not None:
            name = getattr(getattr(env, "spec", None), "id", type(env).__name__)
            # Gymnasium's vector environments have joint spaces too, so the single ones come first.
            seen, done = (
                getattr(env, f"single_{side}", None) or getattr(env, side)
                for side in ("observation_space", "action_space")
            )
            self._reader = ObservationReader(seen, self._wiring.observation_transforms)
            self._kind: ActionKind = action_kind(done, name)
            self._where = name
            self._connection(self._reader, True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Predictor, (self.policy, self.env, self._wiring, self._seed)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, State | None]:
        """Actions for one observation or a batch of them, and the next hidden state.

        Args:
            observation: array, or part -> array, with or without an axis for agents in front. A tensor gives
                a tensor.
            state: the state that the last call gave; None at the start.
            episode_start: bool[n]; True zeroes the agent's state, because its episode is new.
            deterministic: take the best action instead of drawing one.
            action_masks: bool[n, actions], the allowed actions (sb3-contrib's `MaskablePPO`).

        Raises:
            SpaceMismatchError: the observation does not fit, or no output is clearly the action.
            ActionError: the policy gave NaN, or an action outside of a discrete space.
        """
        # `dones` also tells a policy that itself keeps state by agent whose episode is new.
        return self._predict_by(
            lambda inputs, dones: self.policy.infer_arrays(inputs, dones=dones),
            observation,
            state,
            episode_start,
            deterministic,
            action_masks,
        )

    def _predict_by(
        self,
        run: Callable[[dict[str, Any], np.ndarray], Arrays],
        observation: Any,
        state: State | None,
        episode_start: Any,
        deterministic: bool,
        action_masks: Any,
    ) -> tuple[Any, State | None]:
        """`predict` for rows that `run(inputs, dones)` answers.

        Raises:
            SpaceMismatchError, ActionError: as for `predict`.
        """
        tensor = is_torch(observation)
        if tensor:
            observation = np.asarray(from_torch("the observation", observation))
        rows, batched, connection = self._read(observation, deterministic)
        n = len(next(iter(rows.values())))
        fresh = _flags(episode_start, n)
        inputs: dict[str, Any] = {feed.input.name: feed(rows) for feed in connection.feeds}
        inputs.update((spec.name, self._noise(spec, n, deterministic)) for spec in connection.noise)
        inputs.update((spec.name, _mask_rows(action_masks, spec, n)) for spec in connection.masks)
        inputs.update(
            (spec.name, fresh.reshape(n, *spec.shape).astype(spec.dtype)) for spec in connection.starts
        )
        hidden = self._hidden(connection, state, n, fresh)
        outputs = run({**inputs, **hidden}, fresh)
        allowed = None if action_masks is None or connection.masks else np.asarray(action_masks)
        actions = connection.actor(outputs, [self._generator] * n, allowed)
        for transform in connection.action_transforms:
            actions = transform(actions)
        if connection.actor.space is not None:
            actions = actions.astype(connection.actor.space.dtype, copy=False)
        if connection.memory:
            state = tuple(np.array(outputs[pair.outkey]) for pair in connection.memory)
        actions = np.array(actions) if batched else np.array(actions[0])
        return (to_torch(actions, False) if tensor else actions), state

    # Stable-Baselines3's callbacks read the attributes below from a model.

    def steps(self, *, seed: int | None = None, deterministic: bool = True) -> Iterator[VectorStep]:
        """Step the vector environment that this policy was connected with, without end.

        Hidden state begins anew with the first observation of each episode, in both of Gymnasium's ways to
        reset: in the step that ends an episode, or in the next one.

        >>> import gymnasium, itertools
        >>> envs = gymnasium.make_vec("Acrobot-v1", num_envs=2, vectorization_mode="sync")
        >>> agent = memojax.load(memojax.policies.bundled("acrobot_ppo")).for_env(envs)
        >>> sum(step.rewards.sum() for step in itertools.islice(agent.steps(seed=0), 10))
        -20.0

        Args:
            seed: of the environments' first reset.
            deterministic: as for `predict`.

        Raises:
            SpaceMismatchError: the environment is no vector environment, or does not reset itself.
        """
        return vector_steps(self.predict, self.env, seed, deterministic)

    num_timesteps = 0

    @property
    def logger(self) -> Any:
        """Stable-Baselines3's logger, without any output until it is configured."""
        if "_logger" not in self.__dict__:
            from stable_baselines3.common.logger import Logger  # pyright: ignore[reportMissingImports]

            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def get_env(self) -> Any:
        """The environment that this policy is connected with."""
        return self.env

    def get_vec_normalize_env(self) -> Any:
        """None: the statistics of a `VecNormalize` around the environment are not this policy's to change."""
        return None

    def _read(self, observation: Any, deterministic: bool) -> tuple[Mapping[str, Rows], bool, Connection]:
        if self.env is not None:
            rows, batched = self._reader.batch(observation)
            return rows, batched, self._connection(self._reader, deterministic)
        ranks = {len(spec.shape) for spec in self.policy.api.inputs}
        failures: list[tuple[bool, SpaceMismatchError]] = []
        for batched in (True, False):
            reader = _GivenReader(observation, batched)
            try:
                return reader.rows, batched, self._connection(reader, deterministic)
            except SpaceMismatchError as mismatch:
                likely = not ranks.isdisjoint(len(field.shape) for field in reader.fields)
                failures.append((likely, mismatch))
        # The caller means the reading that has as many axes as the model's inputs.
        raise max(failures, key=lambda failure: failure[0])[1]

    def _connection(self, reader: ObservationReader | _GivenReader, deterministic: bool) -> Connection:
        signature = deterministic, *((field.name, field.shape, field.dtype) for field in reader.fields)
        if signature not in self._joined:
            known = self.env is not None
            kind = self._kind if known else UnknownActions(None)
            where = self._where if known else "the environment"
            joined = join(facts_of(self.policy), reader, kind, where, self._wiring, deterministic)
            if not known and joined.actor.reading.how == "value" and not joined.action_transforms:
                log.warning(_UNCLIPPED, joined.actor.reading.output.name)
            self._joined[signature] = joined
        return self._joined[signature]

    def _noise(self, spec: TensorSpec, n: int, deterministic: bool) -> np.ndarray:
        shape = (n, *spec.shape)
        drawn = np.zeros(shape) if deterministic else self._generator.standard_normal(shape)
        return drawn.astype(spec.dtype)

    def _hidden(
        self, connection: Connection, state: Sequence[Any] | None, n: int, fresh: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Hidden state by input name, with zeros for new episodes."""
        specs = {spec.name: spec for spec in self.policy.api.inputs}
        wanted = [specs[pair.inkey] for pair in connection.memory]
        if not wanted:
            return {}
        if state is None:
            return {spec.name: np.zeros((n, *spec.shape), spec.dtype) for spec in wanted}
        given = [np.array(piece) for piece in state]
        for spec, piece in zip(wanted, given, strict=True):
            if piece.shape != (n, *spec.shape):
                raise InputShapeError(
                    f"state for {spec.name!r} has shape {list(piece.shape)}, expected {[n, *spec.shape]}: "
                    "pass the state that predict gave"
                )
            piece[fresh] = 0
        return {spec.name: piece.astype(spec.dtype) for spec, piece in zip(wanted, given, strict=True)}


def facts_of(inferer: Any) -> ModelFacts:
    """The facts about an inferer that a connection with an environment needs."""
    typed = getattr(innermost(inferer), "typed", None)
    return ModelFacts(inferer.api, bool(getattr(typed, "random", False)), metadata_of(inferer))


class _GivenReader:
    """Reads observations of an unknown space unchanged."""

    def __init__(self, observation: Any, batched: bool):
        parts = observation if isinstance(observation, Mapping) else {WHOLE: observation}
        arrays = {name: np.asarray(value) for name, value in parts.items()}
        if batched and any(not value.ndim for value in arrays.values()):
            batched = False
        self.rows = arrays if batched else {name: value[None] for name, value in arrays.items()}
        self.fields = [
            Field(name, value.shape[1:], value.dtype, PlainObservations(None))
            for name, value in self.rows.items()
        ]

    def __call__(self, observations: Sequence[Any]) -> dict[str, Rows]:
        parts = [one if isinstance(one, Mapping) else {WHOLE: one} for one in observations]
        return {name: np.stack([np.asarray(part[name]) for part in parts]) for name in self.rows}


def _flags(given: Any, n: int) -> np.ndarray:
    if given is None:
        return np.zeros(n, bool)
    flags = np.asarray(given, bool).reshape(-1)
    if len(flags) != n:
        raise InputShapeError(f"episode_start has {len(flags)} flags for {n} observations")
    return flags


def _mask_rows(given: Any, spec: TensorSpec, n: int) -> np.ndarray:
    if given is None:
        return np.ones((n, *spec.shape), spec.dtype)
    try:
        return np.asarray(given).reshape(n, *spec.shape).astype(spec.dtype)
    except ValueError as cause:
        raise SpaceMismatchError(f"action_masks does not fit the model's input {spec}: {cause}") from cause
