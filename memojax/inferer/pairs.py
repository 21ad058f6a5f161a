"""The two forms in which callers pass agents with their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

States: TypeAlias = "Mapping[int, Mapping[str, Any]] | Iterable[tuple[int, Mapping[str, Any]]]"


def pairs_of(states: States) -> list[tuple[int, Mapping[str, Any]]]:
    """Agents with their states, in the order given."""
    pairs = states.items() if isinstance(states, Mapping) else states
    return cast("list[tuple[int, Mapping[str, Any]]]", list(pairs))
