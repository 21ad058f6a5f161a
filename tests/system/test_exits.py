"""Forked pools, Ctrl-C while the command line starts, and exits amid compiles: never a hang or an abort."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import memojax
from memojax.ops._common import nx

from ..helpers import mostly_slow

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX's")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=ROOT)


@pytest.mark.slow
@posix
def test_every_kind_of_inferer_that_is_sent_into_a_forked_pool_raises_there() -> None:
    done = run("""
        import multiprocessing, numpy as np, memojax
        M = memojax.policies.bundled
        path, lstm = M("acrobot_ppo"), M("recurrent_lstm")
        build = memojax.InfererBuilder(path)
        asset = memojax.load(memojax.to_stablehlo(path))

        def double(weight, x):
            return weight * x["obs"]

        def use(inferer):
            if hasattr(inferer, "execute"):
                inferer.push(0, {"obs": np.zeros(6)})
                return inferer.execute()
            width = inferer.input_shapes()[0][1][0]
            return inferer.infer_arrays({"obs": np.zeros((1, width), np.float32)})

        kinds = {
            "basic": build.build_basic(), "fixed": build.build_fixed([1, 2]),
            "dynamic": build.build_dynamic(4),
            "memoizing": build.build_memoizing([1]), "pad": memojax.load(path, preload=[2], on_miss="pad"),
            "asset": asset, "fixed asset": memojax.FixedBatchInferer(asset.typed, [1]),
            "tracker": memojax.RecurrentTracker.wrap(memojax.load(lstm)),
            "asset's tracker": memojax.RecurrentTracker.wrap(memojax.load(memojax.to_stablehlo(lstm))),
            "batched": build.build_memoizing().into_batched(),
            "stateful": asset.into_stateful(memojax.BaseWrapper()),
            "function": memojax.load(
                memojax.TypedModel.from_function(double, np.float32(2), {"obs": ((6,), np.float32)})),
        }
        with multiprocessing.get_context("fork").Pool(2) as pool:
            calls = {name: pool.apply_async(use, (inferer,)) for name, inferer in kinds.items()}
            calls["plans"] = pool.apply_async(kinds["memoizing"].plans)
            for name, call in calls.items():
                try:
                    print(name, call.get(60))
                except memojax.errors.ForkError:
                    pass
        print("done")
    """)
    assert done.stdout == "done\n", done.stdout + done.stderr


@posix
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_ctrl_c_while_the_command_line_is_imported_is_quiet(seconds: float) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "memojax", "ops"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "memojax.xla.quiet_start" in line:
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert "Traceback" not in error
    assert process.returncode in (0, -signal.SIGINT, 130)


@posix
def test_another_program_keeps_its_handler() -> None:
    done = run(
        """
        import signal
        before = signal.getsignal(signal.SIGINT)
        import memojax
        print(signal.getsignal(signal.SIGINT) is before)
    """,
        "-m",
        "memojax",
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("seconds", mostly_slow([0.5], [0.2, 0.9]))
def test_an_exit_amid_compiles_is_clean(seconds: float) -> None:
    done = run(
        """
        import sys, threading, time, numpy as np, memojax
        path, rows = memojax.policies.bundled("acrobot_ppo"), np.zeros((4000, 6), np.float32)
        policy, runtime = memojax.load(path), memojax.Runtime()

        def compile_for_ever():
            for n in range(1, 4000):
                policy.infer_arrays({"obs": rows[:n]})

        brain = runtime.add_inferer(memojax.load(path))
        for n in (1, 2, 3, 4):
            runtime.extend(brain, {agent: {"obs": rows[0]} for agent in range(n)})
            runtime.run()
        threading.Thread(target=compile_for_ever, daemon=True).start()
        runtime.replace_inferer(brain, memojax.load(path))
        policy.preload(range(300, 330), background=True)
        time.sleep(float(sys.argv[1]))
    """,
        seconds,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr


@pytest.mark.parametrize("times", mostly_slow([1], [4]))
def test_an_exit_amid_swaps_is_clean(times: int) -> None:
    """The exit races with a swap, so the whole suite tries several times."""
    for _ in range(times):
        done = run("""
            import threading, time, numpy as np, memojax
            policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), weights="argument")
            rows = {"obs": np.ones((4, 6), np.float32)}
            policy.infer_arrays(rows)
            sources = policy.params, {name: 2 * value for name, value in policy.params.items()}

            def swap_for_ever():
                while True:
                    for source in sources:
                        policy.update_params(source)

            def call_for_ever():
                while True:
                    policy.infer_arrays(rows)

            for work in (swap_for_ever, call_for_ever):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.2)
        """)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not done.stderr


def test_functions_of_operators_pickle() -> None:
    assert pickle.loads(pickle.dumps(nx.where)) is nx.where
    assert isinstance(
        pickle.loads(pickle.dumps(memojax.load(memojax.policies.bundled("acrobot_ppo")))), memojax.Inferer
    )
