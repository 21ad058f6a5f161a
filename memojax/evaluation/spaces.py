"""How the parts of an observation reach the inputs of a model, and how its outputs become actions.

Both sides are matched by name first, then by the only shape that fits; where that leaves a choice, the error names both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ActionError, SpaceMismatchError
from ..model.signature import TensorSpec
from ..rows.states import can_cast
from .transforms import Observations

Rows = np.ndarray
Encoder = Callable[[Rows], Rows]

WHOLE = "observation"
"""The name of the only part of an observation that is neither a Dict nor a Tuple."""


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
    """A part after the observation transforms: what a model input is fed from."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    space: Any

    def __str__(self) -> str:
        kind = f" ({self.space})" if type(self.space).__name__ != "Box" else ""
        return f"{self.name}: {self.dtype}{list(self.shape)}{kind}"


def parts_of(space: Any) -> list[Part]:
    """The leaves of an observation space.

    Raises:
        SpaceMismatchError: a kind of space that no model input could be fed from (Text, Graph, Sequence, ...).
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
                f"observations of {space} cannot be fed to a model: wrap the environment so that it gives arrays"
            )

    return list(walk(space, ()))


class ObservationReader:
    """Observations of several agents as rows, through the transforms."""

    def __init__(self, space: Any, transforms: Sequence[Callable[[Observations], Observations]]):
        """Learn the space; the transforms are run once on an observation of zeros to see what they give."""
        self.space = space
        self.parts = parts_of(space)
        self._transforms = transforms
        self._whole = len(self.parts) == 1 and not self.parts[0].path
        spaces = {part.name: part.space for part in self.parts}
        zeros = self._transformed(
            {part.name: np.zeros((1, *part.space.shape), part.space.dtype) for part in self.parts}
        )
        self.fields = [
            Field(name, rows.shape[1:], rows.dtype, spaces.get(name)) for name, rows in zeros.items()
        ]

    def __call__(self, observations: Sequence[Any]) -> dict[str, Rows]:
        """Part name -> rows `[n, ...]`.

        Raises:
            SpaceMismatchError: an observation that is not in the space which the environment declares; `error.row` tells which.
        """
        rows = {part.name: self._column(part, observations) for part in self.parts}
        return self._transformed(rows) if self._transforms else rows

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
                raise _undeclared(
                    row, f"the environment declares the observation part {part.name!r}, but gave {given}"
                ) from cause
        shape, dtype = part.space.shape, part.space.dtype
        for row, value in enumerate(column):
            if value.shape != shape or not (value.dtype == dtype or can_cast(value.dtype, dtype)):
                raise _undeclared(
                    row,
                    f"the environment declares {part.name!r} as {part.space.dtype}{list(part.space.shape)}, "
                    f"but gave {value.dtype}{list(value.shape)}",
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


def _undeclared(row: int, message: str) -> SpaceMismatchError:
    error = SpaceMismatchError(message)
    error.row = row  # pyright: ignore[reportAttributeAccessIssue]
    return error


@dataclass(frozen=True)
class Feed:
    """One model input, the field it is fed from, and how."""

    input: TensorSpec
    field: Field
    encode: Encoder
    how: str

    def __call__(self, rows: Mapping[str, Rows]) -> Rows:
        return self.encode(rows[self.field.name])

    def __str__(self) -> str:
        return f"{self.field.name} -> {self.input.name}{'' if self.how == 'as it is' else f' ({self.how})'}"


def match_observation(
    fields: Sequence[Field],
    inputs: Sequence[TensorSpec],
    where: str,
    chosen: Mapping[str, str] | str | None = None,
) -> tuple[list[Feed], list[TensorSpec]]:
    """Which field feeds which input, as the caller or their names say; and the inputs that are left.

    Args:
        where: the environment's name, for the error.
        chosen: field name -> input name, where the caller says it; an input name alone for an observation in one piece.

    Raises:
        SpaceMismatchError: a named pair that is not there or does not fit.
    """
    by_field = {field.name: field for field in fields}
    by_input = {spec.name: spec for spec in inputs}
    if isinstance(chosen, str):
        if len(fields) > 1:
            raise SpaceMismatchError(
                f"observation={chosen!r} names one input, but the observation has the parts {', '.join(by_field)}"
            )
        chosen = {fields[0].name: chosen}
    sources: dict[str, Field] = {}
    for part, name in (chosen or {}).items():
        if part not in by_field or name not in by_input:
            side, given, known = (
                ("part", part, by_field) if part not in by_field else ("model input", name, by_input)
            )
            raise SpaceMismatchError(
                f"observation= names the {side} {given!r}; there are {', '.join(map(repr, known))}"
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
        fit = _fit(field, by_input[name])
        if fit is None:
            wrong.append(by_input[name])
        else:
            feeds.append(Feed(by_input[name], field, *fit))
    if wrong:
        raise SpaceMismatchError(_unmatched(fields, feeds, wrong, where))
    return feeds, [spec for spec in inputs if spec.name not in sources]


def match_by_shape(
    fields: Sequence[Field], feeds: list[Feed], inputs: Sequence[TensorSpec], where: str
) -> list[Feed]:
    """`feeds` and one for each of `inputs`, from the only field that fits it.

    Raises:
        SpaceMismatchError: no field fits an input, or more than one does.
    """
    free = [field for field in fields if not any(feed.field is field for feed in feeds)]
    fits = [[Feed(spec, field, *fit) for field in free if (fit := _fit(field, spec))] for spec in inputs]
    if any(len(options) != 1 for options in fits) or len({options[0].field.name for options in fits}) < len(
        inputs
    ):
        raise SpaceMismatchError(_unmatched(fields, feeds, inputs, where))
    return [*feeds, *(options[0] for options in fits)]


def _unmatched(
    fields: Sequence[Field], feeds: Sequence[Feed], inputs: Sequence[TensorSpec], where: str
) -> str:
    size = sum(_flat_size(field) for field in fields)
    if len(fields) == 1:
        hint = "is it the environment that the policy was trained for? If so, wrap it or transform its observations"
    elif len(inputs) == 1 and inputs[0].shape == (size,):
        hint = "gymnasium.wrappers.FlattenObservation joins the parts to one array of that size"
    else:
        hint = "name the pairs with observation={part: input}, or wrap the environment"
    done = "".join(f"\n  {feed.field.name} -> {feed.input.name} fits" for feed in feeds)
    return (
        f"the observation of {where} does not fit the model's inputs:\n"
        f"  environment gives  {'; '.join(map(str, fields))}\n"
        f"  model needs        {'; '.join(map(str, inputs))}{done}\n{hint}"
    )


def _fit(field: Field, spec: TensorSpec) -> tuple[Encoder, str] | None:
    """How the rows of `field` become rows of `spec`, or None where they do not."""
    shape, dtype = spec.shape, spec.dtype
    kind = type(field.space).__name__
    if kind == "Discrete" and shape == (int(field.space.n),) and shape != (1,):
        return _one_hot([int(field.space.n)], field.space.start, dtype), "one-hot"
    if kind == "MultiDiscrete" and shape == (int(field.space.nvec.sum()),) and shape != field.shape:
        return _one_hot(field.space.nvec.ravel().tolist(), field.space.start, dtype), "one-hot"
    if not can_cast(field.dtype, dtype):
        return None
    if field.shape == shape:
        return lambda rows: rows.astype(dtype, copy=False), "as it is"
    if _squeezed(field.shape) == _squeezed(shape):
        return lambda rows: rows.reshape(len(rows), *shape).astype(dtype, copy=False), "reshaped"
    if kind == "Box" and len(shape) == 3 and shape == (field.shape[-1], *field.shape[:-1]):
        return lambda rows: np.moveaxis(rows, -1, 1).astype(dtype), "channels first"
    return None


def _one_hot(sizes: Sequence[int], start: Any, dtype: np.dtype) -> Encoder:
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) - np.ravel(start)
    total = sum(sizes)

    def encode(rows: Rows) -> Rows:
        result = np.zeros((len(rows), total), dtype)
        result[np.arange(len(rows))[:, None], rows.reshape(len(rows), -1) + offsets] = 1
        return result

    return encode


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(dim for dim in shape if dim != 1)


def _flat_size(field: Field) -> int:
    kind = type(field.space).__name__
    return (
        int(field.space.n)
        if kind == "Discrete"
        else int(field.space.nvec.sum())
        if kind == "MultiDiscrete"
        else math.prod(field.shape)
    )


def canonical(name: str) -> str:
    """A name without case, punctuation, an `obs` prefix and a plural s, so that `obs/Position` and `position` are one."""
    short = "".join(
        filter(
            str.isalnum, re.sub(r"^(observations?|obs|inputs?)[^a-z0-9]+(?=[a-z0-9])", "", name.casefold())
        )
    )
    return "obs" if short in ("observations", "observation", "obs") else short.removesuffix("s") or short


@dataclass(frozen=True)
class Actor:
    """Which output gives the action, and how: "value", "index", "argmax", "sample", "threshold"."""

    output: str
    how: str
    decode: Callable[[Rows, Sequence[np.random.Generator]], Rows]
    space: Any

    def __str__(self) -> str:
        return self.output if self.how == "value" else f"{self.how} of {self.output}"

    def __call__(self, outputs: Mapping[str, Any], generators: Sequence[np.random.Generator]) -> Rows:
        """One action for each row.

        Raises:
            ActionError: NaN, or an index outside of the space; `error.row` tells which.
        """
        rows = np.asarray(outputs[self.output])
        if rows.dtype.kind not in "iub" and (bad := np.isnan(rows)).any():
            raise _bad(
                int(np.nonzero(bad.reshape(len(rows), -1).any(axis=1))[0][0]),
                f"output {self.output!r} is NaN",
            )
        return self.decode(rows, generators)


def match_action(
    space: Any,
    outputs: Sequence[TensorSpec],
    *,
    where: str,
    chosen: str | None = None,
    deterministic: bool = True,
    random: bool = False,
) -> Actor:
    """The output that gives the action.

    Args:
        chosen: the output's name, where the caller says it.
        deterministic: prefer what is not drawn at random.
        random: whether the model draws random numbers itself.

    Raises:
        SpaceMismatchError: no output fits the action space, or several do alike.
    """
    from gymnasium import spaces

    known = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, known):
        raise SpaceMismatchError(
            f"the action space of {where} is {space}: Box, Discrete, MultiDiscrete and MultiBinary are supported"
        )
    if chosen is not None:
        spec = next((spec for spec in outputs if spec.name == chosen), None)
        if spec is None:
            raise SpaceMismatchError(
                f"action= names the output {chosen!r}; there are {', '.join(repr(s.name) for s in outputs)}"
            )
        how = _reading(space, spec)
        if how is None:
            raise SpaceMismatchError(_no_action(space, [spec], where))
        return _actor(space, spec, how, deterministic)
    ranked = []
    for spec in outputs:
        how = _reading(space, spec)
        if how is not None and not _is_side_product(spec.name):
            ranked.append((_rank(spec.name, how, deterministic, random), spec, how))
    if not ranked:
        raise SpaceMismatchError(_no_action(space, outputs, where))
    ranked.sort(key=lambda item: item[0])
    best = ranked[0]
    if tied := [spec.name for rank, spec, _ in ranked[1:] if rank == best[0]]:
        raise SpaceMismatchError(
            f"several outputs fit the action space {space} of {where}: {', '.join(map(repr, [best[1].name, *tied]))}; name one with action="
        )
    return _actor(space, best[1], best[2], deterministic)


def needed_output(space: Any) -> str:
    """What an action space asks of a model's output, in words."""
    kind = type(space).__name__
    if kind == "Discrete":
        return f"float[n, {int(space.n)}] (a score per action) or int[n] (its index)"
    if kind == "MultiDiscrete":
        return f"float[n, {int(space.nvec.sum())}] (scores, {' + '.join(map(str, space.nvec.ravel()))}) or int[n, {space.nvec.size}]"
    dims = ", ".join(map(str, ("n", *space.shape)))
    return f"float[{dims}]" if kind == "Box" else f"float[{dims}] (logits) or int[{dims}]"


