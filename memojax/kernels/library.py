"""Finds and opens the compiled kernels, and registers them with XLA, once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .build import library_name, sources_digest
from .threads import usable_cores

log: logging.Logger = logging.getLogger("memojax")

TARGET = "memojax_program"
_SPIN_US = 100
"""Microseconds that workers look for further work before they sleep."""

_lock = threading.Lock()


@dataclass(frozen=True)
class Library:
    """The kernels, ready for use.

    Attributes:
        sources: digest of the C++ files that it was built from.
        isa: "avx512", "avx2" or "portable" (which is NEON on ARM).
        panel: columns of a panel of packed weights.
        run: `run(program, arrays)` runs a program without XLA; the arrays are arguments and results.
        call: the C function that runs a prepared program (`kernels/direct.py`).
    """

    sources: str
    isa: str
    panel: int
    run: Callable[[np.ndarray, list[np.ndarray]], None]
    call: Callable[[ctypes.c_void_p], int]
    _handle: Any

    def multiply_adds(self, rounds: int) -> int:
        """Run multiply-adds that stay in registers, the most that a core can do; gives their number."""
        return self._handle.memojax_multiply_adds(ctypes.c_int64(rounds))

    def use_threads(self) -> None:
        """Let jobs use as many threads as this thread's cores allow, or as $MEMOJAX_KERNELS_THREADS says."""
        wanted = _whole("MEMOJAX_KERNELS_THREADS", 0) or usable_cores()
        self._handle.memojax_set_threads(wanted, _whole("MEMOJAX_KERNELS_SPIN_US", _SPIN_US))

    @contextlib.contextmanager
    def shared_among(self, callers: int) -> Iterator[None]:
        """Within the block, calls of this thread use its share of the threads; `callers` threads call."""
        try:
            self._handle.memojax_share_threads(callers)
            yield
        finally:
            self._handle.memojax_share_threads(1)


def opened() -> Library | None:
    """The kernels; None if they are off, not built, or unusable here. `why_not` gives the reason."""
    with _lock:
        return _open()[0]


def why_not() -> str:
    """The reason that there are no kernels; empty if there are."""
    with _lock:
        return _open()[1]


def kernels_key() -> str | None:
    """The kernels' part of a stored executable's key: sources and instruction set; None without any."""
    kernels = opened()
    return f"{kernels.sources} {kernels.isa}" if kernels else None


def open_library(path: Path) -> Library:
    """Open the kernels in a file.

    Raises:
        OSError: the file cannot be opened, or was built from other sources.
    """
    handle = ctypes.CDLL(str(path))
    handle.memojax_sources.restype = ctypes.c_char_p
    built_from = handle.memojax_sources().decode()
    if built_from != sources_digest():
        raise OSError(f"{path} was built from other sources: install memojax again")
    handle.memojax_choose.restype = ctypes.c_char_p
    handle.memojax_panel.restype = ctypes.c_int64
    handle.memojax_run.restype = ctypes.c_char_p
    handle.memojax_multiply_adds.restype = ctypes.c_int64
    isa = handle.memojax_choose(os.environ.get("MEMOJAX_KERNELS_ISA", "").encode()).decode()

    def run(program: np.ndarray, arrays: list[np.ndarray]) -> None:
        addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        said = handle.memojax_run(
            ctypes.c_void_p(program.ctypes.data), ctypes.c_int64(program.size), addresses
        )
        if said is not None:
            raise RuntimeError(said.decode())

    found = Library(built_from, isa, handle.memojax_panel(), run, handle.memojax_call, handle)
    found.use_threads()
    return found


def api_version() -> tuple[int, int]:
    """Major and minor version of XLA's FFI, from the header of the installed jaxlib.

    Raises:
        OSError: the header cannot be read, or says no version.
    """
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    if major is None or minor is None:
        raise OSError("jaxlib's header does not say the version of its FFI")
    return int(major[1]), int(minor[1])


@functools.cache
def _open() -> tuple[Library | None, str]:
    if os.environ.get("MEMOJAX_KERNELS") == "0":
        return None, "turned off by MEMOJAX_KERNELS=0"
    path = Path(os.environ.get("MEMOJAX_KERNELS_LIBRARY") or Path(__file__).with_name(library_name()))
    if not path.is_file():
        return None, "not built: no C++ compiler was found when memojax was installed"
    try:
        found = open_library(path)
        found._handle.memojax_use_api(*api_version())
        capsule = jax.ffi.pycapsule(found._handle.memojax_program)
        jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu")
    except Exception as cause:
        log.warning("memojax's kernels cannot be used (%s), so plans use XLA's own code", cause)
        return None, str(cause)
    return found, ""


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
