"""Turns executables into bytes and back, for the plan cache on disk and for the helper process.

Large weights of a program are left out and named by their contents, because all sizes of a model share them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import numpy as np

from ..kernels.direct import SHARED_BYTES, digest_of, shared
from ..xla.pair import pair
from .plan import Compiled

Find = Callable[[str, "np.ndarray | None"], np.ndarray]
"""Finds large weights by their digest; the second argument is the array if this process holds it."""


def as_bytes(made: Compiled) -> tuple[bytes, dict[str, np.ndarray]]:
    """Serialize an executable of this process, and the program that stands for it.

    The arrays are its large weights, by digest.
    """
    from jax.experimental import serialize_executable

    file = io.BytesIO()
    pickler = _Pickler(file)
    halves = () if made.beside is None else (True,)
    pickler.dump((serialize_executable.serialize(made.executable), made.program, *halves))
    return file.getvalue(), pickler.arrays


def from_bytes(payload: bytes, devices: Sequence[jax.Device], find: Find | None = None) -> Compiled:
    """Load an executable on `devices`. The bytes must come from this user, or from this process's helper.

    An executable for half of the rows is loaded on both devices of the pair.

    Raises:
        LookupError: `find` has no such weights, or this process has no pair.
    """
    serialized, program, *halves = _Unpickler(payload, find).load()
    if not halves:
        return Compiled(_loaded(serialized, devices), program)
    both = pair()
    if both is None:
        raise LookupError("this plan runs on two cores")
    return Compiled(_loaded(serialized, [both.here]), program, _loaded(serialized, [both.beside]))


def again_on(executable: Any, device: jax.Device) -> Any:
    """The same executable on another device of this process."""
    from jax.experimental import serialize_executable

    return _loaded(serialize_executable.serialize(executable), [device])


def _loaded(serialized: Any, devices: Sequence[jax.Device]) -> Any:
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(
        *serialized, backend=devices[0].client, execution_devices=list(devices)
    )


@final
class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.arrays: dict[str, np.ndarray] = {}

    def persistent_id(self, obj: Any) -> str | None:
        if type(obj) is not np.ndarray or obj.nbytes < SHARED_BYTES:
            return None
        digest = digest_of(obj)
        self.arrays[digest] = obj
        return digest


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, payload: bytes, find: Find | None):
        super().__init__(io.BytesIO(payload))
        self._find = find

    def persistent_load(self, pid: Any) -> np.ndarray:
        held = shared(pid)
        if self._find is not None:
            return shared(pid, self._find(pid, held))
        if held is None:
            raise LookupError("weights of this plan are stored apart from it")
        return held


def accelerator_key(device: jax.Device) -> dict[str, Any]:
    """The part of a stored plan's key that names the kind of device and its driver; empty for CPUs."""
    if device.platform == "cpu":
        return {}
    return {"device": device.device_kind, "driver": str(device.client.platform_version)}
