"""The files that a run without the corpus need not even import."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """ONNX's own cases are made while this file is collected, which takes each worker 4 seconds."""
    return (collection_path.name == "test_backend.py" and "not corpus" in config.option.markexpr) or None
