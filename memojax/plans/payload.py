"""Executables as bytes, for the cache on disk and from the compile helper."""

from __future__ import annotations

import pickle
from typing import Any

import jax

from ..kernels.direct import Direct


def dumped(compiled: Any) -> bytes:
    """The executable of a plan as bytes, which are a pickle."""
    if isinstance(compiled, Direct):
        return pickle.dumps(compiled)
    from jax.experimental import serialize_executable

    return pickle.dumps(serialize_executable.serialize(compiled))


def loaded(payload: bytes, device: jax.Device) -> Any:
    """An executable for `device` of those that this user, or this process's helper, dumped."""
    given = pickle.loads(payload)
    if isinstance(given, Direct):
        return given
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(
        *given, backend=device.client, execution_devices=[device]
    )
