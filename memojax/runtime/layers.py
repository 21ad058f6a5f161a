"""A brain's inferer seen through its wrappers."""

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
        return True  # the run will raise the same error, and its caller will see it


def innermost_layer(inferer: Inferer) -> LayeredInferer | None:
    """The layer of wrappers next to the model; None without wrappers."""
    layer = None
    while isinstance(inferer, LayeredInferer):
        layer, inferer = inferer, inferer.inferer
    return layer


def on_accelerator(inferer: Inferer) -> bool:
    """Whether the model runs on another device than the CPU."""
    return getattr(getattr(innermost(inferer), "device", None), "platform", "cpu") != "cpu"


def check_swap(old: Inferer, new: Inferer) -> None:
    """See that `new` can take the place of the model of `old`.

    Raises:
        IncompatibleModelError: it takes or gives something else, or has wrappers of its own.
    """
    check_inferer(new)
    layer = innermost_layer(old)
    if layer is None:
        check_compatible(old, new)
        if old.api != new.api:
            raise IncompatibleModelError(
                f"the brain takes and gives {old.api}, the new inferer {new.api}: wrap it as the old one is"
            )
        return
    if isinstance(new, LayeredInferer):
        raise IncompatibleModelError(
            f"the brain keeps its own {type(old).__name__} and the state of its agents: give the inferer "
            "without wrappers"
        )
    check_compatible(layer.inferer, new)
