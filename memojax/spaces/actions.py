"""Turns outputs into actions: one class per kind of action space, and the choice of the output."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from ..errors import ActionError, SpaceMismatchError
from ..model.exporter_names import (
    action_likelihood,
    are_probabilities,
    are_q_values,
    are_scores,
    is_action,
    is_best_action,
    is_side_product,
)
from ..model.signature import TensorSpec
from .observations import Rows, without_ones

How = Literal["value", "index", "argmax", "sample", "threshold"]
"""How to read an output: as the action itself, as its index, or as scores (the best one, or a draw)."""

Generators = Sequence[np.random.Generator]
"""One generator per row, so a draw does not depend on the batch."""


@dataclass(frozen=True)
class Reading:
    """An output, and how to read it."""

    output: TensorSpec
    how: How

    def __str__(self) -> str:
        return self.output.name if self.how == "value" else f"{self.how} of {self.output.name}"

    def drawn(self) -> Reading:
        """The same output with a draw by its scores; Q-values are not scores to draw by."""
        scores = self.how in ("argmax", "threshold") and not are_q_values(self.output.name)
        return Reading(self.output, "sample") if scores else self


class ActionKind(abc.ABC):
    """A kind of action space."""

    def __init__(self, space: Any):
        self.space = space

    @property
    @abc.abstractmethod
    def needs(self) -> str:
        """The output that the space needs, in words."""

    @abc.abstractmethod
    def fits(self, output: TensorSpec) -> How | None:
        """How to read `output` as an action; None if that is impossible."""

    @abc.abstractmethod
    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        """One action for each row of the output.

        Raises:
            ActionError: an index lies outside of the space.
        """


@final
class BoxActions(ActionKind):
    """`Box`: the output is the action itself."""

    @property
    def needs(self) -> str:
        return f"float[{_dims(self.space)}]"

    def fits(self, output: TensorSpec) -> How | None:
        if without_ones(output.shape) != without_ones(self.space.shape):
            return None
        exact = _is_whole(output) and self.space.dtype.kind in "iu"
        return "value" if _is_floating(output) or exact else None

    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        return rows.reshape(len(rows), *self.space.shape)


@final
class DiscreteActions(ActionKind):
    """`Discrete`: the output is an index, or holds a score per action."""

    @property
    def needs(self) -> str:
        return f"float[n, {int(self.space.n)}] (a score per action) or int[n] (its index)"

    def fits(self, output: TensorSpec) -> How | None:
        shape = without_ones(output.shape)
        if _is_whole(output) and shape == ():
            return "index"
        scores = math.prod(output.shape) == self.space.n and len(shape) <= 1
        return "argmax" if _is_floating(output) and scores else None

    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        n, start = int(self.space.n), int(self.space.start)
        if reading.how == "index":
            return _check_range(rows.reshape(len(rows)).astype(np.int64), start, start + n, reading)
        return _pick(rows.reshape(len(rows), n), reading, generators) + start


@final
class MultiDiscreteActions(ActionKind):
    """`MultiDiscrete`: the output holds an index per part, or all scores of all parts."""

    @property
    def needs(self) -> str:
        parts = self.space.nvec.ravel()
        scores = f"(scores, {' + '.join(map(str, parts))})"
        return f"float[n, {int(parts.sum())}] {scores} or int[n, {parts.size}]"

    def fits(self, output: TensorSpec) -> How | None:
        shape = without_ones(output.shape)
        if _is_whole(output) and shape == without_ones(self.space.shape):
            return "index"
        parts = self.space.nvec.ravel()
        even = len(set(parts.tolist())) == 1
        scores = math.prod(output.shape) == parts.sum() and (even or len(shape) <= 1)
        return "argmax" if _is_floating(output) and scores else None

    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        space, shape = self.space, (len(rows), *self.space.shape)
        if reading.how == "index":
            indices = rows.reshape(shape).astype(space.dtype)
            return _check_range(indices, space.start, space.start + space.nvec, reading)
        parts = np.split(rows.reshape(len(rows), -1), np.cumsum(space.nvec.ravel())[:-1], axis=1)
        picks = [_pick(part, reading, generators) for part in parts]
        return np.stack(picks, axis=1).reshape(shape).astype(space.dtype) + space.start


@final
class MultiBinaryActions(ActionKind):
    """`MultiBinary`: the output holds bits, or a logit (or probability) per bit."""

    @property
    def needs(self) -> str:
        return f"float[{_dims(self.space)}] (logits) or int[{_dims(self.space)}]"

    def fits(self, output: TensorSpec) -> How | None:
        if without_ones(output.shape) != without_ones(self.space.shape):
            return None
        return "index" if _is_whole(output) else "threshold" if _is_floating(output) else None

    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        bits = rows.reshape(len(rows), *self.space.shape)
        if reading.how == "index":
            return _check_range(bits.astype(self.space.dtype), 0, 2, reading)
        probabilities = are_probabilities(reading.output.name)
        threshold: Any = 0.5 if probabilities else 0.0
        if reading.how == "sample":
            uniform = np.stack([generator.random(self.space.shape) for generator in generators])
            threshold = uniform if probabilities else np.log(uniform) - np.log1p(-uniform)
        return (bits > threshold).astype(self.space.dtype)


@final
class UnknownActions(ActionKind):
    """No space is known, so dtype and name of an output decide how to read it, or to leave it out."""

    @property
    def needs(self) -> str:
        return (
            "int[n, ...] (an index), a float output named as scores (logits, probabilities, q_values), "
            "or one named as an action (actions, mean)"
        )

    def fits(self, output: TensorSpec) -> How | None:
        if _is_whole(output):
            return "index"
        if not _is_floating(output):
            return None
        scores = are_scores(output.name) and len(without_ones(output.shape)) == 1
        return "argmax" if scores else "value" if is_action(output.name) else None

    def decode(self, rows: Rows, reading: Reading, generators: Generators) -> Rows:
        if reading.how in ("argmax", "sample"):
            return _pick(rows.reshape(len(rows), -1), reading, generators)
        return rows.astype(np.int64, copy=False) if reading.how == "index" else rows


def action_kind(space: Any, where: str) -> ActionKind:
    """The kind of an action space.

    Raises:
        SpaceMismatchError: one output cannot hold an action of this space (Dict, Tuple, Text, ...).
    """
    from gymnasium import spaces

    kinds: tuple[tuple[Any, type[ActionKind]], ...] = (
        (spaces.Box, BoxActions),
        (spaces.Discrete, DiscreteActions),
        (spaces.MultiDiscrete, MultiDiscreteActions),
        (spaces.MultiBinary, MultiBinaryActions),
    )
    for gymnasiums, ours in kinds:
        if isinstance(space, gymnasiums):
            return ours(space)
    raise SpaceMismatchError(
        f"the action space of {where} is {space}, but only Box, Discrete, MultiDiscrete and MultiBinary are "
        "supported"
    )


@dataclass(frozen=True)
class Actor:
    """Reads actions from the outputs of a model."""

    kind: ActionKind
    reading: Reading

    def __str__(self) -> str:
        return str(self.reading)

    @property
    def space(self) -> Any:
        return self.kind.space

    def __call__(
        self, outputs: Mapping[str, Any], generators: Generators, allowed: Rows | None = None
    ) -> Rows:
        """One action for each row; `allowed` is a bool per score, for a policy without a mask input.

        Raises:
            ActionError: an output is NaN, or an index lies outside of the space; `error.row` gives the row.
            SpaceMismatchError: the output has no scores for `allowed`, or another number of them.
        """
        name = self.reading.output.name
        rows = np.asarray(outputs[name])
        if rows.dtype.kind not in "iub" and (bad := np.isnan(rows)).any():
            row = int(np.nonzero(bad.reshape(len(rows), -1).any(axis=1))[0][0])
            raise ActionError(f"output {name!r} is NaN", row)
        if allowed is not None:
            rows = self._masked(rows, allowed)
        return self.kind.decode(rows, self.reading, generators)

    def _masked(self, rows: Rows, allowed: Rows) -> Rows:
        spec = self.reading.output
        if self.reading.how not in ("argmax", "sample"):
            raise SpaceMismatchError(
                f"output {spec.name!r} is already the action, and the model has no mask input: a mask cannot "
                "rule out actions"
            )
        if allowed.size != rows.size:
            raise SpaceMismatchError(
                f"a mask of shape {list(allowed.shape)} for {len(rows)} rows of output {spec}: expected one "
                "bool per score"
            )
        nothing = 0.0 if are_probabilities(spec.name) else -np.inf
        return np.where(allowed.reshape(rows.shape).astype(bool), rows, nothing)


def match_action(
    kind: ActionKind,
    outputs: Sequence[TensorSpec],
    *,
    where: str,
    chosen: str | None = None,
    deterministic: bool = True,
    random: bool = False,
) -> Actor:
    """Choose the output that gives the action.

    Args:
        kind: the kind of action space.
        outputs: the model's outputs.
        where: the environment's name, for the error.
        chosen: the output's name, if the caller gave one.
        deterministic: prefer outputs that are not drawn at random.
        random: whether the model itself draws random numbers.

    Raises:
        SpaceMismatchError: no output fits the action space, or several fit equally well.
    """
    space = kind.space
    candidates = _named(outputs, chosen) if chosen is not None else outputs
    readings = [
        Reading(spec, how)
        for spec in candidates
        if (how := kind.fits(spec)) and (chosen is not None or not is_side_product(spec.name))
    ]
    if not readings:
        raise SpaceMismatchError(_no_action(kind, candidates, where))
    ranks = [_rank(reading, deterministic, random) for reading in readings]
    best = [reading for reading, rank in zip(readings, ranks, strict=True) if rank == min(ranks)]
    if len(best) > 1:
        names = ", ".join(repr(reading.output.name) for reading in best)
        fit = f"fit the action space {space} of {where}" if space is not None else "may be the action"
        raise SpaceMismatchError(f"several outputs {fit}: {names}; name one with action=")
    spec = best[0].output
    if isinstance(kind, BoxActions) and space.dtype.kind in "iu" and spec.dtype.kind not in "iu":
        raise SpaceMismatchError(
            f"the action space {space} has whole numbers, but output {spec} has not: wrap the environment"
        )
    return Actor(kind, best[0] if deterministic else best[0].drawn())


def _named(outputs: Sequence[TensorSpec], name: str) -> list[TensorSpec]:
    found = [spec for spec in outputs if spec.name == name]
    if not found:
        known = ", ".join(repr(spec.name) for spec in outputs)
        raise SpaceMismatchError(f"action= names the output {name!r}; the outputs are {known}")
    return found


def _rank(reading: Reading, deterministic: bool, random: bool) -> tuple[int, int]:
    """Rank of a reading, smaller first: by its kind, then by its name."""
    name = reading.output.name
    is_action = reading.how in ("value", "index")
    if deterministic:
        # An action that the model may draw at random comes last.
        order = 0 if is_best_action(name) else 2 if not is_action else 3 if random else 1
    else:
        order = 2 if is_best_action(name) else 0 if is_action else 1
    return order, action_likelihood(name)


def _no_action(kind: ActionKind, outputs: Iterable[TensorSpec], where: str) -> str:
    if isinstance(kind, UnknownActions):
        return (
            f"no output is clearly the action; the model gives {'; '.join(map(str, outputs))}.\n"
            f"Without an action space it must be {kind.needs}: give the spaces, "
            "policy.for_env(env).predict(...)"
        )
    return (
        f"no output of the model fits the action space of {where}:\n"
        f"  environment takes  {kind.space}: {kind.needs}\n"
        f"  model gives        {'; '.join(map(str, outputs))}\n"
        "evaluate it on the environment that it was trained for, or name an output with action="
    )


def _dims(space: Any) -> str:
    return ", ".join(map(str, ("n", *space.shape)))


def _is_floating(output: TensorSpec) -> bool:
    return output.dtype.kind in "fV"  # V: bfloat16 and similar types.


def _is_whole(output: TensorSpec) -> bool:
    return output.dtype.kind in "iub"


def _pick(scores: Rows, reading: Reading, generators: Generators) -> Rows:
    """The best action of each row, or one drawn by the Gumbel trick."""
    if reading.how != "sample":
        return scores.argmax(axis=1)
    noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in generators])
    with np.errstate(divide="ignore"):
        logits = np.log(scores.astype(np.float64)) if are_probabilities(reading.output.name) else scores
    return (logits + noise).argmax(axis=1)


def _check_range(actions: Rows, low: Any, high: Any, reading: Reading) -> Rows:
    outside = ((actions < low) | (actions >= high)).reshape(len(actions), -1).any(axis=1)
    if outside.any():
        row = int(np.nonzero(outside)[0][0])
        limits = f"{np.asarray(low).tolist()} to {(np.asarray(high) - 1).tolist()}"
        raise ActionError(
            f"output {reading.output.name!r} gives the action {actions[row].tolist()}, but the environment "
            f"takes {limits}",
            row,
        )
    return actions
