"""Two low-priority threads: one for background compiles and autotuning, one for tasks that wait for neither.

While a task runs, Python's switch interval is short. JAX traces in Python, and by default another thread
waits up to 5 ms for its turn, which is the time of a hundred calls.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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
"""At exit, the longest time to wait for running compiles."""


class _Worker:
    """A thread that runs tasks in order; it starts with the first task."""

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
            _collect_young()

    def stop(self, seconds: float) -> None:
        """Drop the tasks that wait, and let the running one finish."""
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
        """In a forked child, forget the parent's thread and tasks."""
        self._tasks, self.thread = queue.SimpleQueue(), None


_compiles, _errands = _Worker("memojax-worker"), _Worker("memojax-errands")


def submit(task: Callable[[], T]) -> Future[T]:
    """Run `task` on the compile worker, after all earlier tasks; the future can be cancelled until it starts.

    While the interpreter exits, the future is cancelled at once.
    """
    return _compiles.submit(task)


def submit_errand(task: Callable[[], T]) -> Future[T]:
    """Run `task` on the errand worker, where it does not wait for compiles; see `submit`."""
    return _errands.submit(task)


def is_worker() -> bool:
    """Whether the caller runs on one of the two worker threads."""
    return threading.current_thread() in (_compiles.thread, _errands.thread)


def is_compile_worker() -> bool:
    """Whether the caller runs on the compile worker."""
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


def _collect_young() -> None:
    """Collect garbage here: after the many objects of a compile, it is due in the next call of any thread."""
    if gc.isenabled():
        gc.collect(int(gc.get_count()[1] > gc.get_threshold()[1] > 0))


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
        # Another library may have set it meanwhile.
        if abs(sys.getswitchinterval() - _SWITCH_INTERVAL) < 1e-6:
            sys.setswitchinterval(before)


class AtWork:
    """A `with` block around work in XLA, for which the interpreter waits when it exits.

    A thread that returns from XLA's code while the interpreter shuts down aborts the process.
    """

    __slots__ = ("_inside",)

    def __enter__(self) -> None:
        thread = threading.current_thread()
        self._inside = threading.get_ident() in _compiling
        if _exiting and thread.daemon and not is_worker():
            # SystemExit ends the thread silently, and releases its locks.
            raise SystemExit("the interpreter exits, so daemon threads cannot compile any more")
        _compiling[threading.get_ident()] = thread

    def __exit__(self, *failure: object) -> None:
        if not self._inside:
            _compiling.pop(threading.get_ident(), None)


@atexit.register
def _stop() -> None:
    """Before the interpreter shuts down, drop the tasks that wait, and wait for the running compiles."""
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
        time.sleep(_LAST_CALLS_SECONDS)  # for calls of daemon threads that are in an executable


def before_exit(prepare: Callable[[], None]) -> None:
    """Call `prepare` when the interpreter exits, before it waits for compiles."""
    _before_exit.append(prepare)


def _after_fork() -> None:
    """In a forked child, forget the parent's tasks and locks."""
    global _lock
    _lock = threading.Lock()
    for worker in (_compiles, _errands):
        worker.forked()
    _compiling.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