def _no_action(space: Any, outputs: Iterable[TensorSpec], where: str) -> str:
    return (
        f"no output of the model fits the action space of {where}:\n"
        f"  environment takes  {space}: {needed_output(space)}\n"
        f"  model gives        {'; '.join(map(str, outputs))}\n"
        "evaluate it on the environment that it was trained for, or name an output with action="
    )


_SIDE_PRODUCTS = (
    "value",
    "logprob",
    "entropy",
    "logstd",
    "std",
    "stddev",
    "scale",
    "sigma",
    "version",
    "memory",
    "critic",
    "vf",
    "loss",
)


def _is_side_product(name: str) -> bool:
    short = canonical(name)
    return "outputshape" in short or any(short == word or short.startswith(word) for word in _SIDE_PRODUCTS)


def _rank(name: str, how: str, deterministic: bool, random: bool) -> tuple[int, int]:
    short = canonical(name)
    is_mean = "deterministic" in short or short in ("mean", "mu", "mode", "actionmean", "meanaction")
    is_action = how in ("value", "index")
    if deterministic:
        order = 0 if is_mean else 2 if not is_action else 3 if random else 1
    else:
        order = 2 if is_mean else 0 if is_action else 1
    likely = (
        0
        if "action" in short
        else 1
        if short.startswith(("logit", "polic", "pi", "prob", "q", "mean", "mu"))
        else 2
    )
    return order, likely


