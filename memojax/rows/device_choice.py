"""The device on which a call with `jax.Array`s runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer

from ..errors import DeviceError, InputError
from ..model.signature import TensorSpec

log: logging.Logger = logging.getLogger("memojax")


class DeviceChoice:
    """Chooses the device of each call, and warns once about arrays that it moves; each inferer has its own.

    A call runs on the device of its first committed `jax.Array`. Committed arrays on other devices are moved
    there with a warning, or refused if `strict`. NumPy arrays and uncommitted arrays are moved without a
    warning.
    """

    def __init__(self, strict: bool = False, device: jax.Device | None = None):
        """The rule of one inferer.

        Args:
            strict: whether to refuse arrays that would be moved, and arrays on another device than `device`.
            device: the accelerator for which the inferer was made, if any.
        """
        self.strict = strict
        self._device = device
        self._warned = False

    def choose(self, specs: Sequence[TensorSpec], given: Sequence[Any]) -> jax.Device:
        """The device for the arrays `given`; at least one of them is a `jax.Array`.

        Raises:
            InputError: an array is a tracer: JAX cannot call an executable while it traces.
            DeviceError: with `strict`, the arrays are on several devices or not on the inferer's.
        """
        arrays = [
            (spec, value) for spec, value in zip(specs, given, strict=True) if isinstance(value, jax.Array)
        ]
        if traced := [spec.name for spec, value in arrays if isinstance(value, Tracer)]:
            raise InputError(
                f"input {traced[0]!r} is being traced (jit, vmap, grad, scan), but an inferer runs "
                "executables: in a traced function, call fn of fn, params = memojax.to_jax(policy)"
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
                f"input {arrays[0][0].name!r} is on {_name(device)}, but this inferer was made for "
                f"{_name(self._device)}, and strict=True moves nothing: move it with jax.device_put(x, "
                "device)"
            )
        return device

    def _say(self, moved: Sequence[tuple[TensorSpec, jax.Array]], device: jax.Device) -> None:
        listing = ", ".join(
            f"{spec.name!r} on {', '.join(sorted(map(_name, value.devices())))}" for spec, value in moved
        )
        if self.strict:
            raise DeviceError(
                f"the inputs of a call must be on one device: this call runs on {_name(device)}, but "
                f"{listing}, and strict=True moves nothing: move them with jax.device_put(x, device)"
            )
        if not self._warned:
            self._warned = True
            log.warning(
                "inputs are on several devices: %s; every call moves them to %s (this warning comes once; "
                "strict=True refuses such calls)",
                listing,
                _name(device),
            )


def is_committed(value: jax.Array) -> bool:
    """Whether its owner placed it on a device explicitly, so JAX itself would not move it."""
    return bool(getattr(value, "committed", True))


def _name(device: jax.Device) -> str:
    return f"{device.platform}:{device.id}"
