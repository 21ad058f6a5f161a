"""memojax's own CPU client: it runs small calls synchronously and leaves the user's backend and flags
alone."""

from __future__ import annotations

import functools
import logging
import threading

import jax

from ..errors import DeviceError

log: logging.Logger = logging.getLogger("memojax")
_lock = threading.Lock()


def cpu_device() -> jax.Device:
    """The device of memojax's own synchronous CPU client; JAX's CPU device, with a warning, if jaxlib has no
    such client."""
    with _lock:
        return _cpu_device()


def resolve_device(device: str | jax.Device | None) -> jax.Device:
    """Turn a user's word for a device into a `jax.Device`.

    None and "cpu" mean memojax's own CPU client; "gpu", "gpu:1" and "tpu" mean JAX's devices.

    Raises:
        DeviceError: no such device; the message lists the available ones.
    """
    if device is None or device == "cpu":
        return cpu_device()
    if isinstance(device, jax.Device):
        return device
    if not isinstance(device, str):
        raise DeviceError(f"a device is 'cpu', 'gpu', 'gpu:1', 'tpu' or a jax.Device, not {device!r}")
    kind, _, index = device.partition(":")
    try:
        place = int(index or 0)
        if place < 0:
            raise IndexError(place)
        return jax.devices(kind)[place]
    except (RuntimeError, ValueError, IndexError) as cause:
        have = ", ".join(f"{d.platform}:{d.id}" for d in jax.devices())
        raise DeviceError(
            f"no device {device!r}: JAX has {have} here. For an NVIDIA GPU install memojax[cuda13]"
        ) from cause


def device_name(device: jax.Device) -> str:
    """A name that `resolve_device` understands, also in another process."""
    return "cpu" if device == cpu_device() else f"{device.platform}:{device.id}"


def client_exists() -> bool:
    """Whether the client exists, made by this process or by the one that forked it."""
    return _cpu_device.cache_info().currsize > 0


@functools.cache
def _cpu_device() -> jax.Device:
    try:
        from jaxlib import xla_client

        return xla_client.make_cpu_client(asynchronous=False).devices()[0]
    except (ImportError, AttributeError, TypeError, RuntimeError) as cause:
        log.warning(
            "no private CPU client in this jaxlib (%s): using JAX's own CPU backend, where small calls "
            "cost more",
            cause,
        )
        return jax.devices("cpu")[0]
