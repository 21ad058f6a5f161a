"""One low-priority thread for compiles in the background and for autotuning.

While a task runs, Python's switch interval is short. JAX traces in Python, and by default another thread waits up to 5 ms for its
turn, which is the time of a hundred calls.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

log: logging.Logger = logging.getLogger("memojax")
T = TypeVar("T")

_NICENESS = 10
_SWITCH_INTERVAL = 1e-4
_lock = threading.Lock()
_tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_owner = 0


def submit(task: Callable[[], T]) -> Future[T]:
    """Run `task` on the worker, after all tasks submitted before; the future can be cancelled until the task starts."""
    future: Future[T] = Future()
    _ensure_running()
    _tasks.put((future, task))
    return future


def is_worker() -> bool:
    """Whether the caller runs on the worker."""
    return threading.current_thread() is _thread


def _ensure_running() -> None:
    global _thread, _owner
    with _lock:
        if _thread is None or not _thread.is_alive() or _owner != os.getpid():
            _owner = os.getpid()
            _thread = threading.Thread(target=_work, name="memojax-worker", daemon=True)
            _thread.start()


def _work() -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    while (entry := _tasks.get()) is not None:
        _run(*entry)
        del entry  # an idle worker must not keep the last task's objects alive


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


@atexit.register
def _stop() -> None:
    """Finish the task at hand and drop the rest: XLA must not compile while the interpreter shuts down."""
    thread = _thread
    if thread is None or not thread.is_alive() or _owner != os.getpid():
        return
    with contextlib.suppress(queue.Empty):
        while True:
            entry = _tasks.get_nowait()
            if entry is not None:
                entry[0].cancel()
    _tasks.put(None)
    thread.join(timeout=30)
