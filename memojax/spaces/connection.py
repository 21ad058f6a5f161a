"""The connection of an environment and a model: a source for each input, and the use of each output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import IncompatibleModelError, SpaceMismatchError
from ..model.exporter_names import canonical, is_action_mask, is_episode_start, is_noise, wants_clipping
from ..model.signature import ModelApi, TensorSpec
from .actions import ActionKind, Actor, BoxActions, match_action
from .hidden_state import RecurrentInfo, checked_pairs, find_pairs
from .observations import Feed, Field, Rows, match_by_shape, match_observation
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
class ModelFacts:
    """The facts about a model that a connection needs.

    Attributes:
        api: the inputs and outputs that callers see.
        random: whether the model itself draws random numbers.
        metadata: the `metadata_props` of the file.
    """

    api: ModelApi
    random: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Connection:
    """The connection of an environment and a model.

    Attributes:
        reader: turns observations into rows of fields.
        feeds: field of each observed input.
        noise: inputs for noise, or zeros.
        masks: inputs for the mask of allowed actions.
        starts: inputs that mark the first step of an episode.
        memory: pieces of hidden state, which the caller must keep between calls.
        actor: turns outputs into actions.
        observation_transforms, action_transforms: applied to observations before the model, to actions after
            it.
    """

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


def join(
    model: ModelFacts, reader: Reader, kind: ActionKind, where: str, wiring: Wiring, deterministic: bool
) -> Connection:
    """Connect observations and a kind of action with a model; `where` names the environment in errors.

    Raises:
        SpaceMismatchError: they do not fit; the message names both sides.
        UnknownInputError, IncompatibleModelError: the model lacks a pair of `wiring.recurrent`.
    """
    pairs = _recurrent_pairs(model.api, reader.fields, wiring.recurrent)
    checked_pairs(model.api, pairs)
    visible = model.api.without([pair.inkey for pair in pairs], [pair.outkey for pair in pairs])
    feeds, rest = match_observation(reader.fields, visible.inputs, where, wiring.observation)
    noise = _noise_inputs(rest, wiring.epsilon, visible)
    masks = [spec for spec in rest if spec not in noise and is_action_mask(spec.name)]
    starts = [spec for spec in rest if is_episode_start(spec.name) and spec.shape in ((), (1,))]
    rest = [spec for spec in rest if spec not in (*noise, *masks, *starts)]
    feeds = match_by_shape(reader.fields, feeds, rest, where)
    actor = match_action(
        kind,
        visible.outputs,
        where=where,
        chosen=wiring.action,
        deterministic=deterministic,
        random=model.random,
    )
    transforms = _action_transforms(wiring.action_transforms, kind, where, model.metadata)
    seen = wiring.observation_transforms
    return Connection(reader, feeds, noise, masks, starts, pairs, actor, seen, transforms)


def _recurrent_pairs(
    api: ModelApi, fields: Sequence[Field], given: Iterable[RecurrentInfo | tuple[str, str]] | None
) -> list[RecurrentInfo]:
    """Hidden state to keep; an input that an observation feeds by name is never hidden state."""
    if given is not None:
        return [pair if isinstance(pair, RecurrentInfo) else RecurrentInfo(*pair) for pair in given]
    try:
        found = find_pairs(api)
    except IncompatibleModelError:
        return []
    observed = {canonical(field.name) for field in fields}
    found = [pair for pair in found if canonical(pair.inkey) not in observed]
    return found if len(found) < len(api.inputs) else []


def _noise_inputs(rest: Sequence[TensorSpec], chosen: str | None, visible: ModelApi) -> list[TensorSpec]:
    if chosen is None:
        return [spec for spec in rest if spec.dtype.kind in "fV" and is_noise(spec.name)]
    noise = [spec for spec in rest if spec.name == chosen]
    if not noise:
        known = ", ".join(repr(spec.name) for spec in visible.inputs)
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
