"""A build hook that compiles the kernels if it can; without them the wheel is pure Python, and works."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]

_ZIG_MACHINES = ("x86_64", "aarch64", "arm64")


class KernelsBuildHook(BuildHookInterface):
    """Adds the compiled kernels to a wheel, or puts them into the source tree of an editable install."""

    def dependencies(self) -> list[str]:
        """A compiler from the package index, where the machine has none and there is one for it."""
        build = _builder(self.root)
        wanted = _wanted() and build.supported() and build.system_compiler() is None
        return ["ziglang>=0.13"] if wanted and platform.machine() in _ZIG_MACHINES else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. If that fails, a message says why, and the wheel goes without kernels."""
        if not _wanted():
            return
        build = _builder(self.root)
        self._scratch = Path(tempfile.mkdtemp(prefix="memojax-kernels-"))
        try:
            made = {"kernels": build.build(self._scratch), "rows": build.build_rows(self._scratch)}
            for room, library in made.items():
                if version == "editable":
                    shutil.copy2(library, Path(self.root, "memojax", room, library.name))
                else:
                    build_data["force_include"][str(library)] = f"memojax/{room}/{library.name}"
        except Exception as cause:
            self.app.display_warning(
                f"memojax is built without its own kernels, XLA's are used instead: {cause}"
            )
            return
        build_data["pure_python"] = False
        if sys.platform == "linux":
            # The library knows no Python: one wheel serves all versions.
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        else:
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clean up."""
        if (scratch := getattr(self, "_scratch", None)) is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _wanted() -> bool:
    return os.environ.get("MEMOJAX_KERNELS") != "0"


def _builder(root: str) -> ModuleType:
    """`memojax/kernels/build.py`, without memojax: its dependencies are not installed yet."""
    spec = importlib.util.spec_from_file_location(
        "_memojax_kernels_build", Path(root, "memojax", "kernels", "build.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
