"""Process-wide settings of XLA; memojax applies none of them by itself."""

from __future__ import annotations

import os

from ..errors import DeviceError
from .cpu_client import client_exists

_UNROLLING = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"


def disable_loop_unrolling() -> None:
    """Compile for CPUs without unrolling loops, which is 5 to 20 % faster (EPYC Milan, jaxlib 0.10.2).

    This adds a flag to `XLA_FLAGS`, which affects all that JAX compiles in this process. XLA reads its flags
    once, so call this function first, best before `import jax`.

        >>> from memojax.xla.flags import disable_loop_unrolling
        >>> disable_loop_unrolling()  # doctest: +SKIP

    Raises:
        DeviceError: memojax has a client already, so XLA has read its flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _UNROLLING in flags:
        return
    if client_exists():
        raise DeviceError(
            "disable_loop_unrolling() comes too late, since XLA has read its flags: call it before you load "
            f"the first policy, or start Python with XLA_FLAGS={_UNROLLING}"
        )
    if "--xla_backend_extra_options" in flags:
        raise DeviceError(
            f"XLA_FLAGS already sets --xla_backend_extra_options ({flags}): add "
            "xla_cpu_disable_loop_unrolling to its value"
        )
    os.environ["XLA_FLAGS"] = f"{flags} {_UNROLLING}".strip()
