"""One low-priority thread for work that nobody waits for: compiles in the background, autotuning."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

log = logging.getLogger("memojax")
T = TypeVar("T")

_NICENESS = 10
_lock = threading.Lock()
_tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_owner = 0


def submit(task: Callable[[], T]) -> Future[T]:
    """Run `task` on the worker, after what was submitted before it; the future can be cancelled until it starts."""
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
        _do(*entry)
        del entry  # a model should not live on because its task was the last


def _do(future: Future[Any], task: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except BaseException as failure:
        log.debug("background task failed: %s", failure)
        future.set_exception(failure)


@atexit.register
def _stop() -> None:
    """XLA must not be compiling while the interpreter takes itself apart: finish the task at hand, drop the rest."""
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
