"""The pauses between the frames of a loop, for background work that would disturb a frame."""

from __future__ import annotations

import contextlib
import threading
import time

PATIENCE_SECONDS = 0.05
"""The longest wait for the end of a frame. Without a frame for that long, no loop is at work."""

_ended = float("-inf")
_awaited = False
_gate = threading.Lock()
"""Held while a thread waits, and released by `frame_ended`. An interrupt cannot split a step of a lock."""


def frame_ended() -> None:
    """Note that a frame has ended, and let the thread in `await_pause` continue."""
    global _ended, _awaited
    _ended = time.monotonic()
    if _awaited:
        _awaited = False
        with contextlib.suppress(RuntimeError):  # the other thread waits no longer
            _gate.release()


def await_pause() -> None:
    """Wait for the end of a frame, if frames follow each other now; one thread at a time may call this."""
    global _awaited
    if time.monotonic() - _ended > PATIENCE_SECONDS:
        return
    _gate.acquire(blocking=False)
    _awaited = True
    _gate.acquire(timeout=PATIENCE_SECONDS)
    _awaited = False
