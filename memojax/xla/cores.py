"""Pin a process to cores, and divide cores among the processes of one user."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DeviceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log: logging.Logger = logging.getLogger("memojax")

_claimed: dict[int, int] = {}
"""Core -> open lock file. The system releases the lock when the process ends, however it ends."""


def pin_cores(cores: int | Iterable[int]) -> tuple[int, ...]:
    """Run this process, with the threads that XLA and the kernels start later, on some cores only.

    Call it before you load the first policy: XLA then sizes its thread pool by the cores that it sees.

    >>> import os
    >>> usable = sorted(os.sched_getaffinity(0))
    >>> memojax.pin_cores(usable) == tuple(usable)
    True

    Args:
        cores: the numbers of the cores, or how many cores to take. In the second case they are cores that no
            other process of yours has claimed by this function.

    Returns:
        The cores; empty if nothing was pinned, since too few are unclaimed or the system has no affinity.

    Raises:
        DeviceError: a core does not exist, or this process may not run on it.
    """
    if not hasattr(os, "sched_setaffinity"):
        log.warning("this system cannot pin cores: nothing is pinned")
        return ()
    counted = hasattr(cores, "__index__")
    if isinstance(cores, bool) or (counted and int(cores) < 1):  # pyright: ignore[reportArgumentType]
        raise DeviceError(f"cores is {cores!r}, expected how many cores, or the numbers of the cores")
    if counted:
        chosen = _claim(int(cores))  # pyright: ignore[reportArgumentType]
        if not chosen:
            log.warning("fewer than %s cores are unclaimed: nothing is pinned", cores)
            return ()
    else:
        chosen = tuple(sorted(set(cores)))  # pyright: ignore[reportArgumentType]
    allowed = os.sched_getaffinity(0)
    if not chosen or not set(chosen) <= allowed:
        raise DeviceError(
            f"cores is {list(chosen)}, but this process may run on the cores {sorted(allowed)} only"
        )
    _keep_on(chosen)
    return chosen


@contextlib.contextmanager
def threads_for(cores: int) -> Iterator[None]:
    """Let XLA and the kernels count only `cores` cores if they start inside; no thread stays pinned."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    if not 0 < cores < len(allowed):
        yield
        return
    ordered = sorted(allowed)
    first = os.getpid() % len(ordered)  # Processes that start together take turns.
    _keep_on((ordered[first:] + ordered[:first])[:cores])
    try:
        yield
    finally:
        _keep_on(allowed)


def _keep_on(cores: Iterable[int]) -> None:
    """Let all threads of this process run on `cores` only."""
    cores = set(cores)
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task), cores)


def _claim(count: int) -> tuple[int, ...]:
    """Claim `count` cores until this process ends; empty if fewer are unclaimed."""
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
    """The folder of the locks, which only this user can change; None if there is no such folder."""
    folder = Path(tempfile.gettempdir()) / f"memojax-cores-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if own else None
