"""Executables as bytes, and back, for the plan cache on disk and for the helper process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import jax


def as_bytes(compiled: Any) -> bytes:
    """An executable that was compiled here."""
    from jax.experimental import serialize_executable

    return pickle.dumps(serialize_executable.serialize(compiled))


def from_bytes(payload: bytes, devices: Sequence[jax.Device]) -> Any:
    """An executable of those that this user, or this process's helper, serialized; it runs on `devices`."""
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(
        *pickle.loads(payload), backend=devices[0].client, execution_devices=list(devices)
    )


def accelerator_key(device: jax.Device) -> dict[str, Any]:
    """What executables for this kind of device depend on beside memojax, JAX and the CPU."""
    if device.platform == "cpu":
        return {}
    return {"device": device.device_kind, "driver": str(device.client.platform_version)}
