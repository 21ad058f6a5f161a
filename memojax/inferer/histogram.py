"""How many batches of each size were asked for."""

from __future__ import annotations

import threading
from collections import Counter


class BatchHistogram:
    """Counts batches by size.

    A plan that is found counts its own calls, at no cost; what goes another way (padded, split, first seen)
    is counted here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: Counter[int] = Counter()
        self._ran: Counter[int] = Counter()

    def arrived(self, count: int) -> None:
        """A batch of `count` rows came."""
        with self._lock:
            self._arrived[count] += 1

    def ran(self, size: int) -> None:
        """A plan of `size` runs a batch, or a part of one, that has arrived here."""
        with self._lock:
            self._ran[size] += 1

    def counts(self, calls: Counter[int]) -> Counter[int]:
        """Batches by size, where `calls` are the calls of each plan."""
        with self._lock:
            total = Counter(calls)
            total.subtract(self._ran)
            total.update(self._arrived)
        return Counter({size: count for size, count in total.items() if count > 0})
