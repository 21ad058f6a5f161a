"""Names as text: protobuf gives bytes for a name that is not UTF-8, and such a model is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ModelLoadError

_same = str.__str__
"""The quickest check in Python that a value is text: a graph may have hundreds of thousands of names."""


def string(value: Any) -> str:
    """`value`, if it is text.

    Raises:
        ModelLoadError: `value` is bytes, so the name is not UTF-8.
    """
    if isinstance(value, str):
        return value
    raise ModelLoadError(f"the name {value!r} in the model is not UTF-8: export the model again")


def strings(values: Iterable[Any]) -> tuple[str, ...]:
    """`values`, if all are text.

    Raises:
        ModelLoadError: a value is bytes, see `string`.
    """
    try:
        return tuple(map(_same, values))
    except TypeError:
        return tuple(map(string, values))
