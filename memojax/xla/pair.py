"""Two CPU clients of one thread each, for two executables that run at the same time on two cores.

Linux wakes a thread on the core that it left, which after a while is the core of the thread that wakes it.
Two threads then take turns on one core while the other core is idle, until the system's next balance some
milliseconds later. So the threads of the second client may run on every core but the caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

log: logging.Logger = logging.getLogger("memojax")

_lock = threading.Lock()


@dataclass(frozen=True)
class Pair:
    """Two devices of the same CPU.

    Attributes:
        here: runs an executable on the calling thread.
        beside: runs it on a thread of its own, while the caller goes on.
        part: keeps the threads of `beside` away from the core of the caller; takes 0.3 us if both stayed
            where they were.
    """

    here: jax.Device
    beside: jax.Device
    part: Callable[[], None]


def pair() -> Pair | None:
    """The pair of this process; None if the system or this jaxlib offers none."""
    with _lock:
        return _pair()


@functools.cache
def _pair() -> Pair | None:
    try:
        core_of_caller = ctypes.CDLL(None).sched_getcpu
        here, _ = _client(asynchronous=False)
        beside, threads = _client(asynchronous=True)
    except (ImportError, AttributeError, TypeError, RuntimeError, OSError) as cause:
        log.info("no pair of clients for two cores: %s", cause)
        return None
    return Pair(here, beside, _parted(threads, core_of_caller))


def _client(*, asynchronous: bool) -> tuple[jax.Device, list[int]]:
    """A device of a new client, whose pool has one thread, and the client's threads."""
    from jaxlib import xla_client

    # XLA counts the cores of the thread that makes a client, and new threads inherit them. So a thread that
    # something else starts meanwhile is known by its cores.
    allowed, before = os.sched_getaffinity(0), _tasks()
    one = {min(allowed)}
    os.sched_setaffinity(0, one)
    try:
        device = xla_client.make_cpu_client(asynchronous=asynchronous).devices()[0]
    finally:
        os.sched_setaffinity(0, allowed)
    threads = [task for task in _tasks() - before if _cores_of(task) == one]
    _keep(threads, allowed)
    return device, threads


def _parted(threads: Sequence[int], core_of_caller: Callable[[], int]) -> Callable[[], None]:
    last: Any = None

    def part() -> None:
        nonlocal last
        core = core_of_caller()
        if core == last:
            return
        allowed = os.sched_getaffinity(0)
        _keep(threads, allowed - {core} or allowed)
        last = core

    return part


def _keep(threads: Sequence[int], cores: set[int]) -> None:
    for thread in threads:
        with contextlib.suppress(OSError):  # a thread that has ended
            os.sched_setaffinity(thread, cores)


def _tasks() -> set[int]:
    return set(map(int, os.listdir("/proc/self/task")))


def _cores_of(task: int) -> set[int]:
    try:
        return os.sched_getaffinity(task)
    except OSError:
        return set()
