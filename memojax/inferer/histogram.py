"""Number of batches of each size that callers asked for."""

from __future__ import annotations

import threading
from collections import Counter


class BatchHistogram:
    """Counts batches by size.

    A plan counts its own calls for free, including those of the fast path. This class adds the batches that
    were padded, split or compiled first, so `counts` subtracts the plan calls that served them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: Counter[int] = Counter()
        self._ran: Counter[int] = Counter()

    def arrived(self, count: int) -> None:
        """Count a batch of `count` rows."""
        with self._lock:
            self._arrived[count] += 1

    def ran(self, size: int) -> None:
        """Count a plan call that serves a batch, or a part of one, from `arrived`."""
        with self._lock:
            self._ran[size] += 1

    def counts(self, calls: Counter[int]) -> Counter[int]:
        """Batches by size, given the number of calls of each plan."""
        with self._lock:
            total = Counter(calls)
            total.subtract(self._ran)
            total.update(self._arrived)
        return Counter({size: count for size, count in total.items() if count > 0})
