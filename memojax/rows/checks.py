"""Whole batches as callers give them, checked against what a model takes: names, kinds of numbers, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array
from ..errors import InputDtypeError, InputError, InputShapeError, MissingInputError, UnknownInputError
from ..model.signature import TensorSpec
from ..xla.settings import operator_settings, own_settings
from ..xla.views import has_views
from .device_choice import DeviceChoice
from .states import as_dtype, can_cast, check_fits, dtype_message


def check_mapping(inputs: Any) -> None:
    """See that inputs come by name.

    Raises:
        InputError: they do not.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs is {type(inputs).__name__}, expected input name -> array with one row per agent"
        )


def checked_rows(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> tuple[list[np.ndarray], int]:
    """Inputs as C-contiguous arrays of the model's dtypes, `[n, *element_shape]`, and n; a shared input as
    one value.

    Raises:
        InputError: an unknown, missing, misshapen or mistyped input.
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
    """Inputs as arrays on the device that `choice` names, the number of rows, and that device.

    With `cast_later`, numbers that become floats keep their dtype where that spares a trip to the host.

    Raises:
        InputError: an unknown, missing, misshapen or mistyped input.
        DeviceError: `jax.Array`s on several devices, where that is refused.
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
                # A copy: the CPU backend may take over the caller's memory, and read it after this call has
                # returned.
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
        InputError: an unknown or missing input.
        DeviceError: `jax.Array`s on several devices, where that is refused.
    """
    check_names(specs, inputs)
    given = {spec.name: as_jax(inputs[spec.name]) for spec in specs}
    return given, choice.choose(specs, list(given.values()))


def _checked_cast(spec: TensorSpec, value: Any, cast_later: bool) -> Any:
    if not can_cast(np.dtype(value.dtype), spec.dtype):
        raise InputDtypeError(dtype_message(spec, value.dtype))
    if (
        cast_later
        and isinstance(value, jax.Array)
        and not spec.shared
        and jnp.issubdtype(spec.dtype, jnp.floating)
    ):
        return value
    check_fits(spec, value)
    # By NumPy, even from an accelerator: JAX would compile the cast for each number of rows, and keep it for
    # good.
    return np.asarray(value).astype(spec.dtype)


def on_device(rows: Array, device: jax.Device) -> jax.Array:
    """`rows` on `device`, in their own dtype whatever the x64 setting."""
    # Only 64-bit rows need another setting of x64, which costs 20 us.
    with own_settings() if rows.dtype.itemsize >= 8 else operator_settings():
        return jax.device_put(rows, device)


def lives_on_device(given: Any) -> bool:
    """Whether `given` is a `jax.Array`, or another library's array that JAX can take over."""
    return isinstance(given, jax.Array) or (
        hasattr(given, "__dlpack__") and not isinstance(given, np.ndarray)
    )


def as_jax(given: Any) -> Any:
    """`given` as a `jax.Array` if it lives on a device, else as a NumPy array."""
    if isinstance(given, (jax.Array, np.ndarray)):
        return given
    return jnp.from_dlpack(given) if hasattr(given, "__dlpack__") else np.asarray(given)


def shared_value(spec: TensorSpec, given: Any) -> Any:
    """The one value of a shared input, given once or the same for each agent.

    Raises:
        InputError: agents give different values.
    """
    if len(given.shape) == len(spec.shape):
        return given
    if given.shape[0] > 1:
        host = np.asarray(given)
        differs = (host != host[:1]) & ~((host != host) & (host[:1] != host[:1]))
        if differs.any():
            row = int(np.argwhere(differs.reshape(len(host), -1).any(1))[0, 0])
            raise InputError(
                f"input {spec.name!r} is shared by all agents: the file gives it no batch axis, but row "
                f"{row} differs from row 0. "
                f"Give it once, {list(spec.shape)}, bind it with constants=, or run agents with different "
                "values in calls of their own"
            )
    return np.asarray(given)[0]  # JAX would compile the look-up for each number of rows


def check_names(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> None:
    """See that every input is given, and no other.

    Raises:
        InputError: it is not, or inputs come without names.
    """
    check_mapping(inputs)
    names = [spec.name for spec in specs]
    if unknown := [name for name in inputs if name not in names]:
        raise UnknownInputError(unknown, names)
    if missing := [name for name in names if name not in inputs]:
        raise MissingInputError(missing, inputs)


def check_shapes(specs: Sequence[TensorSpec], rows: Sequence[Any]) -> int:
    """The number of rows, once every shape fits; symbols take any size. -1 where no input has rows.

    Raises:
        InputShapeError: a shape that does not fit, or inputs with different numbers of rows.
    """
    batched = [(spec, row) for spec, row in zip(specs, rows, strict=True) if not spec.shared]
    if not batched:
        return -1
    first, lead = batched[0]
    n = lead.shape[0] if len(lead.shape) else -1
    for spec, row in zip(specs, rows, strict=True):
        shape = tuple(row.shape)
        if spec.shared and spec.accepts(shape):
            continue
        if len(shape) != len(spec.shape) + 1 or shape[0] != n or not spec.accepts(shape[1:]):
            raise InputShapeError(_shape_message(spec, shape, n, first.name))
        if spec.shared and n == 0:
            raise InputShapeError(
                f"input {spec.name!r} is shared by all agents: give it once, {list(spec.shape)}"
            )
    return n


def _shape_message(spec: TensorSpec, given: Sequence[int], n: int, first: str) -> str:
    wanted = f"[n, {', '.join(map(str, spec.shape))}]" if spec.shape else "[n]"
    if spec.accepts(given[1:]) and len(given) == len(spec.shape) + 1:
        return f"input {spec.name!r} has {given[0]} rows, but {first!r} has {n}: all inputs need one row per agent"
    if spec.shared:
        return (
            f"input {spec.name!r} has shape {list(given)}, expected {list(spec.shape)}, once for all agents"
        )
    if spec.accepts(given):
        return f"input {spec.name!r} has shape {list(given)}, one agent without a batch axis; expected {wanted}: add one with x[None]"
    return f"input {spec.name!r} has shape {list(given)}, expected {wanted}, a row per agent"
