"""memojax's own CPU client, which runs small calls synchronously, and leaves JAX's backends alone."""

from __future__ import annotations

import functools
import logging
import threading

import jax

from ..errors import DeviceError

log: logging.Logger = logging.getLogger("memojax")
_lock = threading.Lock()


def cpu_device() -> jax.Device:
    """The device of memojax's own CPU client; JAX's CPU device, with a warning, if there is none."""
    with _lock:
        return _cpu_device()


def resolve_device(device: str | jax.Device | None) -> jax.Device:
    """A `device=` option as a `jax.Device`.

    None and "cpu" mean memojax's own CPU client; "gpu", "gpu:1" and "tpu" mean JAX's devices.

    Raises:
        DeviceError: JAX has no such device; the message lists the available ones.
    """
    if device is None or device == "cpu":
        return cpu_device()
    if isinstance(device, jax.Device):
        return device
    if not isinstance(device, str):
        raise DeviceError(f"device is {device!r}, expected 'cpu', 'gpu', 'gpu:1', 'tpu' or a jax.Device")
    kind, _, index = device.partition(":")
    try:
        place = int(index or 0)
        if place < 0:
            raise IndexError(place)
        return jax.devices(kind)[place]
    except (RuntimeError, ValueError, IndexError) as cause:
        have = ", ".join(f"{d.platform}:{d.id}" for d in jax.devices())
        raise DeviceError(
            f"there is no device {device!r}: JAX has {have} here. For an NVIDIA GPU install memojax[cuda13]"
        ) from cause


def device_name(device: jax.Device) -> str:
    """A name of `device` for `resolve_device`, which other processes understand as well."""
    return "cpu" if device == cpu_device() else f"{device.platform}:{device.id}"


def client_exists() -> bool:
    """Whether this process, or the one that forked it, has made the client."""
    return _cpu_device.cache_info().currsize > 0


@functools.cache
def _cpu_device() -> jax.Device:
    try:
        from jaxlib import xla_client

        return xla_client.make_cpu_client(asynchronous=False).devices()[0]
    except (ImportError, AttributeError, TypeError, RuntimeError) as cause:
        log.warning(
            "this jaxlib has no private CPU client (%s): memojax uses JAX's CPU backend, where small calls "
            "take longer",
            cause,
        )
        return jax.devices("cpu")[0]
