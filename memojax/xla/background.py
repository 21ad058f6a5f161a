"""One low-priority thread for compiles in the background and for autotuning, and one for what must not wait
for these.

While a task runs, Python's switch interval is short. JAX traces in Python, and by default another thread
waits up to 5 ms for its turn, which is the time of a hundred calls.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

log: logging.Logger = logging.getLogger("memojax")
T = TypeVar("T")

_NICENESS = 10
_SWITCH_INTERVAL = 1e-4
_lock = threading.Lock()
_compiling: dict[int, threading.Thread] = {}
_exiting = False
_before_exit: list[Callable[[], None]] = []
_LAST_CALLS_SECONDS = 0.05
_EXIT_SECONDS = 30


class _Worker:
    """A thread that runs tasks in their order; it starts with the first."""

    def __init__(self, name: str):
        self._name = name
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self._owner = 0

    def submit(self, task: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        if _exiting:
            future.cancel()
            return future
        with _lock:
            if self.thread is None or not self.thread.is_alive() or self._owner != os.getpid():
                self._owner = os.getpid()
                self.thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self.thread.start()
        self._tasks.put((future, task))
        return future

    def _work(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (entry := self._tasks.get()) is not None:
            _run(*entry)
            del entry  # an idle worker must not keep the last task's objects alive

    def stop(self, seconds: float) -> None:
        """Finish the task at hand, drop the others."""
        thread = self.thread if self._owner == os.getpid() else None
        if thread is None or not thread.is_alive():
            return
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._tasks.get_nowait()
                if entry is not None:
                    entry[0].cancel()
        self._tasks.put(None)
        thread.join(timeout=seconds)

    def forked(self) -> None:
        """Forget the parent's thread and tasks, in a child."""
        self._tasks, self.thread = queue.SimpleQueue(), None


_compiles, _errands = _Worker("memojax-worker"), _Worker("memojax-errands")


def submit(task: Callable[[], T]) -> Future[T]:
    """Run `task` on the worker, after all tasks submitted before; the future can be cancelled until the task
    starts.

    While the interpreter exits, it comes back cancelled.
    """
    return _compiles.submit(task)


def submit_errand(task: Callable[[], T]) -> Future[T]:
    """As `submit`, for a task that waits for no compile, only for other errands."""
    return _errands.submit(task)


def is_worker() -> bool:
    """Whether the caller runs on one of the two threads."""
    return threading.current_thread() in (_compiles.thread, _errands.thread)


def is_compile_worker() -> bool:
    """Whether the caller runs on the thread of the compiles, which may wait for one another."""
    return threading.current_thread() is _compiles.thread


def _run(future: Future[Any], task: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        with _short_turns():
            result = task()
    except BaseException as failure:
        log.debug("background task failed: %s", failure)
        future.set_exception(failure)
    else:
        future.set_result(result)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    if before <= _SWITCH_INTERVAL:
        yield
        return
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        yield
    finally:
        if (
            abs(sys.getswitchinterval() - _SWITCH_INTERVAL) < 1e-6
        ):  # another library may have set it meanwhile
            sys.setswitchinterval(before)


class AtWork:
    """A piece of work in XLA that the interpreter waits for when it exits; for a `with` block.

    A thread that comes out of XLA's code while the interpreter takes itself apart aborts the process.
    """

    __slots__ = ("_inside",)

    def __enter__(self) -> None:
        thread = threading.current_thread()
        self._inside = threading.get_ident() in _compiling
        if _exiting and thread.daemon and not is_worker():
            # It ends the thread, without a word, and releases what that holds.
            raise SystemExit("the interpreter exits: daemon threads compile nothing any more")
        _compiling[threading.get_ident()] = thread

    def __exit__(self, *failure: object) -> None:
        if not self._inside:
            _compiling.pop(threading.get_ident(), None)


@atexit.register
def _stop() -> None:
    """Let compiles end before the interpreter goes: finish those at hand, drop the rest."""
    global _exiting
    _exiting = True
    for prepare in _before_exit:
        prepare()
    end = time.monotonic() + _EXIT_SECONDS
    for worker in (_compiles, _errands):
        worker.stop(max(0.0, end - time.monotonic()))
    here = threading.current_thread()
    while time.monotonic() < end and any(
        other is not here and other.is_alive() for other in list(_compiling.values())
    ):
        time.sleep(0.005)
    if any(
        other.daemon and other not in (here, _compiles.thread, _errands.thread)
        for other in threading.enumerate()
    ):
        time.sleep(_LAST_CALLS_SECONDS)  # calls that had found their plan come to their end


def before_exit(prepare: Callable[[], None]) -> None:
    """Call `prepare` when the interpreter exits, before compiles are waited for."""
    _before_exit.append(prepare)


def _after_fork() -> None:
    """Tasks and locks of the parent are none of the child's."""
    global _lock
    _lock = threading.Lock()
    for worker in (_compiles, _errands):
        worker.forked()
    _compiling.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
