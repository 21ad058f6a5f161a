"""Decides whether threads pay: it times frames with and without them, and keeps the faster way."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import final

_TRIALS = 3
"""Frames of each way before the choice, so a compile in one of them decides nothing."""

_AGAIN = 64
_SELDOM = 256
"""Frames until the other way is tried again, which notices changes: at first, and at most."""

_WORTH = 0.9
"""Threads must take less than this share of the time: they also cost what no frame's time shows, in caches
and in calls of other threads."""

_KEPT = 5
_MOST_LOADS = 64


@dataclass
class _Load:
    """Seconds of the last frames of one load, without threads and with them."""

    frames: int = 0
    again: int = 2 * _TRIALS + _AGAIN
    pause: int = _AGAIN
    chosen: bool = False
    seconds: tuple[deque[float], deque[float]] = field(
        default_factory=lambda: (deque(maxlen=_KEPT), deque(maxlen=_KEPT))
    )


@final
class Pace:
    """Chooses between one thread and several, separately for each load.

    A load is any key that the caller chooses; the least recently seen loads are forgotten.
    """

    def __init__(self) -> None:
        self._loads: OrderedDict[Hashable, _Load] = OrderedDict()

    def threads_pay(self, load: Hashable) -> bool:
        """Whether the next frame of `load` should run on several threads."""
        known = self._loads.get(load)
        if known is None:
            known = self._loads[load] = _Load()
            if len(self._loads) > _MOST_LOADS:
                self._loads.popitem(last=False)
        self._loads.move_to_end(load)
        known.frames += 1
        alone, together = known.seconds
        if len(together) < _TRIALS:
            return True
        if len(alone) < _TRIALS:
            return False
        faster = statistics.median(together) < _WORTH * statistics.median(alone)
        if known.frames < known.again:
            return faster
        known.pause = min(2 * known.pause, _SELDOM) if faster == known.chosen else _AGAIN
        known.chosen, known.again = faster, known.frames + known.pause
        return not faster

    def note(self, load: Hashable, threaded: bool, seconds: float) -> None:
        """Record that a frame of `load` took `seconds`."""
        known = self._loads.get(load)
        if known is not None:
            known.seconds[threaded].append(seconds)
