from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memojax.kernels import build, library

from ..helpers import has_compiler


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kernels: the installed ones, those in $MEMOJAX_KERNELS_LIBRARY, or newly built ones."""
    for path in (
        os.environ.get("MEMOJAX_KERNELS_LIBRARY", ""),
        Path(library.__file__).with_name(build.library_name()),
    ):
        if Path(path).is_file():
            return Path(path)
    try:
        return build.build(tmp_path_factory.mktemp("kernels"))
    except build.BuildError as cause:
        if has_compiler():
            raise  # A mistake in the source must not look like a machine without a compiler.
        pytest.skip(f"no kernels can be built here: {cause}")


@pytest.fixture
def with_kernels() -> None:
    """Skip without the installed kernels, where they are turned off or cannot be built."""
    if library.opened() is None:
        # A build that failed or is stale must not look like a machine without a compiler.
        assert os.environ.get("MEMOJAX_KERNELS") == "0" or not has_compiler(), library.why_not()
        pytest.skip(f"no kernels: {library.why_not()}")


@pytest.fixture(params=["avx512", "avx2", "portable"])
def native(
    compiled: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[library.Library]:
    """The kernels for each instruction set of this CPU, on two threads."""
    monkeypatch.setenv("MEMOJAX_KERNELS_ISA", request.param)
    monkeypatch.setenv("MEMOJAX_KERNELS_THREADS", "2")
    found = library.open_library(compiled)
    if found.isa != request.param:
        pytest.skip(f"this CPU has no {request.param}")
    yield found
    monkeypatch.delenv("MEMOJAX_KERNELS_ISA")
    library.open_library(compiled)  # all of them share one choice
