"""A run without the corpus does not import its files."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """ONNX's own cases are made while such a file is collected, which takes each worker 4 seconds."""
    if collection_path.suffix != ".py" or "not corpus" not in config.option.markexpr:
        return None
    return "\npytestmark = pytest.mark.corpus\n" in collection_path.read_text() or None
