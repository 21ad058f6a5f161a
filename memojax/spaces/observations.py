"""Feeds parts of an observation to the inputs of a model: one class per kind of space, and the matching.

Parts and inputs are matched first by name, then by the only shape that fits. If a choice remains, the error
names both sides.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from ..errors import SpaceMismatchError
from ..model.exporter_names import canonical
from ..model.signature import TensorSpec
from ..rows.input_checks import can_cast
from .transforms import Observations

Rows = np.ndarray
Way = Literal["as it is", "reshaped", "channels first", "one-hot"]
"""Conversion from rows of a field to rows of an input."""

WHOLE = "observation"
"""Name of the only part of an observation that is neither a Dict nor a Tuple."""


@dataclass(frozen=True)
class Part:
    """One leaf of an observation space: `path` leads to it through nested Dicts and Tuples."""

    name: str
    space: Any
    path: tuple[Any, ...] = ()

    def take(self, observation: Any) -> Any:
        for key in self.path:
            observation = observation[key]
        return observation


@dataclass(frozen=True)
class Field:
    """A part after the observation transforms: the source of a model input."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: ObservationKind

    def __str__(self) -> str:
        plain = isinstance(self.kind, BoxObservations) or self.kind.space is None
        space = "" if plain else f" ({self.kind.space})"
        return f"{self.name}: {self.dtype}{list(self.shape)}{space}"


class ObservationKind(abc.ABC):
    """A kind of observation space, or of an array that the observation transforms made."""

    def __init__(self, space: Any):
        self.space = space

    @abc.abstractmethod
    def fits(self, field: Field, spec: TensorSpec) -> Way | None:
        """The conversion from rows of `field` to rows of `spec`; None if they do not fit."""

    @abc.abstractmethod
    def encode(self, rows: Rows, spec: TensorSpec, way: Way) -> Rows:
        """Rows of a field as rows of `spec`, by the conversion that `fits` found."""

    @abc.abstractmethod
    def flat_size(self, field: Field) -> int:
        """Number of elements after `gymnasium.wrappers.FlattenObservation`."""


@final
class BoxObservations(ObservationKind):
    """`Box`: numbers; an image may have to move its channels to the front."""

    def fits(self, field: Field, spec: TensorSpec) -> Way | None:
        if way := _fits_plainly(field, spec):
            return way
        channels_first = len(spec.shape) == 3 and spec.shape == (field.shape[-1], *field.shape[:-1])
        return "channels first" if channels_first and can_cast(field.dtype, spec.dtype) else None

    def encode(self, rows: Rows, spec: TensorSpec, way: Way) -> Rows:
        if way == "channels first":
            return np.moveaxis(rows, -1, 1).astype(spec.dtype)
        return _plain(rows, spec)

    def flat_size(self, field: Field) -> int:
        return math.prod(field.shape)


@final
class DiscreteObservations(ObservationKind):
    """`Discrete`: an index, or one-hot if the input has an element for each value."""

    def fits(self, field: Field, spec: TensorSpec) -> Way | None:
        one_hot = spec.shape == (int(self.space.n),) and spec.shape != (1,)
        return "one-hot" if one_hot else _fits_plainly(field, spec)

    def encode(self, rows: Rows, spec: TensorSpec, way: Way) -> Rows:
        if way == "one-hot":
            return _one_hot(rows, [int(self.space.n)], self.space.start, spec.dtype)
        return _plain(rows, spec)

    def flat_size(self, field: Field) -> int:
        return int(self.space.n)


@final
class MultiDiscreteObservations(ObservationKind):
    """`MultiDiscrete`: indices, or one-hot parts side by side if the input has an element for each value."""

    def fits(self, field: Field, spec: TensorSpec) -> Way | None:
        one_hot = spec.shape == (int(self.space.nvec.sum()),) and spec.shape != field.shape
        return "one-hot" if one_hot else _fits_plainly(field, spec)

    def encode(self, rows: Rows, spec: TensorSpec, way: Way) -> Rows:
        if way == "one-hot":
            return _one_hot(rows, self.space.nvec.ravel().tolist(), self.space.start, spec.dtype)
        return _plain(rows, spec)

    def flat_size(self, field: Field) -> int:
        return int(self.space.nvec.sum())


@final
class PlainObservations(ObservationKind):
    """`MultiBinary`, and arrays from a transform: used unchanged."""

    def fits(self, field: Field, spec: TensorSpec) -> Way | None:
        return _fits_plainly(field, spec)

    def encode(self, rows: Rows, spec: TensorSpec, way: Way) -> Rows:
        return _plain(rows, spec)

    def flat_size(self, field: Field) -> int:
        return math.prod(field.shape)


def observation_kind(space: Any) -> ObservationKind:
    """The kind of one part's space; `None` stands for an array from a transform."""
    from gymnasium import spaces

    kinds: tuple[tuple[Any, type[ObservationKind]], ...] = (
        (spaces.Box, BoxObservations),
        (spaces.Discrete, DiscreteObservations),
        (spaces.MultiDiscrete, MultiDiscreteObservations),
    )
    return next((ours for theirs, ours in kinds if isinstance(space, theirs)), PlainObservations)(space)


