"""How an environment and a model are joined: what feeds each input, what becomes of the outputs."""

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
    """What the caller says about how environment and model go together; the keywords of `evaluate` describe
    each field."""

    observation: Mapping[str, str] | str | None = None
    action: str | None = None
    epsilon: str | None = None
    recurrent: Iterable[RecurrentInfo | tuple[str, str]] | None = None
    observation_transforms: Sequence[ObservationTransform] = ()
    action_transforms: Sequence[ActionTransform] | None = None


@dataclass(frozen=True)
class Connection:
    """How an environment and a model are joined.

    Attributes:
        player: the inferer; with a tracker around it where there is hidden state.
        reader: observations -> rows of fields.
        feeds: fields -> inputs.
        noise: inputs that take noise, or zeros.
        masks: inputs that take the actions which are allowed.
        starts: inputs that mark the first step of an episode.
        memory: pieces of hidden state that `player` keeps.
        actor: outputs -> actions.
        observation_transforms, action_transforms: what happens to observations before the model, to actions
            after it.
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
        """How each input is fed, for a reader."""
        return (
            *map(str, self.feeds),
            *(f"{'zeros' if deterministic else 'noise'} -> {spec.name}" for spec in self.noise),
            *(f"action mask -> {spec.name}" for spec in self.masks),
            *(f"episode start -> {spec.name}" for spec in self.starts),
            *(f"{pair.outkey} -> {pair.inkey}" for pair in self.memory),
        )


class Reader(Protocol):
    """What gives an observation as fields."""

    @property
    def fields(self) -> Sequence[Field]:
        """What model inputs can be fed from."""
        ...

    def __call__(self, observations: Sequence[Any]) -> dict[str, Rows]:
        """Observations of several agents as rows by field name."""
        ...


class Spaces(Protocol):
    """What has an observation space and an action space: a pool, or an agent of it."""

    @property
    def name(self) -> str:
        """For errors."""
        ...

    @property
    def observation_space(self) -> Any:
        """Gymnasium's."""
        ...

    @property
    def action_space(self) -> Any:
        """Gymnasium's."""
        ...


def connect(inferer: Inferer, pool: Spaces, wiring: Wiring, deterministic: bool) -> Connection:
    """Join the spaces of an environment and a model.

    Raises:
        SpaceMismatchError: they do not fit; both sides are named.
    """
    reader = ObservationReader(pool.observation_space, wiring.observation_transforms)
    return join(inferer, reader, action_kind(pool.action_space, pool.name), pool.name, wiring, deterministic)


def join(
    inferer: Inferer, reader: Reader, kind: ActionKind, where: str, wiring: Wiring, deterministic: bool
) -> Connection:
    """Join observations and a kind of action; `where` names the environment in errors.

    Raises:
        SpaceMismatchError: they do not fit; both sides are named.
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
    """The inferer that holds the plans, beneath all wrappers."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    return inferer


def metadata_of(policy: Any) -> Mapping[str, str]:
    """What the model file of an inferer or a `TypedModel` says about itself; nothing where there is no
    file."""
    return getattr(innermost(policy), "metadata", {})


def _recurrent_pairs(
    inferer: Inferer, fields: Sequence[Field], given: Iterable[RecurrentInfo | tuple[str, str]] | None
) -> list[RecurrentInfo]:
    """Hidden state to keep; inputs that an observation feeds by name are never taken for hidden state."""
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
        raise SpaceMismatchError(f"epsilon= names the input {chosen!r}; there are {known}")
    return noise


def _action_transforms(
    given: Sequence[ActionTransform] | None, kind: ActionKind, where: str, metadata: Mapping[str, str]
) -> list[ActionTransform]:
    """The transforms, with open bounds taken from the action space."""
    is_box = isinstance(kind, BoxActions)
    if given is None:
        given = [ClipAction()] if is_box and wants_clipping(metadata) else []
    elif not is_box and any(hasattr(transform, "bind") for transform in given):
        raise SpaceMismatchError(
            f"ClipAction and ScaleAction are for Box actions; those of {where} are {kind.space}"
        )
    bind: Any = lambda transform: getattr(transform, "bind", lambda _: transform)(kind.space)  # noqa: E731
    return [bind(transform) for transform in given]
