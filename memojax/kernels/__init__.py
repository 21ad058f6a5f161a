"""memojax's own kernels for CPUs, which XLA calls through its FFI: products, convolutions and what stands
between them.

They are C++ (`native/`), compiled when memojax is installed. A plan's traced function is searched for the
parts that they can run (`rewrite.py`); each part becomes one program (`emitter.py`, `program.py`), which is
one call. Where there are no kernels, XLA's own code runs everything.

$MEMOJAX_KERNELS=0 turns them off, at installation too; $MEMOJAX_KERNELS_ISA=avx2 (or portable) keeps them to
narrower vectors than the CPU has; $MEMOJAX_KERNELS_THREADS sets how many threads a call may use.
"""

from __future__ import annotations

from .library import opened


def available() -> str | None:
    """The instruction set of the kernels in use: "avx512", "avx2" or "portable"; None where there are none.

    >>> memojax.kernels.available() in ("avx512", "avx2", "portable", None)
    True
    """
    kernels = opened()
    return kernels.isa if kernels else None


def why_not() -> str:
    """Why there are no kernels, in words; empty where there are."""
    from .library import why_not

    return why_not()