def _fits_plainly(field: Field, spec: TensorSpec) -> Way | None:
    if not can_cast(field.dtype, spec.dtype):
        return None
    if field.shape == spec.shape:
        return "as it is"
    return "reshaped" if without_ones(field.shape) == without_ones(spec.shape) else None


def _plain(rows: Rows, spec: TensorSpec) -> Rows:
    return rows.reshape(len(rows), *spec.shape).astype(spec.dtype, copy=False)


def _one_hot(rows: Rows, sizes: Sequence[int], start: Any, dtype: np.dtype) -> Rows:
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) - np.ravel(start)
    result = np.zeros((len(rows), sum(sizes)), dtype)
    result[np.arange(len(rows))[:, None], rows.reshape(len(rows), -1) + offsets] = 1
    return result


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` without the axes of size 1."""
    return tuple(dim for dim in shape if dim != 1)


def parts_of(space: Any) -> list[Part]:
    """The leaves of an observation space.

    Raises:
        SpaceMismatchError: a kind of space that cannot feed a model input (Text, Graph, Sequence, ...).
    """
    from gymnasium import spaces

    def walk(space: Any, path: tuple[Any, ...]) -> Iterator[Part]:
        if isinstance(space, spaces.Dict):
            for key, inner in space.spaces.items():
                yield from walk(inner, (*path, key))
        elif isinstance(space, spaces.Tuple):
            for index, inner in enumerate(space.spaces):
                yield from walk(inner, (*path, index))
        elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            yield Part(".".join(map(str, path)) or WHOLE, space, path)
        else:
            raise SpaceMismatchError(
                f"observations of {space} cannot feed a model: wrap the environment so that it gives arrays"
            )

    return list(walk(space, ()))


class ObservationReader:
    """Reads observations of several agents as rows, and applies the transforms."""

    def __init__(self, space: Any, transforms: Sequence[Callable[[Observations], Observations]]):
        """Learn the space, and run the transforms once on zeros to learn their results."""
        self.space = space
        self.parts: list[Part] = parts_of(space)
        self._transforms = transforms
        self._whole = len(self.parts) == 1 and not self.parts[0].path
        spaces = {part.name: part.space for part in self.parts}
        zeros = self._transformed(
            {part.name: np.zeros((1, *part.space.shape), part.space.dtype) for part in self.parts}
        )
        self.fields: list[Field] = [
            Field(name, rows.shape[1:], rows.dtype, observation_kind(spaces.get(name)))
            for name, rows in zeros.items()
        ]

    def __call__(self, observations: Sequence[Any]) -> dict[str, Rows]:
        """Part name -> rows `[n, ...]`.

        Raises:
            SpaceMismatchError: an observation is not in the declared space; `error.row` gives its row.
        """
        rows = {part.name: self._column(part, observations) for part in self.parts}
        return self._transformed(rows) if self._transforms else rows

    def batch(self, observation: Any) -> tuple[dict[str, Rows], bool]:
        """Part name -> rows, and whether `observation` was a batch, with an axis for agents in front.

        Raises:
            SpaceMismatchError: the observation is neither an element of the space nor a batch of elements.
        """
        rows, batched = {}, False
        for part in self.parts:
            try:
                value = np.asarray(part.take(observation))
            except (KeyError, IndexError, TypeError) as cause:
                raise SpaceMismatchError(
                    f"the observation has no part {part.name!r}, which the space has"
                ) from cause
            shape, dtype = part.space.shape, part.space.dtype
            batched = value.shape[1:] == shape and value.ndim == len(shape) + 1
            if not (batched or value.shape == shape) or not (
                value.dtype == dtype or can_cast(value.dtype, dtype)
            ):
                raise SpaceMismatchError(
                    f"the space has {part.name!r} as {dtype}{list(shape)}, but "
                    f"{value.dtype}{list(value.shape)} was given"
                )
            rows[part.name] = value if batched else value[None]
        if len({len(value) for value in rows.values()}) > 1:
            raise SpaceMismatchError("the parts of the observation have different numbers of rows")
        return (self._transformed(rows) if self._transforms else rows), batched

    def _column(self, part: Part, observations: Sequence[Any]) -> Rows:
        column: list[Rows] = []
        for row, observation in enumerate(observations):
            try:
                column.append(np.asarray(part.take(observation)))
            except (KeyError, IndexError, TypeError) as cause:
                names = isinstance(observation, Mapping)
                given = (
                    f"only {', '.join(map(repr, observation))}"
                    if names
                    else f"a {type(observation).__name__}"
                )
                raise SpaceMismatchError(
                    f"the environment declares the observation part {part.name!r}, but gave {given}", row
                ) from cause
        shape, dtype = part.space.shape, part.space.dtype
        for row, value in enumerate(column):
            if value.shape != shape or not (value.dtype == dtype or can_cast(value.dtype, dtype)):
                raise SpaceMismatchError(
                    f"the environment declares {part.name!r} as {part.space.dtype}{list(part.space.shape)}, "
                    f"but gave {value.dtype}{list(value.shape)}",
                    row,
                )
        return np.stack(column)

    def _transformed(self, rows: dict[str, Rows]) -> dict[str, Rows]:
        if not self._transforms:
            return rows
        given: Observations = rows[WHOLE] if self._whole else rows
        for transform in self._transforms:
            given = transform(given)
        named = given if isinstance(given, Mapping) else {WHOLE: given}
        return {name: np.asarray(value) for name, value in named.items()}


@dataclass(frozen=True)
class Feed:
    """One model input, its field, and the conversion."""

    input: TensorSpec
    field: Field
    way: Way

    def __call__(self, rows: Mapping[str, Rows]) -> Rows:
        return self.field.kind.encode(rows[self.field.name], self.input, self.way)

    def __str__(self) -> str:
        way = "" if self.way == "as it is" else f" ({self.way})"
        return f"{self.field.name} -> {self.input.name}{way}"


def match_observation(
    fields: Sequence[Field],
    inputs: Sequence[TensorSpec],
    where: str,
    chosen: Mapping[str, str] | str | None = None,
) -> tuple[list[Feed], list[TensorSpec]]:
    """Match fields and inputs by the caller's choice or by name; also gives the inputs that are left.

    Args:
        fields: the parts of the observation.
        inputs: the model's inputs.
        where: the environment's name, for the error.
        chosen: field name -> input name, if the caller gave it. For an observation in one piece, an input
            name alone.

    Raises:
        SpaceMismatchError: a named pair does not exist or does not fit.
    """
    by_field = {field.name: field for field in fields}
    by_input = {spec.name: spec for spec in inputs}
    if isinstance(chosen, str):
        if len(fields) > 1:
            raise SpaceMismatchError(
                f"observation={chosen!r} names one input, but the observation has the parts "
                f"{', '.join(by_field)}"
            )
        chosen = {fields[0].name: chosen}
    sources: dict[str, Field] = {}
    for part, name in (chosen or {}).items():
        if part not in by_field or name not in by_input:
            side, given, known = (
                ("part", part, by_field) if part not in by_field else ("model input", name, by_input)
            )
            raise SpaceMismatchError(
                f"observation= names the {side} {given!r}; the known ones are {', '.join(map(repr, known))}"
            )
        sources[name] = by_field[part]
    free = [field for field in fields if not any(field is taken for taken in sources.values())]
    for spec in inputs:
        alike = [field for field in free if canonical(field.name) == canonical(spec.name)]
        same = [field for field in alike if field.name == spec.name] or alike
        if spec.name not in sources and len(same) == 1:
            sources[spec.name] = same[0]
    feeds, wrong = [], []
    for name, field in sources.items():
        way = field.kind.fits(field, by_input[name])
        if way is None:
            wrong.append(by_input[name])
        else:
            feeds.append(Feed(by_input[name], field, way))
    if wrong:
        raise SpaceMismatchError(_unmatched(fields, feeds, wrong, where))
    return feeds, [spec for spec in inputs if spec.name not in sources]


def match_by_shape(
    fields: Sequence[Field], feeds: list[Feed], inputs: Sequence[TensorSpec], where: str
) -> list[Feed]:
    """`feeds`, and one feed for each of `inputs` from the only field that fits it.

    Raises:
        SpaceMismatchError: no field fits an input, or several do.
    """
    free = [field for field in fields if not any(feed.field is field for feed in feeds)]
    fits = [
        [Feed(spec, field, way) for field in free if (way := field.kind.fits(field, spec))] for spec in inputs
    ]
    if any(len(options) != 1 for options in fits) or len({options[0].field.name for options in fits}) < len(
        inputs
    ):
        raise SpaceMismatchError(_unmatched(fields, feeds, inputs, where))
    return [*feeds, *(options[0] for options in fits)]


def _unmatched(
    fields: Sequence[Field], feeds: Sequence[Feed], inputs: Sequence[TensorSpec], where: str
) -> str:
    size = sum(field.kind.flat_size(field) for field in fields)
    if len(fields) == 1 and feeds:
        names = ", ".join(spec.name for spec in inputs)
        hint = (
            f"nothing is left for {names}: if they are hidden state, name the outputs with their next "
            "values, recurrent=[(input, output), ...] (--recurrent IN:OUT,...)"
        )
    elif len(fields) == 1:
        hint = "was the policy trained for this environment? If so, wrap it or transform its observations"
    elif len(inputs) == 1 and inputs[0].shape == (size,):
        hint = "gymnasium.wrappers.FlattenObservation joins the parts into one array of that size"
    else:
        hint = "name the pairs with observation={part: input}, or wrap the environment"
    done = "".join(f"\n  {feed.field.name} -> {feed.input.name} fits" for feed in feeds)
    return (
        f"the observation of {where} does not fit the model's inputs:\n"
        f"  environment gives  {'; '.join(map(str, fields))}\n"
        f"  model needs        {'; '.join(map(str, inputs))}{done}\n{hint}"
    )
