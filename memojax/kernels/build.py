"""Compiles the kernels, for the wheel's build, for tests, or by `python -m memojax.kernels.build [FOLDER]`.

It needs only the standard library, because it also runs without JAX and memojax.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).with_name("native")
ROWS = Path(__file__).parents[1] / "rows" / "native" / "gather.c"

_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-warning-option",
]
_X86 = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}


class BuildError(Exception):
    """The kernels cannot be compiled on this machine."""


def library_name() -> str:
    """Name of the compiled file, which lies beside this one."""
    return "_kernels.dylib" if sys.platform == "darwin" else "_kernels.so"


def rows_library_name() -> str:
    """Name of the compiled file in `memojax/rows` that gathers states."""
    return "_rows.dylib" if sys.platform == "darwin" else "_rows.so"


def supported() -> bool:
    """Whether the kernels exist for this kind of machine."""
    return sys.platform in ("linux", "darwin") and sys.byteorder == "little" and sys.maxsize > 1 << 32


def sources_digest() -> str:
    """A digest that tells whether a library was built from these sources."""
    digest = hashlib.sha256()
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Compiler:
    """The commands that compile and link."""

    compile: list[str]
    link: list[str]


def system_compiler() -> Compiler | None:
    """The system's C++ compiler: $CXX, or the first one on the path."""
    if given := os.environ.get("CXX"):
        return Compiler(shlex.split(given), shlex.split(given))
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return Compiler([found], [found]) if found else None


def ziglang() -> Compiler | None:
    """The compiler in the Python package `ziglang`; None if that is not installed."""
    try:
        import ziglang  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    command = [sys.executable, "-m", "ziglang"]
    # By default zig compiles for the present CPU only. Linked as C, it need not first build a C++ library,
    # which takes a minute.
    return Compiler([*command, "c++", "-mcpu=baseline", "-fno-sanitize=undefined"], [*command, "cc"])


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compile the library into `folder`, with additional flags for compiler and linker.

    Raises:
        BuildError: there is no compiler, or none succeeds.
    """
    if not supported():
        raise BuildError(f"no kernels for {sys.platform} {platform.machine()}")
    compilers = [compiler for compiler in (system_compiler(), ziglang()) if compiler]
    if not compilers:
        raise BuildError("no C++ compiler: none of $CXX, c++, g++, clang++, ziglang exists")
    failures = []
    for compiler in compilers:
        try:
            return _build_with(compiler, folder, list(flags))
        except (BuildError, OSError) as cause:
            failures.append(str(cause))
    raise BuildError("\n".join(failures))


def build_rows(folder: Path) -> Path:
    """Compile the code that gathers states into `folder`.

    Raises:
        BuildError: there is no compiler, or none succeeds.
    """
    failures = ["no C compiler"]
    for compiler in [compiler for compiler in (system_compiler(), ziglang()) if compiler and supported()]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, rows_library_name())
            flags = ["-x", "c", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-shared"]
            try:
                _run([*_as_c(compiler.compile), *flags, "-o", str(made), str(ROWS)])
            except (BuildError, OSError) as cause:
                failures.append(str(cause))
                continue
            os.replace(made, folder / rows_library_name())
            return folder / rows_library_name()
    raise BuildError("\n".join(failures))


def _as_c(command: Sequence[str]) -> list[str]:
    """A compiler's command for C; zig's C++ command would first build a C++ library."""
    return ["cc" if word == "c++" and "ziglang" in command else word for word in command]


def _build_with(compiler: Compiler, folder: Path, flags: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        sets = {**_X86, "portable": []} if platform.machine() in ("x86_64", "AMD64") else {"portable": []}
        # The longest ones first, so that no core waits for another's at the end.
        units = [
            (NATIVE / "compute.cc", isa, [f"-DMEMOJAX_ISA={isa}", *extra]) for isa, extra in sets.items()
        ]
        units += [(NATIVE / f"{name}.cc", name, []) for name in ("program", "pool", "exports")]
        define = f'-DMEMOJAX_SOURCES="{sources_digest()}"'

        def compile_one(unit: tuple[Path, str, list[str]]) -> str:
            source, name, extra = unit
            target = str(Path(scratch, f"{name}.o"))
            _run([*compiler.compile, *_FLAGS, *extra, *flags, define, "-c", str(source), "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            objects = list(threads.map(compile_one, units))
        made = Path(scratch, library_name())
        stripped = [] if flags or sys.platform == "darwin" else ["-s"]
        _run([*compiler.link, "-shared", "-pthread", *stripped, *flags, "-o", str(made), *objects])
        final = folder / library_name()
        os.replace(made, final)
    return final


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}:\n{done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    wanted: list[Path] = (
        [Path(sys.argv[1])] * 2 if len(sys.argv) > 1 else [Path(__file__).parent, ROWS.parents[1]]
    )
    print(build(wanted[0]), build_rows(wanted[1]), sep="\n")
