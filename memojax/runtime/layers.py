"""Finds the model and the innermost layer inside a brain's wrappers."""

from __future__ import annotations

from ..errors import IncompatibleModelError
from ..inferer.base import Inferer, check_inferer
from ..inferer.layers import innermost
from ..wrapper.base import LayeredInferer, check_compatible


def is_ready(inferer: Inferer, count: int) -> bool:
    """Whether `inferer` would run `count` rows without a compile."""
    try:
        return inferer.is_ready(count)
    except Exception:
        return True  # The run raises the same error, where the caller sees it.


def innermost_layer(inferer: Inferer) -> LayeredInferer | None:
    """The wrapper layer next to the model; None without wrappers."""
    layer = None
    while isinstance(inferer, LayeredInferer):
        layer, inferer = inferer, inferer.inferer
    return layer


def on_accelerator(inferer: Inferer) -> bool:
    """Whether the model runs on another device than the CPU."""
    return getattr(getattr(innermost(inferer), "device", None), "platform", "cpu") != "cpu"


def check_swap(old: Inferer, new: Inferer) -> None:
    """Check that `new` can replace the model of `old`.

    Raises:
        IncompatibleModelError: it has other inputs or outputs, or wrappers of its own.
    """
    check_inferer(new)
    layer = innermost_layer(old)
    if layer is None:
        check_compatible(old, new)
        if old.api != new.api:
            raise IncompatibleModelError(
                f"the brain has {old.api}, but the new inferer has {new.api}: wrap it like the old one"
            )
        return
    if isinstance(new, LayeredInferer):
        raise IncompatibleModelError(
            f"the brain keeps its own {type(old).__name__} and the state of its agents: pass the inferer "
            "without wrappers"
        )
    check_compatible(layer.inferer, new)
