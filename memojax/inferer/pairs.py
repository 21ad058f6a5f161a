"""The two forms in which callers pass agents with their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

States: TypeAlias = "Mapping[int, Mapping[str, Any]] | Iterable[tuple[int, Mapping[str, Any]]]"


def pairs_of(states: States) -> list[tuple[int, Mapping[str, Any]]]:
    """Agents with their states, in the order given."""
    # The usual types first, because the check for a mapping takes as long as a push.
    known = type(states) in (list, dict)
    mapped = type(states) is dict if known else isinstance(states, Mapping)
    pairs = cast("Mapping[int, Mapping[str, Any]]", states).items() if mapped else states
    return cast("list[tuple[int, Mapping[str, Any]]]", list(pairs))
