"""Finds the model inside the wrappers of an inferer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def innermost(inferer: Any) -> Any:
    """The inferer that holds the plans, inside all wrappers."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    return inferer


def metadata_of(policy: Any) -> Mapping[str, str]:
    """The metadata in the model file of an inferer or `TypedModel`; empty without a file."""
    return getattr(innermost(policy), "metadata", {})
