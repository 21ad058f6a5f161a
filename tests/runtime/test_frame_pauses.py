"""Background work waits for the pause after a frame, and for no longer than a bounded time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import memojax
from memojax.xla import frames

POLICY = memojax.policies.bundled("acrobot_ppo")


class Gate:
    """A lock that records whether each wait for it ended by a release."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.released: list[bool] = []
        self.waits = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking:
            return self.lock.acquire(blocking=False)
        self.waits.set()
        self.released.append(self.lock.acquire(timeout=timeout))
        return self.released[-1]

    def release(self) -> None:
        self.lock.release()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    monkeypatch.setattr(frames, "_gate", made)
    monkeypatch.setattr(frames, "_awaited", False)
    monkeypatch.setattr(frames, "PATIENCE_SECONDS", 60.0)
    return made


def test_without_frames_nothing_waits(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_ended", float("-inf"))
    frames.await_pause()
    assert gate.released == []


@pytest.mark.parametrize("way", ["run", "run_for", "run_threaded", "run_for_threaded"])
def test_background_work_waits_for_the_end_of_a_frame(gate: Gate, way: str) -> None:
    runtime = memojax.Runtime()
    brain = runtime.add_inferer(memojax.load(POLICY, preload=[1]))
    frames.frame_ended()  # a loop is at work
    waiter = threading.Thread(target=frames.await_pause)
    waiter.start()
    assert gate.waits.wait(60)
    assert waiter.is_alive()
    runtime.push(brain, 0, {"obs": np.zeros(6)})
    answers = getattr(runtime, way)(*([60.0] if "for" in way else []))
    waiter.join(60)
    assert not waiter.is_alive()
    assert gate.released == [True]
    assert list(answers[brain]) == [0]


def test_a_wait_without_a_frame_ends(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    frames.frame_ended()
    real, limits = gate.acquire, list[float]()

    def acquire(blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            limits.append(timeout)
            timeout = 0.001
        return real(blocking, timeout)

    monkeypatch.setattr(gate, "acquire", acquire)
    for _ in range(2):
        frames.await_pause()
        frames.frame_ended()  # nobody waits any more, which is no error
    assert limits == [60.0, 60.0]
    assert gate.released == [False, False]
