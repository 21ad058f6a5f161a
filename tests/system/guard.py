"""Run files through memojax's doors in a process of their own, with limits on time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BAD = ("wrong", "foreign", "hang", "memory", "crash")
"""Outcomes that no file may have."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a file at a door.

    `kind` is "right", "typed", "wrong", "foreign", "hang", "memory" or "crash".
    """

    door: str
    kind: str
    message: str
    seconds: float
    peak: int

    @property
    def bad(self) -> bool:
        """Whether the outcome is one that no file may have."""
        return self.kind in BAD

    def __str__(self) -> str:
        return f"{self.door:7} {self.kind:8} {self.seconds:6.2f} s {self.peak >> 20:5} MiB  {self.message}"


class Guard:
    """Runs doors in a child process, which is replaced once it exceeds a limit or has grown.

    Args:
        seconds: processor time for one door. On the clock it may take six times as long, since the machine
            may be busy.
        peak: bytes that the child may hold at any time, with its libraries.
        keep: bytes at which a child is replaced between two files.
    """

    def __init__(self, seconds: float = 10.0, peak: int = 1536 << 20, keep: int = 700 << 20):
        self.seconds, self.peak, self.keep = seconds, peak, keep
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def outcomes(self, path: str | Path, doors: Iterable[str]) -> list[Outcome]:
        """The outcome of a file at each door."""
        return [self.outcome(path, door) for door in doors]

    def outcome(self, path: str | Path, door: str) -> Outcome:
        """The outcome of a file at one door."""
        child = self._ready()
        assert child.stdin is not None
        assert child.stdout is not None
        _forget_peak(child.pid)
        begun, worked = time.monotonic(), _processor_seconds(child.pid)
        child.stdin.write(json.dumps([door, os.fspath(path)]) + "\n")
        child.stdin.flush()
        highest = 0
        while not select.select([child.stdout], [], [], 0.02)[0]:
            highest = max(highest, _memory(child.pid, "VmHWM"))
            busy, waited = _processor_seconds(child.pid) - worked, time.monotonic() - begun
            hangs = busy > self.seconds or waited > 6 * self.seconds
            kind = "memory" if highest > self.peak else "hang" if hangs else ""
            if kind:
                self._stop()
                return Outcome(door, kind, "", time.monotonic() - begun, highest)
        highest = max(highest, _memory(child.pid, "VmHWM"))
        line = child.stdout.readline()
        if not line:
            code = child.wait()
            self._stop()
            return Outcome(door, "crash", f"the process ended with {code}", time.monotonic() - begun, highest)
        answer = json.loads(line)
        if highest > self.peak:
            return Outcome(door, "memory", answer["message"], answer["seconds"], highest)
        return Outcome(door, answer["kind"], answer["message"], answer["seconds"], highest)

    def _ready(self) -> subprocess.Popen[str]:
        if self._child is not None and _memory(self._child.pid, "VmRSS") > self.keep:
            self._stop()
        if self._child is None:
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.system.doors"],
                cwd=ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert self._child.stdout is not None
            assert self._child.stdout.readline() == "ready\n", "the child process did not start"
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._child = None


def _memory(pid: int, what: str) -> int:
    """Memory of a process in bytes, from the kernel's status; 0 if unknown."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(what):
            return int(line.split()[1]) << 10
    return 0


def _processor_seconds(pid: int) -> float:
    """Processor time of a process in seconds; 0 if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _forget_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    """`python -m tests.system.guard FILE...`: print the outcome of each file at every door."""
    from .doors import DOORS

    with Guard() as guard:
        for path in sys.argv[1:]:
            print(path)
            for outcome in guard.outcomes(os.path.abspath(path), DOORS):
                print("  ", outcome, flush=True)


if __name__ == "__main__":
    main()
