"""Chooses the devices that rows are spread over, and checks that a model allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import DeviceError, DimensionError, RowsMixError
from ..lowering.typed_model import TypedModel
from ..xla.cpu_client import resolve_device
from .revival import is_revived


def check_shardable(typed: TypedModel) -> None:
    """Check that several devices can each compute a part of the rows of `typed`.

    Raises:
        DimensionError, RowsMixError: they cannot; the message says why.
    """
    name = typed.name or "this model"
    if typed.is_open:
        raise DimensionError(
            f"{name} has free dimensions ({', '.join(typed.api.free)}): load it with dims= to spread its "
            "rows over devices"
        )
    if typed.only_rows:
        raise DimensionError(
            f"{name} runs exactly {typed.only_rows} row(s) at a time, so its rows cannot be spread over "
            "devices: use MemoizingDynamicInferer on one device"
        )
    if typed.random:
        raise RowsMixError(
            f"{name} draws random numbers for the whole batch, so devices would repeat each other's draws: "
            "use MemoizingDynamicInferer on one device"
        )
    mixing = () if is_revived() else typed.mixing_outputs()
    if mixing:
        raise RowsMixError(
            f"rows over devices must not influence each other, but in {name} they do (output "
            f"{', '.join(map(repr, mixing))}): use MemoizingDynamicInferer on one device"
        )


def rows_sharding(devices: str | Sequence[str | jax.Device], sharding: NamedSharding | None) -> NamedSharding:
    """The sharding of rows, from `devices=` or `sharding=`.

    Raises:
        DeviceError: a device does not exist, or the sharding is of another kind.
    """
    if sharding is not None:
        if devices != "all":
            raise DeviceError("sharding= names the devices already: leave devices= out")
        return _checked_sharding(sharding)
    if devices == "all":
        chosen = jax.devices()
    elif isinstance(devices, str):
        raise DeviceError(f"devices= is 'all' or a list such as ['gpu:0', 'gpu:1'], not {devices!r}")
    else:
        chosen = [shared_client(device) for device in devices]
    if not chosen or len(set(chosen)) < len(chosen):
        raise DeviceError(f"devices= needs one or more different devices, got {devices!r}")
    if len({device.platform for device in chosen}) > 1:
        raise DeviceError(f"devices= needs devices of one kind, got {devices!r}")
    return NamedSharding(Mesh(np.array(chosen), ("batch",)), PartitionSpec("batch"))


def _checked_sharding(sharding: Any) -> NamedSharding:
    if not isinstance(sharding, NamedSharding):
        raise DeviceError(
            f"sharding= is NamedSharding(mesh, PartitionSpec('batch')), not {type(sharding).__name__}"
        )
    first = sharding.spec[0] if len(sharding.spec) else None
    axes = first if isinstance(first, tuple) else (first,)
    names = sharding.mesh.axis_names
    if set(axes) != set(names) or any(entry is not None for entry in sharding.spec[1:]):
        raise DeviceError(
            "sharding= must spread the first axis over every axis of the mesh "
            f"({', '.join(map(str, names))}) and nothing else; got {sharding.spec}, expected "
            f"PartitionSpec({first_of(names)})"
        )
    return NamedSharding(sharding.mesh, PartitionSpec(first))


def first_of(names: Sequence[Any]) -> str:
    """The axes of a mesh as the first entry of a `PartitionSpec`."""
    return repr(names[0]) if len(names) == 1 else repr(tuple(names))


def shared_client(device: str | jax.Device) -> jax.Device:
    """A device of JAX's own clients, since only devices of one client can share a mesh."""
    # The name "cpu" means memojax's own client, which has a single device; "cpu:0" is JAX's first device.
    return resolve_device("cpu:0" if device == "cpu" else device)


def names_of(mesh: Any) -> list[str]:
    """Names of a mesh's devices for `shared_client`, also in another process."""
    return [f"{device.platform}:{jax.devices(device.platform).index(device)}" for device in mesh.devices.flat]
