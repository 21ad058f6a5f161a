"""The program for many actors in docs/deployment.md, saved as a file and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPU affinity is Linux's")


def program() -> str:
    (found,) = re.findall(
        r"<!-- many-actors -->\n```python\n(.*?)^```",
        (ROOT / "docs" / "deployment.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return found


def run(folder: Path, source: str) -> str:
    (folder / "actors.py").write_text(source)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env.pop("MEMOJAX_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "actors.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_of_two_threads_share_compiled_plans(tmp_path: Path) -> None:
    lines = sorted(run(tmp_path, program()).splitlines())
    assert lines == [f"actor {i}: 200 calls, 2 plans from disk, 0 compiled in the loop" for i in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="needs two cores"
)
def test_fewer_cores_are_fewer_threads(tmp_path: Path) -> None:
    """docs/deployment.md says that XLA sizes its thread pool by the affinity."""
    source = (
        "import os, sys, threading, numpy as np, memojax\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        "os.sched_setaffinity(0, cores[:int(sys.argv[1])])\n"
        "memojax.load(memojax.policies.bundled('acrobot_ppo')).infer_single({'obs': np.zeros(6)})\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    counts = [
        int(
            subprocess.run(
                [sys.executable, "-c", source, str(cores)],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
            ).stdout
        )
        for cores in (1, len(os.sched_getaffinity(0)))
    ]
    assert counts[0] < counts[1]
