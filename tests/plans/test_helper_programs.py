"""The compile helper in programs of their own: their ends, signals, forks, handles and folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ..helpers import mostly_slow
from .test_helper import until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the helper process is POSIX's")


def _run(folder: Path, script: str, **options: Any) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


SCRIPT = """
    import os, signal, sys, time, numpy as np
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's "&"
    open(__file__ + ".log", "a").write("imported\\n")
    import memojax
    from memojax.plans.helper import helper
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
    policy.preload([2], background=True).wait(60)
    print(helper.pid, flush=True)
"""


IGNORER = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
REAPER = """
def reap(*given):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
"""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it looks into /proc")
@pytest.mark.parametrize("end", mostly_slow(["kill"], ["exit", "ctrl-c", "amid"]))
def test_the_helper_needs_no_main_guard_and_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    last = {
        "exit": "",
        "amid": "policy.preload(range(3, 300), background=True); time.sleep(0.3)",
    }.get(end, "time.sleep(60)")
    process = _run(tmp_path, SCRIPT + "    " + last, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if end == "kill":
        assert _lives(pid)
        process.kill()
    elif end == "ctrl-c":  # A terminal sends it to the whole group.
        os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    until(lambda: not _lives(pid))
    assert (tmp_path / "script.py.log").read_text() == "imported\n"
    assert error.count("Traceback") == (end == "ctrl-c")


@pytest.mark.parametrize(
    ("settings", "restored"),
    [
        ("signal.signal(signal.SIGPIPE, signal.SIG_DFL)", 1),
        ("signal.signal(signal.SIGPIPE, lambda *given: print('called', flush=True))", 1),
        *[pytest.param(code, 0, marks=pytest.mark.slow) for code in (IGNORER, REAPER)],
    ],
    ids=["pipe", "pipe-handler", "child-ignored", "child-reaped"],
)
def test_signals_of_the_program_and_a_dead_helper(tmp_path: Path, settings: str, restored: int) -> None:
    """Programs on a command line restore SIGPIPE, and servers wait for all of their children."""
    script = (
        SCRIPT
        + textwrap.indent(textwrap.dedent(settings), "    ")
        + """
    for n in range(3, 6):
        pid = helper.pid
        if pid is not None:
            os.kill(pid, 9)
            while helper.pid is not None:
                time.sleep(0.01)
        policy.preload([n], background=True).wait(60)
    helper.stop()
    print(len(policy.plans()), helper.crashes, signal.SIGPIPE in signal.pthread_sigmask(0, ()))
    """
    )
    output, error = _run(tmp_path, script).communicate(timeout=100)
    # An unknown exit status counts as an orderly end, until the next process ends, too.
    assert output.split()[1:] == ["5", str(2 * restored), "False"], output + error


FORKS = """
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(3) as pool:  # as gymnasium and stable-baselines3 do
        handle = policy.preload(range(3, 6), background=True)
        assert sum(pool.map(abs, range(100))) == 4950
        handle.wait(60)
"""
FOLDER = """
    folder = __file__ + ".folder"
    os.mkdir(folder)
    os.chdir(folder)
    os.rmdir(folder)
    helper.stop()
    policy.preload(range(3, 6), background=True).wait(60)
"""
HANDLES = """
    answers = os.fdopen(os.dup(1), "w")
    helper.stop()
    for handle in range(3):
        os.close(handle)
    policy.preload(range(3, 6), background=True).wait(60)
    sys.stdout = answers
"""
INPUT = """
    policy.preload(range(3, 6), background=True).wait(60)
    assert sys.stdin.read() == "all of it"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "middle", [FORKS, FOLDER, HANDLES, INPUT], ids=["forks", "folder", "handles", "input"]
)
def test_the_helper_serves_unusual_programs(tmp_path: Path, middle: str) -> None:
    last = """
    print(len(policy.plans()), helper.crashes, helper.plans, helper.pid is not None, flush=True)
    """
    process = _run(tmp_path, SCRIPT + middle + last, stdin=subprocess.PIPE)
    output, error = process.communicate("all of it", timeout=100)
    assert output.split()[1:] == ["5", "0", "4", "True"], output + error
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it looks into /proc")
def test_a_forked_child_keeps_nothing_alive(tmp_path: Path) -> None:
    script = (
        SCRIPT
        + """
    if os.fork() == 0:
        assert helper.pid is None
        time.sleep(60)
    os.kill(os.getpid(), 9)
    """
    )
    process = _run(tmp_path, script, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        until(lambda: not _lives(pid))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
