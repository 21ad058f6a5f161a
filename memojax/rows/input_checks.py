"""The checks of an input's name and kind of number, which everything that takes inputs shares."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import InputDtypeError, InputShapeError, MissingInputError, UnknownInputError
from ..model.signature import TensorSpec
from ..model.tensor import overflow


def check_names(
    expected: Iterable[str],
    given: Collection[str],
    where: str = "the model",
    optional: Collection[str] = (),
) -> None:
    """Check that every name in `expected` is given, but for those in `optional`, and no other.

    Raises:
        UnknownInputError, MissingInputError: it is not; the message says `where`.
    """
    names = list(expected)
    if unknown := [name for name in given if name not in names]:
        raise UnknownInputError(unknown, names, where)
    if missing := [name for name in names if name not in given and name not in optional]:
        raise MissingInputError(missing, given, where)


def can_cast(given: np.dtype, wanted: np.dtype) -> bool:
    """Whether values may be cast silently.

    They may be cast to another width of their kind, and from integers and booleans to floats.
    """
    if given == np.bool_ or wanted == np.bool_ or given.kind in "OSUMm":
        return given == wanted or (given == np.bool_ and wanted.kind in "iuf")
    if "V" in (given.kind, wanted.kind):
        return given.kind != "c" and (
            jnp.issubdtype(wanted, jnp.floating) or not jnp.issubdtype(given, jnp.floating)
        )
    if given.kind in "iu" and wanted.kind in "iu":
        return True
    return np.can_cast(given, wanted, "same_kind")


def check_kind(name: str, given: Any, wanted: np.dtype) -> None:
    """Check that values of the dtype `given` may be cast to `wanted`.

    Raises:
        InputDtypeError: they hold another kind of number.
    """
    if not can_cast(np.dtype(given), wanted):
        raise InputDtypeError(
            f"input {name!r} is {given}, the model takes {wanted}: cast it first if you mean to"
        )


def check_fits(name: str, given: Any, wanted: np.dtype) -> None:
    """Check that `wanted` can hold every whole number of an array, since NumPy would wrap around.

    Raises:
        InputDtypeError: a number does not fit; the message names it.
    """
    if given.dtype.kind in "iu" and (outside := overflow(np.asarray(given), wanted)) is not None:
        raise InputDtypeError(f"input {name!r} takes {wanted}, which cannot hold {outside}: clip it")


def as_kind(name: str, array: np.ndarray, wanted: np.dtype) -> np.ndarray:
    """`array` in the dtype `wanted`: the width may change, the kind (float, integer, text) may not.

    Raises:
        InputDtypeError: another kind of number, or a whole number that does not fit.
    """
    if array.dtype == wanted:
        return array
    if wanted.kind == "O" and array.dtype.kind in "US":  # ONNX's strings
        return array.astype(wanted)
    check_kind(name, array.dtype, wanted)
    check_fits(name, array, wanted)
    return array.astype(wanted)


def as_dtype(spec: TensorSpec, given: Any) -> np.ndarray:
    """`given` as a C-contiguous array of the spec's dtype; see `as_kind`.

    Raises:
        InputDtypeError: `given` holds another kind of number, or a whole number that does not fit.
        InputShapeError: `given` is not rectangular.
    """
    try:
        array = np.asarray(given)
    except ValueError as cause:
        raise InputShapeError(f"input {spec.name!r} is not a rectangular array: {cause}") from cause
    if array.dtype != spec.dtype:
        array = as_kind(spec.name, array, spec.dtype)
    return np.ascontiguousarray(array) if array.ndim else array
