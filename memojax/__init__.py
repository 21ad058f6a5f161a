"""ONNX policies as memoized XLA executables.

`load` gives an inferer for any number of agents, `to_jax` a pure function, `evaluate` plays episodes. Four
inferers differ in how they use batch sizes: `BasicInferer`, `FixedBatchInferer`, `MemoizingDynamicInferer`
(which `load` gives) and `DynamicInferer`.
"""

import importlib as _importlib
import importlib.util as _importlib_util
from typing import Any as _Any

import lazy_loader as _lazy_loader

from .xla import quiet_start as _quiet_start  # noqa: F401  (before JAX, whose import takes a second)

__version__ = "0.1.0"

# The stub beside this file lists the public names. Nothing is imported before its first use, which keeps
# `memojax --help` quick.
_public, _, __all__ = _lazy_loader.attach_stub(__name__, __file__)
_MOVED = {"disable_loop_unrolling": "memojax.xla.flags"}
"""Names of 0.1.0 that have another home now."""


def __getattr__(name: str) -> _Any:
    if name in __all__:
        return _public(name)
    if name in _MOVED:
        import warnings

        message = f"memojax.{name} is deprecated: import it from {_MOVED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(_importlib.import_module(_MOVED[name]), name)
    if not name.startswith("_") and _importlib_util.find_spec(f"{__name__}.{name}"):
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names only: importing a submodule makes it an attribute of the package, too."""
    return [*__all__, "__version__"]
