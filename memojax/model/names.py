"""Names as text. protobuf gives bytes for those that are not UTF-8, and the rest of this package takes text
alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ModelLoadError

_same = str.__str__
"""The quickest check in Python that something is text: a graph has hundreds of thousands of names."""


def string(value: Any) -> str:
    """`value`, if it is text.

    Raises:
        ModelLoadError: bytes, of a name that is not UTF-8.
    """
    if isinstance(value, str):
        return value
    raise ModelLoadError(f"the name {value!r} in the model is not UTF-8")


def strings(values: Iterable[Any]) -> tuple[str, ...]:
    """`values`, if all are text.

    Raises:
        ModelLoadError: see `string`.
    """
    try:
        return tuple(map(_same, values))
    except TypeError:
        return tuple(map(string, values))