def _reading(space: Any, spec: TensorSpec) -> str | None:
    """How an output can be read as an action of `space`, or None."""
    kind, shape, numbers = type(space).__name__, _squeezed(spec.shape), spec.dtype.kind
    floating, whole = numbers in "fV", numbers in "iub"
    if kind == "Discrete":
        if whole and shape == ():
            return "index"
        return "argmax" if floating and math.prod(spec.shape) == space.n and len(shape) <= 1 else None
    if kind == "MultiDiscrete":
        if whole and shape == _squeezed(space.shape):
            return "index"
        return (
            "argmax"
            if floating and math.prod(spec.shape) == space.nvec.sum() and (_even(space) or len(shape) <= 1)
            else None
        )
    if shape != _squeezed(space.shape):
        return None
    if kind == "MultiBinary":
        return "index" if whole else "threshold" if floating else None
    return "value" if floating or (whole and space.dtype.kind in "iu") else None


def _even(space: Any) -> bool:
    return len(set(space.nvec.ravel().tolist())) == 1


def _actor(space: Any, spec: TensorSpec, how: str, deterministic: bool) -> Actor:
    kind, name = type(space).__name__, canonical(spec.name)
    sampled = not deterministic and how in ("argmax", "threshold") and not name.startswith("q")
    probabilities = "prob" in name
    if kind == "Box":
        if space.dtype.kind in "iu" and spec.dtype.kind not in "iu":
            raise SpaceMismatchError(
                f"the action space is {space}, whole numbers, but output {spec} is not: wrap the environment"
            )
        return Actor(spec.name, how, lambda rows, _: rows.reshape(len(rows), *space.shape), space)
    if kind == "Discrete":
        n, start = int(space.n), int(space.start)

        def discrete(rows: Rows, generators: Sequence[np.random.Generator]) -> Rows:
            if how == "index":
                return _checked(rows.reshape(len(rows)).astype(np.int64), start, start + n, spec.name)
            scores = rows.reshape(len(rows), n)
            return (_sample(scores, probabilities, generators) if sampled else scores.argmax(axis=1)) + start

        return Actor(spec.name, "sample" if sampled else how, discrete, space)
    if kind == "MultiDiscrete":
        nvec, start = space.nvec.ravel(), space.start
        cuts = np.cumsum(nvec)[:-1]

        def multi(rows: Rows, generators: Sequence[np.random.Generator]) -> Rows:
            if how == "index":
                return _checked(
                    rows.reshape(len(rows), *space.shape).astype(space.dtype),
                    start,
                    start + space.nvec,
                    spec.name,
                )
            columns = np.split(rows.reshape(len(rows), -1), cuts, axis=1)
            picks = [_sample(c, probabilities, generators) if sampled else c.argmax(axis=1) for c in columns]
            return np.stack(picks, axis=1).reshape(len(rows), *space.shape).astype(space.dtype) + start

        return Actor(spec.name, "sample" if sampled else how, multi, space)

    def binary(rows: Rows, generators: Sequence[np.random.Generator]) -> Rows:
        bits = rows.reshape(len(rows), *space.shape)
        if how == "index":
            return _checked(bits.astype(space.dtype), 0, 2, spec.name)
        threshold: Any = 0.5 if probabilities else 0.0
        if sampled:
            uniform = np.stack([generator.random(space.shape) for generator in generators])
            threshold = uniform if probabilities else np.log(uniform) - np.log1p(-uniform)
        return (bits > threshold).astype(space.dtype)

    return Actor(spec.name, "sample" if sampled else how, binary, space)


def _sample(scores: Rows, probabilities: bool, generators: Sequence[np.random.Generator]) -> Rows:
    """One draw per row, by the Gumbel trick; each row from its own generator, so that a draw does not depend on the batch."""
    noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in generators])
    with np.errstate(divide="ignore"):
        logits = np.log(scores.astype(np.float64)) if probabilities else scores
    return (logits + noise).argmax(axis=1)


def _checked(actions: Rows, low: Any, high: Any, output: str) -> Rows:
    outside = ((actions < low) | (actions >= high)).reshape(len(actions), -1).any(axis=1)
    if outside.any():
        row = int(np.nonzero(outside)[0][0])
        limits = f"{np.asarray(low).tolist()} to {(np.asarray(high) - 1).tolist()}"
        raise _bad(
            row, f"output {output!r} gives the action {actions[row].tolist()}, the environment takes {limits}"
        )
    return actions


def _bad(row: int, what: str) -> ActionError:
    error = ActionError(what)
    error.row = row  # pyright: ignore[reportAttributeAccessIssue]
    return error
