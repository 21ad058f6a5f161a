"""Settings for all tests: the CPU unless asked otherwise, fixed seeds, and no silent loss of 64-bit
numbers."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
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
    # Many tests collect garbage. What exists before the first one, half a million objects, is none.
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
