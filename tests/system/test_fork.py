"""A forked child gets an error, never a hang; it works if its parent has not used memojax."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")


def run(script: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_used_inferer_refuses_in_the_child() -> None:
    out = run("""
        import os, numpy as np, memojax
        policy = memojax.load("memojax/policies/acrobot_ppo.onnx", preload=[1])
        x = {"obs": np.zeros((1, 6), np.float32)}
        policy.infer_arrays(x)
        child = os.fork()
        if child == 0:
            try:
                policy.infer_arrays(x)
            except memojax.errors.ForkError as error:
                print("refused:", error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", policy.infer_arrays(x)["logits"].shape)
    """)
    assert "refused" in out
    assert "spawn" in out
    assert "parent (1, 3)" in out


def test_a_child_may_load_a_model_that_the_parent_did_not() -> None:
    out = run("""
        import os, numpy as np, memojax
        child = os.fork()
        if child == 0:
            policy = memojax.load("memojax/policies/acrobot_ppo.onnx")
            answer = policy.infer_arrays({"obs": np.zeros((2, 6), np.float32)})["logits"]
            print("child", answer.shape, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """)
    assert "child (2, 3)" in out


def test_nothing_hangs_in_the_child() -> None:
    out = run("""
        import os, numpy as np, memojax
        path, x = "memojax/policies/acrobot_ppo.onnx", {"obs": np.zeros((1, 6), np.float32)}
        once, asset = memojax.OneShot(path), memojax.to_stablehlo(path)
        # Without a proof from its trace, rows are told apart by trial runs.
        typed = memojax.TypedModel.from_function(
            lambda w, x: {"y": x["obs"] - x["obs"].mean(0)}, np.float32(1), {"obs": ((6,), np.float32)}
        )
        once(x)
        calls = {
            "run": lambda: memojax.run(path, x), "ready": lambda: once(x),
            "export": lambda: memojax.to_stablehlo(path),
            "asset": lambda: memojax.load(asset), "probe": lambda: typed.mixing_outputs(),
        }
        for name, call in calls.items():
            child = os.fork()
            if child == 0:
                try:
                    call()
                except memojax.errors.ForkError:
                    print(name, "refused", flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """)
    assert out.split() == [
        "run",
        "refused",
        "ready",
        "refused",
        "export",
        "refused",
        "asset",
        "refused",
        "probe",
        "refused",
    ]


def test_a_pool_of_forked_workers_passes_the_error_to_its_owner() -> None:
    out = run("""
        import multiprocessing, numpy as np, memojax
        policy = memojax.load("memojax/policies/acrobot_ppo.onnx", preload=[1])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            try:
                pool.apply_async(policy.infer_arrays, ({"obs": np.zeros((1, 6), np.float32)},)).get(60)
            except memojax.errors.ForkError as error:
                print("refused:", error)
    """)
    assert "refused" in out
