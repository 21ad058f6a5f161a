"""Decides whether threads pay: it times frames with and without them, and keeps the faster way."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median
from typing import final

_TRIALS = 3
"""Frames of each way before a choice, so a compile in one of them decides nothing."""

_AGAIN = 64
_SELDOM = 256
"""Frames until the other way is tried again, which notices changes: at first, and at most."""

_WORTH = 0.9
"""Threads must take less than this share of the time: they also cost what no frame's time shows, in caches
and in calls of other threads."""

_HOPELESS = 1.25
"""A trial ends with a frame that takes this many times as long as usual."""

_KEPT = 5
_MOST_LOADS = 64


@dataclass
class _Load:
    """What is known of one load.

    Attributes:
        threaded: the way of the next frame.
        chosen: the way between trials; None before the first choice.
        left: frames until the trial ends, or until the next one begins.
        pause: frames between two trials.
        seconds: the last frames without threads, and with them.
    """

    threaded: bool = True
    chosen: bool | None = None
    left: int = _TRIALS
    pause: int = _AGAIN
    seconds: tuple[deque[float], deque[float]] = field(
        default_factory=lambda: (deque(maxlen=_KEPT), deque(maxlen=_KEPT))
    )

    def note(self, threaded: bool, seconds: float) -> None:
        """Record a frame, and choose the way of the next one."""
        alone, together = self.seconds
        self.seconds[threaded].append(seconds)
        if threaded != self.threaded:  # Another caller's frame began before the last change of the way.
            return
        self.left -= 1
        if threaded == self.chosen:
            if self.left <= 0:
                self.try_other()
        elif self.is_hopeless:
            self.choose(not threaded)
        elif self.left <= 0:
            if alone:
                self.choose(median(together) < _WORTH * median(alone))
            else:
                self.try_other()

    def try_other(self) -> None:
        """Begin to time the way that is not in use, without what was measured long ago."""
        self.threaded = not self.threaded
        self.seconds[self.threaded].clear()
        self.left = _TRIALS

    def choose(self, chosen: bool) -> None:
        """Keep to one way until the next trial, which comes later if nothing has changed."""
        self.pause = min(2 * self.pause, _SELDOM) if chosen == self.chosen else _AGAIN
        self.threaded = self.chosen = chosen
        self.left = self.pause

    @property
    def is_hopeless(self) -> bool:
        """Whether the last frame of a trial was so slow that more of them would only cost time."""
        usual = self.seconds[not self.threaded]
        return self.chosen is not None and self.seconds[self.threaded][-1] > _HOPELESS * median(usual)


@final
class Pace:
    """Chooses between one thread and several, separately for each load.

    Both ways are timed one right after the other, because the machine may have been slower some time ago. A
    load is any key that the caller chooses; the least recently seen loads are forgotten.
    """

    def __init__(self) -> None:
        self._loads: OrderedDict[Hashable, _Load] = OrderedDict()
        self._lock = threading.Lock()

    def threads_pay(self, load: Hashable) -> bool:
        """Whether the next frame of `load` should run on several threads."""
        with self._lock:
            known = self._loads.get(load)
            if known is None:
                known = self._loads[load] = _Load()
                if len(self._loads) > _MOST_LOADS:
                    self._loads.popitem(last=False)
            self._loads.move_to_end(load)
            return known.threaded

    def note(self, load: Hashable, threaded: bool, seconds: float) -> None:
        """Record that a frame of `load` took `seconds`."""
        with self._lock:
            if (known := self._loads.get(load)) is not None:
                known.note(threaded, seconds)
