"""The workflows name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_paths_of_the_repository_exist(workflow: Path) -> None:
    named = re.findall(r"(?<![\w/.])(?:tests|notebooks|benchmarks|docs)/[\w/.*-]+", workflow.read_text())
    missing = [name for name in named if not list(ROOT.glob(name))]
    assert not missing
