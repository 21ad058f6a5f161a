"""The connection of an environment and a model: a source for each input, and the use of each output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import IncompatibleModelError, SpaceMismatchError
from ..inferer.base import Inferer
from ..model.exporter_names import canonical, is_action_mask, is_episode_start, is_noise, wants_clipping
from ..model.signature import TensorSpec
from ..wrapper.recurrent import RecurrentInfo, RecurrentTracker, find_pairs
from .actions import ActionKind, Actor, BoxActions, action_kind, match_action
from .observations import Feed, Field, ObservationReader, Rows, match_by_shape, match_observation
from .transforms import ClipAction, Observations

ObservationTransform = Callable[[Observations], Observations]
ActionTransform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Wiring:
    """The caller's choices for connecting environment and model; `evaluate` describes each field."""

    observation: Mapping[str, str] | str | None = None
    action: str | None = None
    epsilon: str | None = None
    recurrent: Iterable[RecurrentInfo | tuple[str, str]] | None = None
    observation_transforms: Sequence[ObservationTransform] = ()
    action_transforms: Sequence[ActionTransform] | None = None


@dataclass(frozen=True)
class Connection:
    """The connection of an environment and a model.

    Attributes:
        player: the inferer, inside a tracker if there is hidden state.
        reader: turns observations into rows of fields.
        feeds: field of each observed input.
        noise: inputs for noise, or zeros.
        masks: inputs for the mask of allowed actions.
        starts: inputs that mark the first step of an episode.
        memory: pieces of hidden state that `player` keeps.
        actor: turns outputs into actions.
        observation_transforms, action_transforms: applied to observations before the model, to actions after
            it.
    """

    player: Inferer
    reader: Reader
    feeds: Sequence[Feed]
    noise: Sequence[TensorSpec]
    masks: Sequence[TensorSpec]
    starts: Sequence[TensorSpec]
    memory: Sequence[RecurrentInfo]
    actor: Actor
    observation_transforms: Sequence[ObservationTransform]
    action_transforms: Sequence[ActionTransform]

    def told(self, deterministic: bool) -> tuple[str, ...]:
        """The source of each input, as text."""
        return (
            *map(str, self.feeds),
            *(f"{'zeros' if deterministic else 'noise'} -> {spec.name}" for spec in self.noise),
            *(f"action mask -> {spec.name}" for spec in self.masks),
            *(f"episode start -> {spec.name}" for spec in self.starts),
            *(f"{pair.outkey} -> {pair.inkey}" for pair in self.memory),
        )


class Reader(Protocol):
    """Turns observations into fields."""

    @property
    def fields(self) -> Sequence[Field]:
        """The fields that model inputs can be fed from."""
        ...

    def __call__(self, observations: Sequence[Any]) -> dict[str, Rows]:
        """Observations of several agents as rows by field name."""
        ...


class Spaces(Protocol):
    """Anything with an observation space and an action space: a pool, or an agent of it."""

    @property
    def name(self) -> str:
        """Name for errors."""
        ...

    @property
    def observation_space(self) -> Any:
        """Gymnasium's observation space."""
        ...

    @property
    def action_space(self) -> Any:
        """Gymnasium's action space."""
        ...


def connect(inferer: Inferer, pool: Spaces, wiring: Wiring, deterministic: bool) -> Connection:
    """Connect the spaces of an environment with a model.

    Raises:
        SpaceMismatchError: they do not fit; the message names both sides.
    """
    reader = ObservationReader(pool.observation_space, wiring.observation_transforms)
    return join(inferer, reader, action_kind(pool.action_space, pool.name), pool.name, wiring, deterministic)


def join(
    inferer: Inferer, reader: Reader, kind: ActionKind, where: str, wiring: Wiring, deterministic: bool
) -> Connection:
    """Connect observations and a kind of action with a model; `where` names the environment in errors.

    Raises:
        SpaceMismatchError: they do not fit; the message names both sides.
    """
    pairs = _recurrent_pairs(inferer, reader.fields, wiring.recurrent)
    player = RecurrentTracker(inferer, pairs) if pairs else inferer
    feeds, rest = match_observation(reader.fields, player.api.inputs, where, wiring.observation)
    noise = _noise_inputs(rest, wiring.epsilon, player)
    masks = [spec for spec in rest if spec not in noise and is_action_mask(spec.name)]
    starts = [spec for spec in rest if is_episode_start(spec.name) and spec.shape in ((), (1,))]
    rest = [spec for spec in rest if spec not in (*noise, *masks, *starts)]
    feeds = match_by_shape(reader.fields, feeds, rest, where)
    actor = match_action(
        kind,
        player.api.outputs,
        where=where,
        chosen=wiring.action,
        deterministic=deterministic,
        random=bool(getattr(getattr(innermost(inferer), "typed", None), "random", False)),
    )
    transforms = _action_transforms(wiring.action_transforms, kind, where, metadata_of(inferer))
    seen = wiring.observation_transforms
    return Connection(player, reader, feeds, noise, masks, starts, pairs, actor, seen, transforms)


def innermost(inferer: Any) -> Any:
    """The inferer that holds the plans, inside all wrappers."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    return inferer


def metadata_of(policy: Any) -> Mapping[str, str]:
    """The metadata in the model file of an inferer or `TypedModel`; empty without a file."""
    return getattr(innermost(policy), "metadata", {})


def _recurrent_pairs(
    inferer: Inferer, fields: Sequence[Field], given: Iterable[RecurrentInfo | tuple[str, str]] | None
) -> list[RecurrentInfo]:
    """Hidden state to keep; an input that an observation feeds by name is never hidden state."""
    if given is not None:
        return [pair if isinstance(pair, RecurrentInfo) else RecurrentInfo(*pair) for pair in given]
    try:
        found = find_pairs(inferer.api)
    except IncompatibleModelError:
        return []
    observed = {canonical(field.name) for field in fields}
    found = [pair for pair in found if canonical(pair.inkey) not in observed]
    return found if len(found) < len(inferer.api.inputs) else []


def _noise_inputs(rest: Sequence[TensorSpec], chosen: str | None, player: Inferer) -> list[TensorSpec]:
    if chosen is None:
        return [spec for spec in rest if spec.dtype.kind in "fV" and is_noise(spec.name)]
    noise = [spec for spec in rest if spec.name == chosen]
    if not noise:
        known = ", ".join(repr(spec.name) for spec in player.api.inputs)
        raise SpaceMismatchError(f"epsilon= names the input {chosen!r}; the inputs are {known}")
    return noise


def _action_transforms(
    given: Sequence[ActionTransform] | None, kind: ActionKind, where: str, metadata: Mapping[str, str]
) -> list[ActionTransform]:
    """The transforms; bounds that are missing come from the action space."""
    is_box = isinstance(kind, BoxActions)
    if given is None:
        given = [ClipAction()] if is_box and wants_clipping(metadata) else []
    elif not is_box and any(hasattr(transform, "bind") for transform in given):
        raise SpaceMismatchError(
            f"ClipAction and ScaleAction need Box actions, but those of {where} are {kind.space}"
        )
    bind: Any = lambda transform: getattr(transform, "bind", lambda _: transform)(kind.space)  # noqa: E731
    return [bind(transform) for transform in given]
