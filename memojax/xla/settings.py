"""JAX's settings while memojax traces, compiles and moves data, so the user's settings change no answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from .host_calls import failure_behind

_Setting = tuple[str, Any, Callable[[Any], Any]]

_OPERATORS: tuple[_Setting, ...] = (
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
    ("jax_debug_nans", False, jax.debug_nans),
    ("jax_debug_infs", False, jax.debug_infs),
    ("jax_transfer_guard_host_to_device", "allow", jax.transfer_guard_host_to_device),
    ("jax_transfer_guard_device_to_host", "allow", jax.transfer_guard_device_to_host),
    ("jax_transfer_guard_device_to_device", "allow", jax.transfer_guard_device_to_device),
)
"""Settings that operators need in every trace: they broadcast, mask with infinities, and compute NaN."""

_PROGRAMS: tuple[_Setting, ...] = (
    *_OPERATORS,
    ("jax_enable_x64", True, jax.enable_x64),
    ("jax_disable_jit", False, jax.disable_jit),
    ("jax_threefry_partitionable", True, jax.threefry_partitionable),
    ("jax_legacy_prng_key", "allow", jax.legacy_prng_key),
)
"""Settings under which memojax's own functions are traced, compiled and called."""

_PRECISION = "jax_default_matmul_precision"
_AS_GUARDED = {"allow": (None, "allow")}
"""Wanted value -> values that mean the same."""


def own_settings(precision: str | None = None) -> Any:
    """A context for memojax's own functions: x64, jit, no checks by the user, and this precision of products.

    Entering takes a few microseconds if the user has changed no setting. A plan hit does not enter it.
    """
    return _within(_PROGRAMS, precision)


def operator_settings() -> Any:
    """A context for operators in the user's own trace.

    The user's settings of x64, jit, devices and the precision of products stay.
    """
    return _within(_OPERATORS, getattr(jax.config, _PRECISION))


@contextmanager
def _within(settings: tuple[_Setting, ...], precision: str | None) -> Iterator[None]:
    with ExitStack() as scope:
        for name, wanted, context in settings:
            now = getattr(jax.config, name)
            if now != wanted and now not in _AS_GUARDED.get(wanted, ()):
                scope.enter_context(context(wanted))
        if getattr(jax.config, _PRECISION) != precision:
            scope.enter_context(jax.default_matmul_precision(precision))
        yield


def with_own_settings(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` under `own_settings`; an exception of a host callback is raised as it was."""

    def settled(*args: Any) -> Any:
        try:
            with own_settings():
                return call(*args)
        except Exception as error:
            cause = failure_behind(error)
            if cause is error:
                raise
            raise cause from None

    return settled
