"""Whether threads pay: frames are measured with and without them, and the faster way is kept until the other
one proves faster."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import final

_TRIALS = 3
"""Frames of each way before one is chosen, so that a compile in one of them decides nothing."""

_AGAIN = 64
"""One frame in so many tries the other way, so that a change of the models or of the machine is seen."""

_KEPT = 5
_MOST_LOADS = 64


@dataclass
class _Load:
    """What was measured of one load: seconds of the last frames, without threads and with them."""

    frames: int = 0
    seconds: tuple[deque[float], deque[float]] = field(
        default_factory=lambda: (deque(maxlen=_KEPT), deque(maxlen=_KEPT))
    )


@final
class Pace:
    """Chooses between one thread and several, for each load by itself.

    A load is whatever the caller tells apart; the least recently seen are forgotten.
    """

    def __init__(self) -> None:
        self._loads: OrderedDict[Hashable, _Load] = OrderedDict()

    def threads_pay(self, load: Hashable) -> bool:
        """Whether the next frame of `load` is to run on several threads."""
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
        faster = statistics.median(together) < statistics.median(alone)
        return faster if known.frames % _AGAIN else not faster

    def note(self, load: Hashable, threaded: bool, seconds: float) -> None:
        """A frame of `load` took `seconds`."""
        known = self._loads.get(load)
        if known is not None:
            known.seconds[threaded].append(seconds)
