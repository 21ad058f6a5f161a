"""Threads of the kernels: `threads=` bounds those of one policy, and callers at the same time share them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import memojax
from memojax.errors import OptionError

from .test_rewrite import file, weight

WORKERS = """
import os, sys
import numpy as np
import memojax

def workers():
    names = (open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))
    return sum(name == "memojax kernels\\n" for name in names)
"""

COUNT = """
for most in map(eval, sys.argv[2:]):
    policy = memojax.load(sys.argv[1], preload=[512], threads=most, compile_in="thread")
    for _ in range(5):
        policy(np.ones((512, 256), np.float32))
    print(workers())
"""

SHARED = """
from concurrent.futures import ThreadPoolExecutor
from memojax.kernels.library import opened

policy = memojax.load(sys.argv[1], preload=[512], compile_in="thread")
rows = np.ones((512, 256), np.float32)
for callers in (9, 4, 2):
    with opened().shared_among(callers):
        policy(rows)
    print(workers())
with opened().shared_among(4), ThreadPoolExecutor(1) as other:
    other.submit(policy, rows).result()  # other threads have no part in it
    print(workers())
"""

FRAMES = """
runtime = memojax.Runtime(threads=4)
models = [memojax.load(sys.argv[1], preload=[512], compile_in="thread") for _ in range(4)]
brains = [runtime.add_inferer(model) for model in models]
for run in (lambda: runtime.run_for_threaded(60), runtime.run_threaded, runtime.run):
    for brain in brains:
        runtime.extend(brain, [(agent, {"x": np.ones(256, np.float32)}) for agent in range(512)])
    assert sum(map(len, run().values())) == 4 * 512
    print(workers())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        # Workers stay once they exist, so each bound adds one more.
        (COUNT, ["1", "2", "3", "None"], ["0", "1", "2", "3"]),
        (SHARED, [], ["0", "0", "1", "3"]),
        (FRAMES, [], ["0", "0", "3"]),
    ],
    ids=["policy", "shared", "frames"],
)
def test_a_call_wakes_no_more_workers_than_it_may(
    tmp_path: Path, code: str, given: list[str], expected: list[str]
) -> None:
    path = tmp_path / "mlp.onnx"
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    path.write_bytes(file([gemm], {"w": weight(256, 1024), "b": weight(1024)}, {"x": [256]}, ["y"]))
    run = subprocess.run(
        [sys.executable, "-c", WORKERS + code, str(path), *given],
        env={**os.environ, "MEMOJAX_KERNELS_THREADS": "4"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stdout.split() == expected


def test_plans_with_another_bound_are_not_taken_from_the_disk() -> None:
    artifact = memojax.PlanArtifact()
    found = [
        memojax.load("acrobot_ppo", preload=[4], cache_dir=artifact, threads=most).cache_info().disk_hits
        for most in (1, 2, 1, None)
    ]
    assert found == [0, 0, 1, 0]


def test_the_bound_is_an_option_like_others() -> None:
    rows = np.ones((4, 6), np.float32)
    policy = memojax.load("acrobot_ppo", threads=1)
    np.testing.assert_allclose(policy(rows), memojax.load("acrobot_ppo")(rows), rtol=1e-6)
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(OptionError, match="threads"):
            memojax.load("acrobot_ppo", threads=wrong)  # pyright: ignore[reportArgumentType]
