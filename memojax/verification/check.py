"""`verify`: compare memojax with another runtime on random inputs, at several batch sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from .._types import Source
from ..errors import IncompatibleModelError, InputError
from ..inferer.base import Inferer
from ..inferer.memoizing import MemoizingDynamicInferer
from ..lowering.loading import typed_model
from ..lowering.row_probe import random_rows
from ..lowering.typed_model import TypedModel, at_trial
from ..plans.batch_sizes import checked_size
from .file_layout import Rows, same_up_to_ones
from .runtimes import CONTENDERS, Contender, ContenderError
from .said import contradictions
from .tolerance import ATOL, RTOL, Tolerance, is_number


@dataclass(frozen=True)
class Check:
    """One output at one batch size, on random inputs.

    Attributes:
        size: the batch size.
        output: name of the output.
        max_abs: largest absolute difference.
        max_rel: largest difference relative to the other runtime's value, if that is above `ATOL`.
        argmax_agreement: share of rows with the same largest element; None for an output that is not a vector
            of numbers.
        same: whether the output is within `rtol` and `atol`, has the same shape and dtype, and `alone` is not
            False; None if it is not compared.
        note: why it is not compared, or how it differs apart from the numbers.
        alone: whether the other runtime gives the same for every row alone, in the file layout; None if that
            is not known. False means that memojax took another axis for the batch, or that the file mixes the
            rows of a batch.
        rtol: relative tolerance; it is larger for an output that float16 or bfloat16 reaches in the file.
        atol: absolute tolerance.
    """

    size: int
    output: str
    max_abs: float
    max_rel: float
    argmax_agreement: float | None
    same: bool | None
    note: str = ""
    alone: bool | None = None
    rtol: float = RTOL
    atol: float = ATOL


@final
class Checks(list[Check]):
    """The checks of `verify`, one for each output and batch size.

    Attributes:
        contradictions: a line for each of `batch_axis` and `constants` that the loader alone would not choose
            for this file. `verify` compares under them, and cannot tell whether they are right.
    """

    def __init__(self, checks: Iterable[Check] = (), contradictions: Iterable[str] = ()):
        super().__init__(checks)
        self.contradictions: tuple[str, ...] = tuple(contradictions)


def verify(
    source: Source | TypedModel,
    sizes: Iterable[int] = (1, 5, 32),
    *,
    against: str = "onnxruntime",
    reference: Source | TypedModel | None = None,
    seed: int = 0,
) -> Checks:
    """Compare every output at every batch size with another runtime; random outputs are left out.

    The other runtime runs the whole batch, and then each row alone in the file layout, where a wrong batch
    axis shows. If the file declares a batch but memojax runs it row by row, the file's own batch is compared
    too. Where the options of loading contradict the file, the result's `contradictions` tell it.

    >>> import memojax
    >>> all(check.same for check in memojax.verify(memojax.policies.bundled("acrobot_ppo"), [1, 3]))
    True

    Args:
        source: as for `memojax.load`, or a `TypedModel`.
        sizes: batch sizes to compare.
        against: the other runtime, "onnxruntime" or "tract".
        reference: the ONNX model for the other runtime, if `source` has none (an exported policy, a
            function).
        seed: seed of the random inputs.

    Raises:
        InputError: `against` is not the name of a runtime.
        IncompatibleModelError: `reference` has other inputs or outputs.
        MissingPackageError: the other runtime is not installed.
        ContenderError: the other runtime cannot run the model.
    """
    if against not in CONTENDERS:
        raise InputError(f"against= takes {' or '.join(map(repr, CONTENDERS))}, not {against!r}")
    typed = at_trial(typed_model(source))
    wanted = [checked_size(size) for size in sizes]
    inferer: Inferer = MemoizingDynamicInferer.from_typed(typed, device="cpu")
    other = contender(against, typed, reference)
    rng = np.random.default_rng(seed)
    allowed = other.tolerances()
    drawn: set[str] = set()
    checks: list[Check] = []
    for size in wanted:
        rows = {spec.name: random_rows(rng, size, spec) for spec in typed.api.inputs}
        mine = inferer.infer_arrays(rows)
        theirs = _answers(other, rows)
        if typed.random and not drawn:
            again = [inferer.infer_arrays(rows) for _ in range(_DRAWS)]
            drawn = {
                name for name, value in mine.items() if any((rerun[name] != value).any() for rerun in again)
            }
        for name, value in mine.items():
            value = np.asarray(value)
            checks.append(
                Check(size, name, _NAN, _NAN, None, None, "drawn at random")
                if name in drawn
                else _check(size, name, value, theirs, allowed[name])
            )
    return Checks(checks, contradictions(typed_model(reference) if reference is not None else typed))


def contender(name: str, typed: TypedModel, reference: Source | TypedModel | None = None) -> Contender:
    """Another runtime with the ONNX file of `typed`, or of `reference`, if that has the same inputs.

    Raises:
        IncompatibleModelError: `reference` has other inputs or outputs.
        MissingPackageError, ContenderError: see `verify`.
    """
    if reference is None:
        return CONTENDERS[name](typed)
    theirs = at_trial(typed_model(reference))
    for side, mine, other in (
        ("input", typed.api.inputs, theirs.api.inputs),
        ("output", typed.api.outputs, theirs.api.outputs),
    ):
        if {spec.name: spec for spec in mine} != {spec.name: spec for spec in other}:
            have, want = (", ".join(map(str, specs)) for specs in (other, mine))
            raise IncompatibleModelError(
                f"the reference has the {side}s {have}, but the policy has {want}: give the file from which "
                "the policy was made"
            )
    return CONTENDERS[name](theirs)


_NAN = float("nan")
_SHOWN = 200
"""Characters that a note quotes of another runtime's message."""
_DRAWS = 16
"""Runs that show which outputs are random: an output that never differs is not."""


