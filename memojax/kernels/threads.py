"""The number of threads that a call may use."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

_MOST = 16
"""Most threads that pay for a policy's network; more wait for each other longer than they work."""


def usable_cores() -> int:
    """Cores for the calling thread: hardware threads of a core count once, and a container's quota limits."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        allowed = set(range(os.cpu_count() or 1))
    cores = len({_core_of(cpu) for cpu in allowed}) or 1
    quota = _quota()
    return max(1, min(cores, _MOST, quota if quota is not None else cores))


@functools.cache
def _core_of(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    """Whole cores that the control group grants, rounded down; None without a limit."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.floor(int(granted) / int(period))) if granted != "max" else None
    except (OSError, ValueError):
        return None
