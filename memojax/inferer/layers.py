"""What lies beneath the wrappers of an inferer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def innermost(inferer: Any) -> Any:
    """The inferer that holds the plans, beneath all wrappers."""
    while hasattr(inferer, "inferer"):
        inferer = inferer.inferer
    return inferer


def metadata_of(policy: Any) -> Mapping[str, str]:
    """What the model file of an inferer or a `TypedModel` says about itself; nothing where there is no
    file."""
    return getattr(innermost(policy), "metadata", {})
