"""Is it the same policy? memojax against another runtime, over several batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .._types import Source
from ..errors import IncompatibleModelError, InputError
from ..inferer.base import Inferer
from ..inferer.memoizing import MemoizingDynamicInferer
from ..loading import typed_model
from ..lowering.typed_model import TypedModel, random_rows
from ..plans.batch_sizes import checked_size
from .runtimes import CONTENDERS, Contender

RTOL, ATOL = 1e-3, 1e-5


@dataclass(frozen=True)
class Check:
    """One output at one batch size, on random inputs.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: largest difference relative to the other runtime's value, where that is above `ATOL`.
        argmax_agreement: share of rows with the same largest element; None for an output that is not a vector of numbers.
        same: whether the output is within `RTOL` and `ATOL`, in the same shape and dtype; None where it is not compared.
        note: why not, or what differs beside the numbers.
    """

    size: int
    output: str
    max_abs: float
    max_rel: float
    argmax_agreement: float | None
    same: bool | None
    note: str = ""


def verify(
    source: Source | TypedModel,
    sizes: Iterable[int] = (1, 5, 32),
    *,
    against: str = "onnxruntime",
    reference: Source | TypedModel | None = None,
    seed: int = 0,
) -> list[Check]:
    """Compare every output at every size with another runtime; outputs that are drawn at random are told from the others and left out.

    >>> import memojax
    >>> all(check.same for check in memojax.verify(memojax.policies.bundled("acrobot_ppo"), [1, 3]))
    True

    Args:
        against: "onnxruntime" or "tract".
        reference: the ONNX model that the other runtime runs, for a policy that has none inside (an exported one, a function).
        seed: of the random inputs.

    Raises:
        IncompatibleModelError: `reference` has other inputs or outputs.
        MissingPackageError: the other runtime is not installed.
        ContenderError: it cannot run the model.
    """
    if against not in CONTENDERS:
        raise InputError(f"no runtime is called {against!r}: there are {', '.join(CONTENDERS)}")
    typed = typed_model(source)
    wanted = [checked_size(size) for size in sizes]
    inferer: Inferer = MemoizingDynamicInferer.from_typed(typed)
    other = contender(against, typed, reference)
    rng = np.random.default_rng(seed)
    drawn: set[str] = set()
    checks: list[Check] = []
    for size in wanted:
        rows = {spec.name: random_rows(rng, size, spec) for spec in typed.api.inputs}
        mine, theirs = inferer.infer_arrays(rows), other(rows)
        if typed.random and not drawn:
            again = [inferer.infer_arrays(rows) for _ in range(_DRAWS)]
            drawn = {
                name for name, value in mine.items() if any((rerun[name] != value).any() for rerun in again)
            }
        checks += [
            _check(size, name, np.asarray(mine[name]), np.asarray(theirs[name]), name in drawn)
            for name in mine
        ]
    return checks


def contender(name: str, typed: TypedModel, reference: Source | TypedModel | None = None) -> Contender:
    """Another runtime with the ONNX file of `typed`, or with that of `reference`, which takes and gives the same.

    Raises:
        IncompatibleModelError: it does not.
        MissingPackageError, ContenderError: see `verify`.
    """
    if reference is None:
        return CONTENDERS[name](typed)
    theirs = typed_model(reference)
    for side, mine, other in (
        ("input", typed.api.inputs, theirs.api.inputs),
        ("output", typed.api.outputs, theirs.api.outputs),
    ):
        if {spec.name: spec for spec in mine} != {spec.name: spec for spec in other}:
            have, want = (", ".join(map(str, specs)) for specs in (other, mine))
            raise IncompatibleModelError(
                f"the reference has the {side}s {have}, the policy {want}: give the file that it was made from"
            )
    return CONTENDERS[name](theirs)


_DRAWS = 16
"""Runs that show which outputs are random; an output that never differs in so many is not."""


def _check(size: int, name: str, mine: np.ndarray, theirs: np.ndarray, drawn: bool) -> Check:
    if drawn:
        return Check(size, name, float("nan"), float("nan"), None, None, "drawn at random")
    if mine.shape != theirs.shape:
        return Check(
            size,
            name,
            float("nan"),
            float("nan"),
            None,
            False,
            f"shape {list(mine.shape)}, theirs {list(theirs.shape)}",
        )
    note = "" if mine.dtype == theirs.dtype else f"{mine.dtype}, theirs {theirs.dtype}"
    if mine.dtype.kind not in "fiub":
        return Check(
            size, name, float("nan"), float("nan"), None, bool((mine == theirs).all()) and not note, note
        )
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    large = np.abs(b) > ATOL
    relative = float((gap[large] / np.abs(b[large])).max()) if large.any() else 0.0
    vector = a.ndim > 1 and a.shape[-1] > 1 and mine.dtype.kind == "f" and a.size > 0
    agreement = float((a.argmax(-1) == b.argmax(-1)).mean()) if vector else None
    same = bool(np.allclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True)) and not note
    return Check(size, name, float(gap.max()) if gap.size else 0.0, relative, agreement, same, note)
