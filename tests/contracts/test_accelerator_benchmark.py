"""The benchmark for accelerators runs on the CPU, so time on a GPU is not lost to a bug in the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_dry_run_measures_and_gives_reasons_for_missing_parts(tmp_path: Path) -> None:
    """By the script for a lent machine, from another folder, so its steps are tested, too."""
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "on_device.sh"), "--dry"],
        cwd=tmp_path,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "MEMOJAX_KERNELS": "0",
            "OUT": str(out),
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["accelerator.json", "accelerator.md", "log"]
    report, page = json.loads((out / "accelerator.json").read_text()), (out / "accelerator.md").read_text()
    measured = {row["contender"] for row in report["calls"]}
    candidates = {"memojax, no Triton", "memojax, XLA's layouts"}
    assert {"memojax, NumPy", "memojax, jax.Array", "memojax, precision high"} | candidates <= measured
    assert {row["size"] for row in report["calls"]} == {1, 8}
    assert {row["way"] for row in report["transfers"]} == {"to", "back"}
    assert len(report["preloads"]) == 2
    assert report["absent"]["tests"] == "a dry run has no GPU"
    assert any(name.startswith("ORT CUDA") for name in report["absent"])
    assert all(heading in page for heading in ("## Transfers", "## Preloading", "## Not measured"))
    assert page in (out / "log").read_text()


def _run(code: str, *given: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *given],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_a_part_that_fails_leaves_the_rest_and_the_files(tmp_path: Path) -> None:
    """Here one size, the transfers, and all packages of others fail."""
    code = """
        import sys
        sys.modules.update(dict.fromkeys(("onnxruntime", "torch")))  # as where they are not installed
        import accelerator

        real = accelerator.contenders

        def contenders(case, size, *given):
            if size == 8:
                raise MemoryError("the device is full")
            return {name: call for name, call in real(case, size, *given).items() if name == accelerator.BASE}

        def transfers(*given):
            raise RuntimeError("no transfers")

        accelerator.contenders, accelerator.transfers = contenders, transfers
        accelerator.preloads = lambda *given: None
        sys.argv[1:] = ["--dry", "--json", sys.argv[1], "--markdown", sys.argv[2]]
        accelerator.main()
    """
    numbers, page = tmp_path / "numbers.json", tmp_path / "page.md"
    done = _run(code, str(numbers), str(page))
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    found = {(row["case"], row["size"]) for row in report["calls"]}
    assert found == {("MLP 64-256-256-8", 1), ("LSTM 64", 1)}
    assert report["absent"]["transfers"] == "it failed: RuntimeError: no transfers"
    assert report["absent"]["calls: LSTM 64, 8 rows"] == "it failed: MemoryError: the device is full"
    assert {name.partition(":")[0] for name in report["absent"]} >= {"torch", "ORT CUDA"}
    assert "onnxruntime" not in report["machine"]
    assert "- calls (MLP 64-256-256-8, 8 rows and 1 more): it failed: MemoryError" in page.read_text()


def test_without_an_accelerator_the_error_names_dry() -> None:
    done = _run("import accelerator; accelerator.accelerator(False)")
    assert done.returncode == 1
    assert "--dry" in done.stderr