@dataclass(frozen=True)
class _Answers:
    """The outputs of the other runtime for a batch.

    Attributes:
        batch: rows `[n, *element_shape]` of each output, by the batch axis that memojax found; None if that
            does not run.
        alone: the outputs of each row alone, in the file layout; None if that does not run.
        whole: the outputs of all rows at once, in the file layout; None if the file has no batch, or does not
            run so.
        wrong: output -> how a single row contradicts the file's declaration.
        failure: the runs of these that failed, and why.
    """

    batch: Mapping[str, np.ndarray] | None
    alone: Sequence[Mapping[str, np.ndarray]] | None
    whole: Mapping[str, np.ndarray] | None
    wrong: Mapping[str, str]
    failure: str = ""


def _answers(other: Contender, rows: Rows) -> _Answers:
    batch, alone, whole, failure = None, None, None, ""
    try:
        alone = other.alone(rows)
    except ContenderError as cause:
        failure = f"not compared row by row: {str(cause)[:_SHOWN]}"
    try:
        batch = other(rows)
    except ContenderError as cause:
        if alone is None:
            raise
        failure = f"compared row by row only: {str(cause)[:_SHOWN]}"
    if other.row_by_row and alone is not None:
        with contextlib.suppress(ContenderError):
            whole = other.whole(rows)
    return _Answers(batch, alone, whole, other.contradictions(rows, alone[0]) if alone else {}, failure)


def _check(size: int, name: str, mine: np.ndarray, theirs: _Answers, allowed: Tolerance) -> Check:
    alone = whole = None
    if theirs.alone is not None:
        rows = zip(mine, theirs.alone, strict=True)
        alone = all(_close_in_file(row, answer[name], allowed) for row, answer in rows)
    if theirs.whole is not None:
        whole = _close_in_file(mine, theirs.whole[name], allowed, rows_apart=True)
    if theirs.batch is not None:
        other = np.asarray(theirs.batch[name])
    else:
        other = np.stack(
            [
                answer[name].reshape(row.shape) if answer[name].size == row.size else answer[name]
                for row, answer in zip(mine, theirs.alone or (), strict=True)
            ]
        )
    check = _compared(size, name, mine, other, allowed)
    notes = [check.note, theirs.failure]
    if allowed.floats:
        notes.append(f"{allowed.floats} inside: rtol {allowed.rtol:.1g}, atol {allowed.atol:.1g}")
    if alone is False and check.same:
        notes.append("a row alone gives other numbers: rows mix, or the batch is on another axis")
    if alone is not False and whole is False:
        notes.append("the file mixes the rows of a batch, and here each row runs by itself")
    if name in theirs.wrong:
        notes.append(theirs.wrong[name])
    same = bool(check.same) and alone is not False and whole is not False and name not in theirs.wrong
    note = "; ".join(filter(None, notes))
    return replace(check, same=same, note=note, alone=alone, rtol=allowed.rtol, atol=allowed.atol)


def _compared(size: int, name: str, mine: np.ndarray, theirs: np.ndarray, allowed: Tolerance) -> Check:
    if mine.shape != theirs.shape:
        note = f"shape {list(mine.shape)}, theirs {list(theirs.shape)}"
        return Check(size, name, _NAN, _NAN, None, False, note)
    note = "" if mine.dtype == theirs.dtype else f"{mine.dtype}, theirs {theirs.dtype}"
    if not is_number(mine.dtype):
        return Check(size, name, _NAN, _NAN, None, allowed.close(mine, theirs) and not note, note)
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    large = np.abs(b) > ATOL
    relative = float((gap[large] / np.abs(b[large])).max()) if large.any() else 0.0
    vector = a.ndim > 1 and a.shape[-1] > 1 and mine.dtype.kind == "f" and a.size > 0
    agreement = float((a.argmax(-1) == b.argmax(-1)).mean()) if vector else None
    same = allowed.close(mine, theirs) and not note
    return Check(size, name, float(gap.max()) if gap.size else 0.0, relative, agreement, same, note)


def _close_in_file(
    mine: np.ndarray, theirs: np.ndarray, allowed: Tolerance, rows_apart: bool = False
) -> bool:
    """Whether memojax's numbers are those of the file.

    The file layout may have more axes of 1, and with `rows_apart` the rows may be on another axis.
    """
    if rows_apart and theirs.ndim == mine.ndim:
        found = [
            np.moveaxis(theirs, axis, 0) for axis in range(theirs.ndim) if theirs.shape[axis] == len(mine)
        ]
        return any(one.shape == mine.shape and allowed.close(mine, one) for one in found)
    return same_up_to_ones(mine.shape, theirs.shape) and allowed.close(mine.ravel(), theirs.ravel())
