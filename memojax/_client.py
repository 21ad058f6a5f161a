"""The private CPU client: small calls run synchronously on it, and the user's own backend and flags stay as they are."""

from __future__ import annotations

import functools
import logging
import threading

import jax

log = logging.getLogger("memojax")
_lock = threading.Lock()


def cpu_device() -> jax.Device:
    """The device of memojax's own synchronous CPU client; the default CPU device (said once) where jaxlib has no such client."""
    with _lock:
        return _cpu_device()


def client_exists() -> bool:
    """Whether the client was made already, in this process or in the one that it was forked from."""
    return _cpu_device.cache_info().currsize > 0


@functools.cache
def _cpu_device() -> jax.Device:
    try:
        from jaxlib import xla_client

        return xla_client.make_cpu_client(asynchronous=False).devices()[0]
    except (ImportError, AttributeError, TypeError, RuntimeError) as cause:
        log.warning("no private CPU client in this jaxlib (%s): using JAX's own CPU backend, where small calls cost more", cause)
        return jax.devices("cpu")[0]
