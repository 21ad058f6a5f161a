"""Plans that travel as a value, and pinned cores: the base of memojax.ray, without Ray."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import memojax
from memojax.errors import DeviceError, MissingPackageError

several_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="claims of cores need an affinity of two or more",
)


def test_a_pickled_policy_compiles_nothing() -> None:
    policy = memojax.load("acrobot_ppo", preload=[4], cache_dir=memojax.PlanArtifact())
    copy = pickle.loads(pickle.dumps(policy))
    rows = np.ones((4, 6), np.float32)
    np.testing.assert_array_equal(copy(rows), policy(rows))
    assert copy.cache_info().disk_hits == 1


def test_another_model_finds_nothing_in_the_artifact() -> None:
    artifact = memojax.PlanArtifact()
    memojax.load("acrobot_ppo", preload=[4], cache_dir=artifact)
    other = memojax.load("pendulum_ppo", preload=[4], cache_dir=artifact)
    assert other.cache_info().disk_hits == 0
    assert len(artifact) == 2


CORES = """
import json, os, threading, memojax
pinned = memojax.pin_cores(1)
memojax.load("acrobot_ppo", preload=[4])
tasks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
masks = sorted({tuple(mask) for mask in tasks})
print(json.dumps({"pinned": pinned, "masks": masks, "threads": len(tasks)}), flush=True)
input()
"""


@several_cores
def test_two_processes_get_cores_of_their_own(tmp_path: Path) -> None:
    # The claims lie in a folder of the user: another process on this machine could hold all cores.
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CORES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own
        )
        for _ in range(2)
    ]
    try:
        said = [json.loads(worker.stdout.readline()) for worker in workers]
    finally:
        for worker in workers:
            worker.communicate("\n")
    assert all(len(one["pinned"]) == 1 and one["masks"] == [one["pinned"]] for one in said)
    assert said[0]["pinned"] != said[1]["pinned"]


THREADS = """
import os, sys, memojax
from memojax.xla.cores import threads_for
allowed = os.sched_getaffinity(0)
with threads_for(int(sys.argv[1])):
    memojax.load("acrobot_ppo", preload=[4])
tasks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
assert all(task == allowed for task in tasks), tasks
print(len(tasks))
"""


@pytest.mark.slow
@several_cores
def test_threads_for_few_cores_are_fewer_and_not_pinned() -> None:
    few, all_ = (
        int(subprocess.check_output([sys.executable, "-c", THREADS, cores], text=True))
        for cores in ("1", "0")
    )
    assert few < all_


@pytest.mark.parametrize("cores", [0, [], [100_000], True])
def test_impossible_cores_are_refused(cores: object) -> None:
    with pytest.raises(DeviceError):
        memojax.pin_cores(cores)


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import memojax.ray

    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (memojax.ray.evaluate, memojax.ray.Predictor, memojax.ray.deployment):
        with pytest.raises(MissingPackageError, match=r"memojax\[ray\]"):
            call("acrobot_ppo")
