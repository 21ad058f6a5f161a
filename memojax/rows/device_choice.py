"""On which device a call runs whose inputs are `jax.Array`s."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer

from ..errors import DeviceError, InputError
from ..model.signature import TensorSpec

log = logging.getLogger("memojax")


class DeviceChoice:
    """Chooses the device, and says once what had to be moved; each inferer has its own.

    A call runs where its `jax.Array`s lie. Those that lie elsewhere than the first one that is committed to a device are moved there:
    with a warning, or not at all if `strict`. NumPy arrays and arrays that JAX is free to place are moved without a word.
    """

    def __init__(self, strict: bool = False, device: jax.Device | None = None):
        """With `strict`, refuse what would be moved, and what does not lie on `device`, if one is given."""
        self.strict = strict
        self._device = device
        self._warned = False

    def choose(self, specs: Sequence[TensorSpec], given: Sequence[Any]) -> jax.Device:
        """The device for the arrays `given`, at least one of which is a `jax.Array`.

        Raises:
            InputError: one is a tracer: an executable cannot be called while JAX traces.
            DeviceError: they do not lie on one device, or not on the one that was asked for, and this is strict.
        """
        arrays = [
            (spec, value) for spec, value in zip(specs, given, strict=True) if isinstance(value, jax.Array)
        ]
        if traced := [spec.name for spec, value in arrays if isinstance(value, Tracer)]:
            raise InputError(
                f"input {traced[0]!r} is being traced (jit, vmap, grad, scan), but an inferer runs executables: inside, call the function of "
                "fn, params = memojax.to_jax(policy)"
            )
        anchor = next((value for _, value in arrays if is_committed(value)), arrays[0][1])
        device = min(anchor.devices(), key=lambda one: one.id)
        moved = [
            (spec, value)
            for spec, value in arrays
            if (devices := value.devices()) != {device} and (is_committed(value) or len(devices) > 1)
        ]
        if moved:
            self._say(moved, device)
        if self.strict and self._device is not None and device != self._device:
            raise DeviceError(
                f"input {arrays[0][0].name!r} lies on {_name(device)}, this inferer was made for {_name(self._device)}, and strict=True moves "
                f"nothing: jax.device_put(x, device) puts it there"
            )
        return device

    def _say(self, moved: Sequence[tuple[TensorSpec, jax.Array]], device: jax.Device) -> None:
        listing = ", ".join(
            f"{spec.name!r} on {', '.join(sorted(map(_name, value.devices())))}" for spec, value in moved
        )
        if self.strict:
            raise DeviceError(
                f"the inputs of a call must lie on one device: this one runs on {_name(device)}, but {listing}, and strict=True moves nothing: "
                "jax.device_put(x, device) puts them together"
            )
        if not self._warned:
            self._warned = True
            log.warning(
                "inputs lie on several devices: %s; they are moved to %s, with every call (said once; strict=True refuses)",
                listing,
                _name(device),
            )


def is_committed(value: jax.Array) -> bool:
    """Whether its owner said where it lies, so that JAX itself would not move it."""
    return bool(getattr(value, "committed", True))


def _name(device: jax.Device) -> str:
    return f"{device.platform}:{device.id}"
