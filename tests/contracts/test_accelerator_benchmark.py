"""The benchmark for accelerators runs on the CPU, so time on a GPU is not lost to a bug in the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_dry_run_measures_and_gives_reasons_for_missing_parts(tmp_path: Path) -> None:
    numbers, page = tmp_path / "numbers.json", tmp_path / "page.md"
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--dry"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json", str(numbers), "--markdown", str(page)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    measured = {row["contender"] for row in report["calls"]}
    assert {"memojax, NumPy", "memojax, jax.Array", "memojax, precision high"} <= measured
    assert {row["size"] for row in report["calls"]} == {1, 8}
    assert {row["way"] for row in report["transfers"]} == {"to", "back"}
    assert len(report["preloads"]) == 2
    assert report["absent"]["tests"] == "a dry run has no GPU"
    assert any(name.startswith("ORT CUDA") for name in report["absent"])
    assert all(
        heading in page.read_text() for heading in ("## Transfers", "## Preloading", "## Not measured")
    )


def test_without_an_accelerator_the_error_names_dry() -> None:
    command = [sys.executable, "-c", "import accelerator; accelerator.accelerator(False)"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    done = subprocess.run(
        command,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "--dry" in done.stderr
