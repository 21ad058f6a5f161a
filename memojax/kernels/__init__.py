"""memojax's own CPU kernels, which XLA calls through its FFI: products, convolutions and the steps between.

The kernels are C++ (`native/`), compiled when memojax is installed. `rewrite.py` searches a plan's traced
function for the parts that they can run. Each part becomes one program (`emitter.py`, `program.py`), and one
call. Without kernels, XLA's own code runs everything.

$MEMOJAX_KERNELS=0 turns the kernels off, also at installation. $MEMOJAX_KERNELS_ISA=avx2 (or portable) limits
them to narrower vectors than the CPU has. $MEMOJAX_KERNELS_THREADS sets the number of threads of a call.
"""

from __future__ import annotations

from .library import opened


def available() -> str | None:
    """The instruction set of the kernels in use: "avx512", "avx2" or "portable"; None without kernels.

    >>> memojax.kernels.available() in ("avx512", "avx2", "portable", None)
    True
    """
    kernels = opened()
    return kernels.isa if kernels else None


def why_not() -> str:
    """The reason that there are no kernels, in words; empty if there are."""
    from .library import why_not

    return why_not()
