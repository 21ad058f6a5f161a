"""Cores of a process: claimed among processes of one user, and pinned before the CPU client starts."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import DeviceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log: logging.Logger = logging.getLogger("memojax")

_claimed: dict[int, int] = {}
"""Core -> open lock file; the system drops the lock when the process ends, however it ends."""


def pin_cores(cores: int | Iterable[int]) -> tuple[int, ...]:
    """Run this process on some cores only: the threads that it has, and those that XLA and the kernels start
    later.

    Call it before the first policy is loaded: XLA sizes its pool by the cores that it sees then.

    >>> import os
    >>> usable = sorted(os.sched_getaffinity(0))
    >>> memojax.pin_cores(usable) == tuple(usable)
    True

    Args:
        cores: numbers of cores; or how many, which are taken from those that no other process of yours has
            claimed.

    Returns:
        The cores; empty where nothing was pinned, because too few were unclaimed or the system has no
        affinity.

    Raises:
        DeviceError: no such core, or this process may not run on it.
    """
    if not hasattr(os, "sched_setaffinity"):
        log.warning("cores cannot be pinned on this system")
        return ()
    if isinstance(cores, bool) or (hasattr(cores, "__index__") and int(cores) < 1):  # pyright: ignore[reportArgumentType]
        raise DeviceError(f"cores is a positive number of cores, or their numbers, got {cores!r}")
    if hasattr(cores, "__index__"):
        chosen = _claim(int(cores))  # pyright: ignore[reportArgumentType]
        if not chosen:
            log.warning("fewer than %s cores are unclaimed: nothing is pinned", cores)
            return ()
    else:
        chosen = tuple(sorted(set(cores)))  # pyright: ignore[reportArgumentType]
    allowed = os.sched_getaffinity(0)
    if not chosen or not set(chosen) <= allowed:
        raise DeviceError(
            f"this process may run on the cores {sorted(allowed)}, and was given {list(chosen)}"
        )
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task), chosen)
    return chosen


def _claim(count: int) -> tuple[int, ...]:
    """`count` cores that this process holds from now on; none if there are not as many."""
    folder = _folder()
    if folder is None or fcntl is None:
        return ()
    taken = {core: _claimed[core] for core in sorted(_claimed)[:count]}
    for core in sorted(os.sched_getaffinity(0) - set(_claimed)):
        if len(taken) == count:
            break
        handle = os.open(
            folder / f"core-{core}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
        else:
            taken[core] = handle
    for core in taken.keys() if len(taken) < count else ():
        if core not in _claimed:
            os.close(taken[core])
    if len(taken) < count:
        return ()
    _claimed.update(taken)
    return tuple(sorted(taken))


def _folder() -> Path | None:
    """Where the locks are: a folder of this user alone; None where somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"memojax-cores-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if own else None
