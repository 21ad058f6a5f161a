"""Settings for all tests: the CPU unless asked otherwise, fixed seeds, and no silent loss of 64-bit
numbers."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "MEMOJAX_CACHE_KEY" not in os.environ:  # not the user's own
    _folder = tempfile.mkdtemp(prefix="memojax-tests-")
    os.environ["MEMOJAX_CACHE_KEY"] = str(Path(_folder, "cache.key"))
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("memojax", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("memojax")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:Explicitly requested dtype")


def pytest_collection_finish() -> None:
    # Many tests collect garbage. Freezing spares each of them a look at half a million older objects.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _background_of_its_own() -> Iterator[None]:
    """The background tasks of a test file end before the next file counts compiles, plans or handles."""
    yield
    background = sys.modules.get("memojax.xla.background")
    if background is not None:
        for submit in (background.submit, background.submit_errand):
            submit(lambda: None).result(300)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
