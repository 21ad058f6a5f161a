"""Check a caller's batch against a model's inputs: names, kinds of numbers, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array
from ..errors import InputError, InputShapeError
from ..model.signature import TensorSpec
from ..xla.settings import operator_settings, own_settings
from ..xla.views import has_views
from .device_choice import DeviceChoice
from .input_checks import as_dtype, check_fits, check_kind
from .input_checks import check_names as check_given


def check_mapping(inputs: Any) -> None:
    """Check that `inputs` is a mapping of names.

    Raises:
        InputError: `inputs` is not a mapping.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs is {type(inputs).__name__}, expected a mapping of input names to arrays with a row for "
            "each agent"
        )


def checked_rows(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> tuple[list[np.ndarray], int]:
    """Inputs as C-contiguous arrays `[n, *element_shape]` of the model's dtypes, and n.

    A shared input is one value, without n.

    Raises:
        InputError: an input is unknown, missing, or of the wrong shape or dtype.
    """
    check_names(specs, inputs)
    rows = [as_dtype(spec, inputs[spec.name]) for spec in specs]
    n = check_shapes(specs, rows)
    return [shared_value(spec, row) if spec.shared else row for spec, row in zip(specs, rows, strict=True)], n


def device_rows(
    specs: Sequence[TensorSpec],
    inputs: Mapping[str, Any],
    choice: DeviceChoice,
    *,
    cast_later: bool = False,
) -> tuple[list[jax.Array], int, jax.Device]:
    """Inputs as arrays on the device that `choice` names, the number of rows, and the device.

    With `cast_later`, numbers that become floats keep their dtype where that spares a trip to the host.

    Raises:
        InputError: an input is unknown, missing, or of the wrong shape or dtype.
        DeviceError: `jax.Array`s are on several devices, and `choice` refuses that.
    """
    chosen, device = chosen_device(specs, inputs, choice)
    cast_later = cast_later and has_views(device)
    given = list(chosen.values())
    n = check_shapes(specs, given)
    given = [shared_value(spec, row) if spec.shared else row for spec, row in zip(specs, given, strict=True)]
    with own_settings():
        for index, (spec, value) in enumerate(zip(specs, given, strict=True)):
            if value.dtype != spec.dtype:
                value = _checked_cast(spec, value, cast_later)
            if not isinstance(value, jax.Array):
                # A copy, since the CPU backend may take over the caller's memory, and read it after this
                # call.
                value = jax.device_put(np.array(value), device)
            elif value.devices() != {device}:
                value = jax.device_put(value, device)
            given[index] = value
    return given, n, device


def chosen_device(
    specs: Sequence[TensorSpec], inputs: Mapping[str, Any], choice: DeviceChoice
) -> tuple[dict[str, Any], jax.Device]:
    """Inputs by name as NumPy arrays and `jax.Array`s, and the device that `choice` names for them.

    Raises:
        InputError: an input is unknown or missing.
        DeviceError: `jax.Array`s are on several devices, and `choice` refuses that.
    """
    check_names(specs, inputs)
    given = {spec.name: as_jax(inputs[spec.name]) for spec in specs}
    return given, choice.choose(specs, list(given.values()))


def _checked_cast(spec: TensorSpec, value: Any, cast_later: bool) -> Any:
    check_kind(spec.name, value.dtype, spec.dtype)
    if (
        cast_later
        and isinstance(value, jax.Array)
        and not spec.shared
        and jnp.issubdtype(spec.dtype, jnp.floating)
    ):
        return value
    check_fits(spec.name, value, spec.dtype)
    # By NumPy, even from an accelerator: JAX would compile the cast for each number of rows, and keep it.
    return np.asarray(value).astype(spec.dtype)


def on_device(rows: Array, device: jax.Device) -> jax.Array:
    """`rows` on `device`, in their own dtype, whatever JAX's x64 setting is."""
    # Only 64-bit rows need another setting of x64, which costs 20 us.
    with own_settings() if rows.dtype.itemsize >= 8 else operator_settings():
        return jax.device_put(rows, device)


def lives_on_device(given: Any) -> bool:
    """Whether `given` is a `jax.Array`, or an array of another library that JAX can read by DLPack."""
    return isinstance(given, jax.Array) or (
        hasattr(given, "__dlpack__") and not isinstance(given, np.ndarray)
    )


def as_jax(given: Any) -> Any:
    """`given` as a `jax.Array` if it lives on a device, else as a NumPy array."""
    if isinstance(given, (jax.Array, np.ndarray)):
        return given
    return jnp.from_dlpack(given) if hasattr(given, "__dlpack__") else np.asarray(given)


def shared_value(spec: TensorSpec, given: Any) -> Any:
    """The one value of a shared input, which is given once, or as equal rows.

    Raises:
        InputError: the rows differ.
    """
    if len(given.shape) == len(spec.shape):
        return given
    if given.shape[0] > 1:
        host = np.asarray(given)
        differs = (host != host[:1]) & ~((host != host) & (host[:1] != host[:1]))
        if differs.any():
            row = int(np.argwhere(differs.reshape(len(host), -1).any(1))[0, 0])
            raise InputError(
                f"input {spec.name!r} is shared by all agents, since the file gives it no batch axis, but "
                f"row {row} differs from row 0. Give it once, with shape {list(spec.shape)}, bind it with "
                "constants=, or run agents with different values in separate calls"
            )
    return np.asarray(given)[0]  # JAX would compile the look-up for each number of rows


def check_names(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> None:
    """Check that every input is given, and no other.

    Raises:
        InputError: an input is unknown or missing, or `inputs` is not a mapping.
    """
    check_mapping(inputs)
    check_given([spec.name for spec in specs], inputs)


def check_shapes(specs: Sequence[TensorSpec], rows: Sequence[Any]) -> int:
    """Check all shapes, where symbols fit any size; return the number of rows, or -1 if no input has rows.

    Raises:
        InputShapeError: a shape does not fit, or inputs have different numbers of rows.
    """
    for first, lead in zip(specs, rows, strict=True):
        if not first.shared:
            n = lead.shape[0] if len(lead.shape) else -1
            break
    else:
        return -1
    for spec, row in zip(specs, rows, strict=True):
        shape = tuple(row.shape)
        if shape == (n, *spec.shape) and not spec.shared:
            continue
        if spec.shared and spec.accepts(shape):
            continue
        if len(shape) != len(spec.shape) + 1 or shape[0] != n or not spec.accepts(shape[1:]):
            raise InputShapeError(_shape_message(spec, shape, n, first.name))
        if spec.shared and n == 0:
            raise InputShapeError(
                f"input {spec.name!r} is shared by all agents: give it once, with shape {list(spec.shape)}"
            )
    return n


def _shape_message(spec: TensorSpec, given: Sequence[int], n: int, first: str) -> str:
    wanted = f"[n, {', '.join(map(str, spec.shape))}]" if spec.shape else "[n]"
    if spec.accepts(given[1:]) and len(given) == len(spec.shape) + 1:
        return (
            f"input {spec.name!r} has {given[0]} rows, but {first!r} has {n}: give each input one row for "
            "each agent"
        )
    shown = f"input {spec.name!r} has shape {list(given)}"
    if spec.shared:
        return f"{shown}, expected {list(spec.shape)}, once for all agents"
    if spec.accepts(given):
        return f"{shown}, one agent without a batch axis; expected {wanted}: add the axis with x[None]"
    return f"{shown}, expected {wanted}, with a row for each agent"
