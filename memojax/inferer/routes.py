"""The rules that deal waiting rows out to plans: the only difference between the four inferers."""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from typing import Literal, final

from ..errors import CompileForbiddenError, nearest
from ..plans.batch_sizes import Bucket
from ..plans.cache import PlanCache

OnMiss = Literal["compile", "pad", "warn", "error"]

log: logging.Logger = logging.getLogger("memojax")


class Route(abc.ABC):
    """Deals rows out to plans. Asking changes nothing."""

    pads: bool = True
    """Whether rows may be padded or split."""

    @abc.abstractmethod
    def of(self, count: int, cache: PlanCache) -> tuple[int, int]:
        """(rows to take now of `count`, size of the plan that runs them). A larger size means padding."""

    def at_once(self, count: int, cache: PlanCache) -> int | None:
        """The size of a plan that runs `count` rows in one call; None if there can be no such plan."""
        rows, size = self.of(count, cache)
        return size if rows == count else None

    def arrived(self, count: int, cache: PlanCache) -> None:  # noqa: B027
        """Prepare for a batch of `count` rows, which will be dealt out next.

        Raises:
            CompileForbiddenError: the batch needs a compile that the options forbid.
        """


@final
class OneByOne(Route):
    """One row at a time, on the plan of size 1."""

    def of(self, count: int, cache: PlanCache) -> tuple[int, int]:
        return 1, 1


@final
class OnePlan(Route):
    """All rows on one plan, padded and split to its capacity."""

    def __init__(self, capacity: int):
        self.capacity = capacity

    def of(self, count: int, cache: PlanCache) -> tuple[int, int]:
        return min(count, self.capacity), self.capacity


@final
class FixedSizes(Route):
    """The largest configured size that fits; the remaining rows are padded to the smallest size."""

    def __init__(self, sizes: Sequence[int]):
        self._sizes = sorted(sizes, reverse=True)

    def of(self, count: int, cache: PlanCache) -> tuple[int, int]:
        for size in self._sizes:
            if size <= count:
                return size, size
        return count, self._sizes[-1]


@final
class Buckets(Route):
    """The plan of the rows' bucket. With "pad", other plans serve while the background compiles it."""

    def __init__(self, bucket: Bucket, on_miss: OnMiss, *, exact: bool = False):
        """Give rows the plan of their `bucket`; with `exact`, each size is a bucket."""
        self._bucket = bucket
        self._on_miss = on_miss
        self.pads: bool = not exact or on_miss == "pad"

    def of(self, count: int, cache: PlanCache) -> tuple[int, int]:
        size = self._bucket(count)
        rows = min(size, count)
        if self._on_miss != "pad" or size in cache:
            return rows, size
        larger = cache.next_larger(rows)
        if larger is not None:
            return rows, larger
        smaller = cache.next_smaller(rows)
        return (smaller, smaller) if smaller is not None else (rows, size)

    def at_once(self, count: int, cache: PlanCache) -> int | None:
        size = super().at_once(count, cache)
        if size is None and self._bucket(count) >= count:
            return self._bucket(count)  # The cache has evicted the smaller plan since the caller asked.
        return size

    def arrived(self, count: int, cache: PlanCache) -> None:
        size = self._bucket(count)
        if size in cache:
            return
        if self._on_miss == "pad":
            if len(cache):
                cache.compile_later(size)
        elif size in cache.expected():
            return  # The inferer was pickled with this plan, so its compile here is no surprise.
        elif self._on_miss == "error":
            raise CompileForbiddenError(size, cache.sizes(), "with on_miss='error'")
        elif self._on_miss == "warn":
            near = nearest(cache.sizes(), size) or "none"
            log.warning(
                "batch size %d has no plan, so this call compiles it; nearest plans: %s. preload([%d]) "
                "avoids the wait",
                size,
                near,
                size,
            )
