"""Turns executables into bytes and back, for the plan cache on disk and for the helper process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import jax

from ..kernels.direct import Direct


def as_bytes(compiled: Any) -> bytes:
    """Serialize an executable of this process, or the program that is one."""
    if isinstance(compiled, Direct):
        return pickle.dumps(compiled)
    from jax.experimental import serialize_executable

    return pickle.dumps(serialize_executable.serialize(compiled))


def from_bytes(payload: bytes, devices: Sequence[jax.Device]) -> Any:
    """Load an executable on `devices`. The bytes must come from this user, or from this process's helper."""
    given = pickle.loads(payload)
    if isinstance(given, Direct):
        return given
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(
        *given, backend=devices[0].client, execution_devices=list(devices)
    )


def accelerator_key(device: jax.Device) -> dict[str, Any]:
    """The part of a stored plan's key that names the kind of device and its driver; empty for CPUs."""
    if device.platform == "cpu":
        return {}
    return {"device": device.device_kind, "driver": str(device.client.platform_version)}
