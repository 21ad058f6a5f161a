"""Turns executables into bytes and back, for the plan cache on disk and for the helper process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import jax

from .plan import Compiled


def as_bytes(made: Compiled) -> bytes:
    """Serialize an executable of this process, and the program that stands for it."""
    from jax.experimental import serialize_executable

    return pickle.dumps((serialize_executable.serialize(made.executable), made.program))


def from_bytes(payload: bytes, devices: Sequence[jax.Device]) -> Compiled:
    """Load an executable on `devices`. The bytes must come from this user, or from this process's helper."""
    from jax.experimental import serialize_executable

    serialized, program = pickle.loads(payload)
    executable = serialize_executable.deserialize_and_load(
        *serialized, backend=devices[0].client, execution_devices=list(devices)
    )
    return Compiled(executable, program)


def accelerator_key(device: jax.Device) -> dict[str, Any]:
    """The part of a stored plan's key that names the kind of device and its driver; empty for CPUs."""
    if device.platform == "cpu":
        return {}
    return {"device": device.device_kind, "driver": str(device.client.platform_version)}
