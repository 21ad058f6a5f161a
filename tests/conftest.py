"""Settings for all tests: the CPU unless asked otherwise, fixed seeds, and no silent loss of 64-bit numbers."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("memojax", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("memojax")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:Explicitly requested dtype")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
