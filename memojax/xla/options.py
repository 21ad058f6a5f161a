"""Compile options of one executable, above all the operations that XLA's CPU backend gives to YNNPACK."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from .cpu_client import cpu_device
from .settings import own_settings

YNN = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's option for the operations that go to YNNPACK; for others XLA compiles code or calls Eigen."""

VECTOR_WIDTH = "xla_cpu_prefer_vector_width"
"""XLA's option for the bits of a vector in the code that it compiles itself."""


def ynn(*kinds: str) -> dict[str, str]:
    """The option for kinds of fusions, by the names of XLA's `LIBRARY_FUSION_TYPE_*`."""
    return {YNN: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


def compiled(lowered: Any, device: jax.Device, options: Mapping[str, Any] | None = None) -> Any:
    """Compile `lowered` for `device` with XLA's `options`.

    On a CPU, `options` override memojax's defaults. A jaxlib that does not know the defaults compiles without
    them.
    """
    given = over_defaults(device, options or {})
    if given.get(VECTOR_WIDTH) == "512" and _has_arctan(lowered) and not has_sound_arctan():
        given = {name: value for name, value in given.items() if name != VECTOR_WIDTH}
    while True:
        try:
            return lowered.compile(given or None)
        except Exception as cause:
            # An empty list of operations for a library is what a jaxlib without that library does.
            spare = [name for name in given if (options or {}).get(name, "") == ""]
            unknown = [name for name in spare if f"'{name}'" in str(cause)]
            if "No such compile option" not in str(cause) or not unknown:
                raise
            given = {name: value for name, value in given.items() if name not in unknown}


def over_defaults(device: jax.Device, options: Mapping[str, Any]) -> dict[str, Any]:
    """memojax's default options for `device`, overridden by `options`."""
    return {**_defaults(), **options} if device.platform == "cpu" else dict(options)


@functools.cache
def has_avx512() -> bool:
    """Whether this CPU has 512-bit vectors; False if unknown."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def has_sound_convolutions() -> bool:
    """Whether YNNPACK computes convolutions correctly: XLA itself uses it for them from jaxlib 0.10 on.

    In 0.8.3 the last rows of a padded convolution came out wrong about once in 300 runs; 4,000 runs of 0.9.2
    showed no error.
    """
    major, minor = jaxlib.version.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (0, 10)


@functools.cache
def has_sound_arctan() -> bool:
    """Whether XLA's arctangent is right with vectors of 512 bits; it is tried out.

    In jaxlib 0.10.2, 8 of each 16 numbers are wrong by up to pi. A trial of 70 functions and four dtypes
    showed no other one, and neither 0.8.0 nor 0.12 shows any.
    """
    x = np.linspace(-4, 4, 64, dtype=np.float32)
    with own_settings():
        place = jax.sharding.SingleDeviceSharding(cpu_device())
        lowered = jax.jit(jnp.arctan, in_shardings=place).lower(jax.ShapeDtypeStruct(x.shape, x.dtype))
        made = lowered.compile({VECTOR_WIDTH: "512"})(x)
    return bool(np.allclose(made, np.arctan(x), rtol=1e-4, atol=1e-5))


def _has_arctan(lowered: Any) -> bool:
    """Whether a lowered function has an arctangent; the text leaves its arrays out."""
    text = lowered.compiler_ir("stablehlo").operation.get_asm(large_elements_limit=1)
    return "atan" in text


@functools.cache
def _defaults() -> dict[str, str]:
    """Give YNNPACK single products and, with AVX-512, single convolutions, and use vectors of 512 bits.

    XLA's own default also fuses reductions. It then shrinks a weight that is one number throughout, such as
    the zeros of an untrained head, to a scalar. YNNPACK reads past its end (jaxlib 0.10.2). Over 25 policies,
    fused reductions change no time (0.99).

    Without AVX-512, Eigen's convolutions are faster: an 84x84x4 Nature CNN takes 0.85 of the time for one
    frame and 0.25 for 128 (EPYC Milan).

    XLA itself prefers 256 bits on each CPU. With 512, activations take less time: small policies take 0.8 to
    0.95 of the time from 32 rows on.
    """
    convolutions = ["INDIVIDUAL_CONVOLUTION"] if has_avx512() and has_sound_convolutions() else []
    return {**ynn("INDIVIDUAL_DOT", *convolutions), **({VECTOR_WIDTH: "512"} if has_avx512() else {})}
