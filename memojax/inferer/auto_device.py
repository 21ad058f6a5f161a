"""`device="auto"`: the accelerator if JAX has one and the model is big enough to gain, else the CPU.

The rule compares two estimates for a call with the expected number of rows, with NumPy arrays in and out:

| Part | On the CPU | On an accelerator |
|---|---|---|
| a call | `CPU_CALL_US` | `ACCELERATOR_CALL_US` |
| operations | `CPU_FLOPS_PER_US` for each core | `ACCELERATOR_FLOPS_PER_US` |
| rows, there and back | nothing | `TRANSFER_BYTES_PER_US` |
| weights | nothing: in a cache, or counted as operations | `ACCELERATOR_BYTES_PER_US`, once a call |

The numbers of the CPU are measured (AMD EPYC Zen 5, docs/benchmarks.md). The numbers of the accelerator are
estimates from data sheets, since none was available for measurements. So `MARGIN` asks for a clear gain.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..lowering.typed_model import TypedModel
from ..lowering.work import flops_per_row
from ..xla.cpu_client import cpu_device, resolve_device

CPU_CALL_US = 6.0
"""Measured: a call of the smallest policies, with a compiled plan."""

CPU_FLOPS_PER_US = 60e3
"""Measured: 60 GFLOP/s for each core. The kernels reach 100 in dense layers, and half in convolutions."""

MOST_CORES = 16
"""The kernels and XLA's pool use no more cores."""

ACCELERATOR_CALL_US = 120.0
"""Estimated: two transfers of some 20 us each, JAX's dispatch, ten kernels of 5 us, and a wait."""

ACCELERATOR_FLOPS_PER_US = 4e6
"""Estimated: 4 TFLOP/s, a tenth to a third of the float32 rates in data sheets of GPUs since 2020.

Products run at JAX's precision "highest", and small ones do not fill a GPU.
"""

TRANSFER_BYTES_PER_US = 6e3
"""Estimated: 6 GB/s, pageable memory over PCIe 3 x16 or 4 x8."""

ACCELERATOR_BYTES_PER_US = 300e3
"""Estimated: 300 GB/s, the memory of a small GPU."""

MARGIN = 2.0
"""The accelerator must be faster by this factor, since the estimates may be wrong by as much."""

EXPECTED_ROWS = 32
"""Rows of a call if neither `preload` nor another option gives a number."""


@dataclass(frozen=True)
class DeviceVerdict:
    """The device for NumPy batches, and the reason.

    Attributes:
        device: the device.
        why: the reason, for the card; empty if the caller named the device.
    """

    device: jax.Device
    why: str = ""


def verdict_on(device: str | jax.Device | None, typed: TypedModel, rows: int) -> DeviceVerdict:
    """The device that the caller named, or the rule's choice for "auto".

    Raises:
        DeviceError: there is no such device.
    """
    if isinstance(device, str) and device == "auto":
        return auto_device(typed, rows)
    return DeviceVerdict(resolve_device(device))


def auto_device(typed: TypedModel, rows: int = 0) -> DeviceVerdict:
    """The device for NumPy batches of `rows` rows of a model; `EXPECTED_ROWS` for 0.

    The check for plugins starts no backend. With a plugin, the rule asks JAX for its devices only if the
    model is big enough to gain.
    """
    if not accelerator_possible():
        return DeviceVerdict(cpu_device(), "JAX has no accelerator here")
    rows = rows or EXPECTED_ROWS
    flops = flops_per_row(typed)
    if flops is None:
        return DeviceVerdict(cpu_device(), "the cost of this model is not known before it runs")
    here, there = cpu_us(typed, flops, rows), accelerator_us(typed, flops, rows)
    estimate = f"{rows} rows are estimated at {_time(here)} on the CPU, {_time(there)} on an accelerator"
    if here < MARGIN * there:
        return DeviceVerdict(cpu_device(), estimate)
    found = _accelerator()
    if found is None:
        return DeviceVerdict(cpu_device(), "JAX has no accelerator here")
    return DeviceVerdict(found, estimate)


def cpu_us(typed: TypedModel, flops: float, rows: int) -> float:
    """Estimated microseconds of a call on this machine's CPU."""
    return CPU_CALL_US + rows * flops / (CPU_FLOPS_PER_US * _cores())


def accelerator_us(typed: TypedModel, flops: float, rows: int) -> float:
    """Estimated microseconds of a call on an accelerator."""
    specs = (*typed.api.inputs, *(spec for spec in typed.api.outputs if spec.name in typed.computed))
    moved = rows * sum(int(np.prod(spec.rows(1))) * spec.dtype.itemsize for spec in specs)
    weights = sum(int(leaf.nbytes) for leaf in jax.tree.leaves(typed.params))
    return (
        ACCELERATOR_CALL_US
        + moved / TRANSFER_BYTES_PER_US
        + weights / ACCELERATOR_BYTES_PER_US
        + rows * flops / ACCELERATOR_FLOPS_PER_US
    )


def accelerator_possible() -> bool:
    """Whether JAX may have an accelerator. This check starts no backend.

    It looks for an installed plugin that the user's choice of platforms does not exclude.
    """
    chosen: Any = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    return (not chosen or set(chosen.split(",")) != {"cpu"}) and _has_plugin()


@functools.cache
def _has_plugin() -> bool:
    return "PJRT_NAMES_AND_LIBRARY_PATHS" in os.environ or any(
        importlib.util.find_spec(name) is not None for name in ("jax_plugins", "libtpu")
    )


def _accelerator() -> jax.Device | None:
    """The first device of JAX's default backend, unless that is the CPU."""
    try:
        first = jax.local_devices()[0]
    except RuntimeError:  # the plugin found no device
        return None
    return None if first.platform == "cpu" else first


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_CORES)


def _time(us: float) -> str:
    return f"{us:,.0f} us" if us < 1e4 else f"{us / 1e3:,.0f} ms"
