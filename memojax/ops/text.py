"""Operators on strings, which run on the host: XLA has no strings, and NumPy holds them as object arrays."""

from __future__ import annotations

import numpy as np

from .._types import GraphValue
from ._common import checked_shape
from .regex import full_match
from .registry import op


def _strings(items: list[str], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@op("StringConcat", since=20, host=("X", "Y"))
def string_concat(X: GraphValue, Y: GraphValue) -> GraphValue:
    """Join strings pairwise, with broadcasting. https://onnx.ai/onnx/operators/onnx__StringConcat.html"""
    return np.asarray(np.add(X, Y), object)


@op("StringSplit", since=20, host=("X",))
def string_split(
    X: GraphValue, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[GraphValue, GraphValue]:
    """Pieces of each string along a new last axis, padded with "", and the number of pieces.

    https://onnx.ai/onnx/operators/onnx__StringSplit.html
    """
    pieces = [
        text.split(delimiter or None, -1 if maxsplit is None else maxsplit) if text else []
        for text in X.ravel()
    ]
    longest = max(map(len, pieces), default=0)
    checked_shape((*X.shape, longest), 64)
    padded = [piece for row in pieces for piece in (*row, *[""] * (longest - len(row)))]
    return _strings(padded, (*X.shape, longest)), np.array([len(row) for row in pieces], np.int64).reshape(
        X.shape
    )


@op("RegexFullMatch", since=20, host=("X",))
def regex_full_match(X: GraphValue, *, pattern: str) -> GraphValue:
    """Whether the whole string matches. https://onnx.ai/onnx/operators/onnx__RegexFullMatch.html

    google-re2 matches if it is installed, otherwise Python's `re`, if the pattern cannot take long there.
    Patterns mean the same to both, except for rare escapes.
    """
    matches = full_match(pattern)
    return np.array([matches(text) for text in X.ravel()], bool).reshape(X.shape)


@op("StringNormalizer", since=10, host=("X",))
def string_normalizer(
    X: GraphValue,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    stopwords: tuple[str, ...] = (),
    locale: str | None = None,
) -> GraphValue:
    """Strings without the stop words, in lower or upper case; case follows Unicode, whatever `locale` is.

    https://onnx.ai/onnx/operators/onnx__StringNormalizer.html
    """
    if X.ndim > 2 or (X.ndim == 2 and X.shape[0] != 1):
        raise ValueError(f"its input has shape {list(X.shape)}, expected [C] or [1, C]")
    change = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}[case_change_action]
    fold = str if is_case_sensitive else str.lower
    stop = set(map(fold, stopwords))
    kept = [change(text) for text in X.ravel() if fold(text) not in stop] or [""]
    return _strings(kept, (*X.shape[:-1], len(kept)))
