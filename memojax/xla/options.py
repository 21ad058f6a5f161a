"""Compiling one executable for a CPU: what XLA may give to the library YNNPACK, by default and where a candidate says otherwise."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

YNN = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's option for what its CPU backend gives to YNNPACK; the rest it compiles itself, or gives to Eigen."""


def ynn(*kinds: str) -> dict[str, str]:
    """The option for these kinds of fusions, of XLA's `LIBRARY_FUSION_TYPE_*`."""
    return {YNN: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


def compiled(lowered: Any, device: jax.Device, options: Mapping[str, Any] | None = None) -> Any:
    """`lowered`, compiled for `device` by XLA's `options` for this executable.

    On a CPU they go over memojax's own defaults, which are left out where this jaxlib does not have them.
    """
    options = dict(options or {})
    try:
        return lowered.compile(over_defaults(device, options) or None)
    except Exception as cause:
        if YNN in options or "No such compile option" not in str(cause) or YNN not in str(cause):
            raise
        return lowered.compile(options or None)


def over_defaults(device: jax.Device, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` over memojax's own for `device`."""
    return {**_defaults(), **options} if device.platform == "cpu" else dict(options)


@functools.cache
def has_avx512() -> bool:
    """Whether this CPU has 512-bit vectors; False where it does not say."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def has_sound_convolutions() -> bool:
    """Whether YNNPACK may be given convolutions, as XLA itself does from jaxlib 0.10 on.

    In 0.8.3 the last rows of a padded one came out wrong, some once in 300 runs; 4,000 runs of 0.9.2 showed nothing.
    """
    major, minor = jaxlib.version.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (0, 10)


@functools.cache
def _defaults() -> dict[str, str]:
    """Products and, with AVX-512, convolutions, each by itself.

    XLA's own default also fuses reductions with what they reduce, and then takes a weight that is one number throughout (zeros of a head
    that was never trained) as that number alone: YNNPACK reads on behind it, whatever lies there (jaxlib 0.10.2). Over 25 policies the
    fusions of reductions make no difference in time (0.99).

    Without AVX-512, Eigen's convolutions are the faster ones: a 84x84x4 Nature CNN takes 0.85 of the time for one frame and 0.25 for
    128 (EPYC Milan).
    """
    return ynn(
        "INDIVIDUAL_DOT", *(["INDIVIDUAL_CONVOLUTION"] if has_avx512() and has_sound_convolutions() else [])
    )
