"""Batch size -> plan: a hit is one dictionary look-up without a lock, and threads share one compile."""

from __future__ import annotations

import bisect
import functools
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import BatchSizeError, MemojaxError, nearest
from ..rows.journal import Journal
from ..xla.background import AtWork, before_exit, submit
from ..xla.fork import check_not_forked, was_forked
from .batch_sizes import checked_size
from .forbid import check_allowed
from .plan import Plan
from .way import Lowered

log: logging.Logger = logging.getLogger("memojax")
_caches: weakref.WeakSet[PlanCache] = weakref.WeakSet()


@dataclass(frozen=True)
class CacheInfo:
    """Counts of a plan cache, named as in `functools.lru_cache` where that has them.

    Attributes:
        hits: calls that found their plan.
        misses: calls that had to compile it.
        evictions: plans dropped because of `maxsize`.
        maxsize, currsize: most plans to keep (None: no limit; preloaded ones do not count), plans held now.
        compile_seconds: total seconds of tracing, lowering and compiling.
        padded_rows: rows computed only to fill a larger plan.
        failed: batch size -> error of its background compile. The background tries such a size again only
            after `cache_clear` or new weights.
        disk_hits: plans that came from `cache_dir` rather than from the compiler.
    """

    hits: int
    misses: int
    evictions: int
    maxsize: int | None
    currsize: int
    compile_seconds: float
    padded_rows: int
    disk_hits: int = 0
    failed: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def total(cls, infos: Sequence[CacheInfo], maxsize: int | None) -> CacheInfo:
        """The sum of several caches that share `maxsize`."""
        if len(infos) == 1:
            return infos[0]
        counts = ("hits", "misses", "evictions", "currsize", "compile_seconds", "padded_rows", "disk_hits")
        sums = {name: sum(getattr(info, name) for info in infos) for name in counts}
        failed = {size: why for info in infos for size, why in info.failed.items()}
        return cls(maxsize=maxsize, failed=failed, **sums)


class PlanCache:
    """Plans by batch size.

    Each missing size has one lock. The first thread lowers and compiles; others wait for that size alone, and
    share its plan or its error. A failed compile is not kept, so the next call tries again.
    """

    def __init__(
        self, lower: Callable[[int], Lowered], maxsize: int | None = None, beside: PlanCache | None = None
    ):
        """Make plans by `lower(size).compile()`.

        Beside the preloaded plans, the cache keeps the `maxsize` most recently used ones. It shares `maxsize`
        and its lock with the cache `beside`.

        Raises:
            BatchSizeError: `maxsize` is less than 1.
        """
        if maxsize is not None and maxsize < 1:
            raise BatchSizeError(f"maxsize must be at least 1 (or None for no limit), got {maxsize}")
        self.maxsize = maxsize
        self._lower = lower
        self._plans: dict[int, Plan] = {}
        # Without a limit no use is noted, so a hit is the bare dictionary look-up, without a Python frame.
        self.hit: Callable[[int], Plan | None] = self._plans.get if maxsize is None else self._noted
        """The plan for `size` or None; a limited cache also notes the use."""
        self._pending: dict[int, _Making] = {}
        self._pinned: set[int] = set()
        self._used: dict[int, int] = {}
        # One lock for the group, because each of its caches may evict a plan of another.
        self._lock = beside._lock if beside is not None else threading.Lock()
        self._group: weakref.WeakSet[PlanCache] = beside._group if beside is not None else weakref.WeakSet()
        self._group.add(self)
        self._journal = Journal()
        self._dropped_calls: Counter[int] = Counter()
        self._misses = self._evictions = 0
        self._compile_seconds = 0.0
        self._padded_rows = 0
        # Raised by `replace`; tells a compile under way that its weights are outdated.
        self._generation = 0
        self._behind: set[int] = set()
        self._expected: set[int] = set()
        self._failed: dict[int, str] = {}
        _caches.add(self)

    def __contains__(self, size: int) -> bool:
        return size in self._plans

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, size: int) -> Plan:
        """The plan for `size`; compiles it if there is none.

        Raises:
            BatchSizeError: `size` is less than 1.
            LoweringError, CompileError: the model cannot be planned at this size.
        """
        return self.hit(size) or self._miss(size)

    def compile_later(self, size: int) -> None:
        """Compile `size` on the background worker, unless that has begun or has failed."""
        try:
            with self._lock:
                if size in self._plans or size in self._behind or size in self._failed:
                    return
                self._behind.add(size)
            submit(self._task_behind(size))
        except BaseException:
            # Otherwise an interrupt here would keep the background from this size for good.
            self._behind.discard(size)
            raise

    def _task_behind(self, size: int) -> Callable[[], None]:
        # A waiting task must not keep the plans of a dropped inferer alive.
        held = weakref.ref(self)

        def compile_now() -> None:
            cache = held()
            if cache is not None:
                cache._compile_behind(size)

        return compile_now

    def _compile_behind(self, size: int) -> None:
        try:
            self.get(size)
        except Exception as cause:  # a function that was loaded as a model may raise anything
            # Noted, or each later call of this size would start the same compile again.
            why = str(cause) if isinstance(cause, MemojaxError) else f"{type(cause).__name__}: {cause}"
            with self._lock:
                self._failed[size] = why
            log.warning(
                "batch size %d could not be compiled in the background, which does not try it again: %s",
                size,
                why,
            )
        finally:
            with self._lock:
                self._behind.discard(size)

    def _noted(self, size: int) -> Plan | None:
        plan = self._plans.get(size)
        if plan is not None:
            self._used[size] = time.monotonic_ns()
        return plan

    def peek(self, size: int) -> Plan | None:
        """The plan for `size` or None, without noting the use."""
        return self._plans.get(size)

    def sizes(self) -> list[int]:
        """Sizes that have a plan, ascending."""
        return sorted(self._plans)

    def next_larger(self, size: int) -> int | None:
        """The smallest planned size that is at least `size`; without any plan, the smallest expected one."""
        sizes = self.sizes() or self.expected()
        index = bisect.bisect_left(sizes, size)
        return sizes[index] if index < len(sizes) else None

    def next_smaller(self, size: int) -> int | None:
        """The largest planned size that is at most `size`; without any plan, the largest expected one."""
        sizes = self.sizes() or self.expected()
        index = bisect.bisect_right(sizes, size)
        return sizes[index - 1] if index else None

    def pin(self, sizes: Iterable[int]) -> list[int]:
        """Mark sizes as preloaded, so `maxsize` never drops them; returns them in order, without repeats.

        Raises:
            BatchSizeError: a size is not a positive whole number; no size is marked.
        """
        wanted = list(dict.fromkeys(map(checked_size, sizes)))
        with self._lock:
            self._pinned.update(wanted)
        return wanted

    def expect(self, sizes: Iterable[int]) -> None:
        """Mark sizes as preloaded without compiling; the first use of any of them starts all compiles.

        Raises:
            BatchSizeError: a size is not a positive whole number; no size is marked.
        """
        wanted = self.pin(sizes)
        with self._lock:
            self._expected.update(size for size in wanted if size not in self._plans)

    def expected(self) -> list[int]:
        """Expected sizes that have no plan yet, ascending."""
        with self._lock:
            return sorted(self._expected)

    def pinned(self) -> list[int]:
        """Sizes that were preloaded, ascending."""
        with self._lock:
            return sorted(self._pinned)

    def is_pinned(self, size: int) -> bool:
        """Whether `size` was preloaded."""
        return size in self._pinned

    def clear(self, size: int | None = None) -> None:
        """Drop the plan for `size`, or all plans and counts."""
        with self._lock:
            self._journal.finish()
            # Without its error, the background may try the size again.
            if size is not None:
                self._failed.pop(size, None)
                self._expected.discard(size)
                self._drop(size)
            else:
                self._journal.commit(self._emptied)

    def plans(self) -> list[Plan]:
        """All plans, by size."""
        with self._lock:
            self._journal.finish()
            return [self._plans[size] for size in sorted(self._plans)]

    def info(self) -> CacheInfo:
        """Counts so far."""
        with self._lock:
            self._journal.finish()
            calls = sum(plan.calls for plan in self._plans.values()) + self._dropped_calls.total()
            return CacheInfo(
                # A miss counts as soon as its plan exists, and its call only when it runs.
                max(0, calls - self._misses),
                self._misses,
                self._evictions,
                self.maxsize,
                len(self._plans),
                self._compile_seconds,
                self._padded_rows,
                failed=dict(self._failed),
            )

    def calls(self) -> Counter[int]:
        """Number of calls of each size, also of plans that were dropped."""
        with self._lock:
            self._journal.finish()
            return self._dropped_calls + Counter({size: plan.calls for size, plan in self._plans.items()})

    def count_padding(self, rows: int) -> None:
        """Count rows that were computed only to fill a plan."""
        with self._lock:
            self._padded_rows += rows

    def _miss(self, size: int) -> Plan:
        checked_size(size)
        check_not_forked()
        check_allowed(size, self.sizes())
        while True:
            # This lock is held for look-ups only; `making.lock` is held during the compile. So a compile of
            # one size never delays another size.
            with self._lock:
                self._journal.finish()
                plan = self._plans.get(size)
                if plan is not None:
                    return plan
                making = self._pending.setdefault(size, _Making())
            # Asked before the lock is taken: a held lock means that another thread compiles this size now.
            waited = making.lock.locked()
            with making.lock:
                plan = self._make(size, making, waited)
            if plan is not None:
                return plan

    def _make(self, size: int, making: _Making, waited: bool) -> Plan | None:
        """This size's plan, from another thread or new; None if new weights came during the compile."""
        # The thread that held the lock before may have made it.
        plan = self._plans.get(size)
        if plan is not None:
            return plan
        # Threads that waited share the error of that compile. A thread that comes later tries again.
        if waited and making.failure is not None:
            raise making.failure
        generation, started = self._generation, time.perf_counter()
        try:
            with AtWork():
                plan = self._lower(size).compile()
        except Exception as failure:
            # Only an Exception is shared. A KeyboardInterrupt concerns this thread alone, so waiting threads
            # compile for themselves.
            self._pending.pop(size, None)
            making.failure = failure
            raise
        with self._lock:
            self._journal.finish()
            self._pending.pop(size, None)
            # `replace` ran during the compile, so this plan may hold old weights. `_miss` starts again.
            if generation != self._generation:
                return None
            # A preloaded size was compiled on request, so its compile is no miss.
            self._misses += size not in self._pinned
            self._compile_seconds += time.perf_counter() - started
            self._used[size] = time.monotonic_ns()
            # Published last: from here on other threads find the plan without a lock.
            self._plans[size] = plan
            self._failed.pop(size, None)
            self._expected.discard(size)
            rest = sorted(self._expected)
            self._evict(keep=size)
        # The first use of an expected size starts all of them, behind this call.
        for other in rest:
            self.compile_later(other)
        others = nearest([other for other in self.sizes() if other != size], size)
        why = "preloaded" if size in self._pinned else "first seen"
        log.info(
            "compiled batch size %d in %.0f ms (%s; nearest plans: %s)",
            size,
            plan.compile_ms,
            why,
            others or "none",
        )
        return plan

    def replace(self, plans: Mapping[int, Plan]) -> None:
        """Replace all plans at once; a compile in progress is discarded and repeated."""
        with self._lock:
            self._journal.finish()
            self._failed = {}
            calls = self._dropped_calls + Counter({size: plan.calls for size, plan in self._plans.items()})
            self._journal.commit(functools.partial(self._replace, dict(plans), calls, self._generation + 1))

    # A journal step: if an interrupt cuts it short, it runs again. So it only assigns values that were
    # computed before it, and a repetition changes nothing.
    def _replace(self, plans: dict[int, Plan], calls: Counter[int], generation: int) -> None:
        self._generation = generation
        self._dropped_calls = calls
        self._plans.update(plans)
        for size in [size for size in self._plans if size not in plans]:
            self._plans.pop(size, None)
            self._used.pop(size, None)

    def _evict(self, keep: int) -> None:
        # Least recently used first, over all caches of the group, because these share one limit.
        if self.maxsize is None:
            return
        loose = [
            (cache._used.get(size, 0), size, cache)
            for cache in self._group
            for size in cache._plans
            if size not in cache._pinned and not (cache is self and size == keep)
        ]
        loose.sort(key=lambda one: one[0])
        # The new plan takes one of the places, unless it is preloaded.
        for _, size, cache in loose[: max(0, len(loose) + (keep not in self._pinned) - self.maxsize)]:
            cache._drop(size, evicted=True)

    def _drop(self, size: int, evicted: bool = False) -> None:
        plan = self._plans.get(size)
        if plan is not None:
            # Sums are computed before the commit, so a step repeated after an interrupt counts nothing twice.
            calls, evictions = self._dropped_calls[size] + plan.calls, self._evictions + evicted
            self._journal.commit(functools.partial(self._dropped, size, calls, evictions))

    def _dropped(self, size: int, calls: int, evictions: int) -> None:
        self._dropped_calls[size] = calls
        self._evictions = evictions
        self._used.pop(size, None)
        self._plans.pop(size, None)

    def _emptied(self) -> None:
        self._plans.clear()  # In place, because `hit` is bound to this dictionary.
        self._pinned.clear()
        self._expected.clear()
        self._used.clear()
        self._dropped_calls = Counter()
        self._failed = {}
        self._misses = self._evictions = self._padded_rows = 0
        self._compile_seconds = 0.0


class _Making:
    """A compile of one size by the thread that holds `lock`; an interrupt releases it, so no thread hangs.

    Attributes:
        failure: the exception that ended the compile, shared by the threads that waited.
    """

    __slots__ = ("failure", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failure: Exception | None = None


def _drop_at_exit() -> None:
    """Empty all caches, so daemon threads stop where they would compile instead of inside XLA's code."""
    for cache in list(_caches):
        cache._plans.clear()


before_exit(_drop_at_exit)


def _after_fork() -> None:
    """Drop all plans in a forked child, where they would hang without XLA's threads; calls then raise."""
    if was_forked():
        for cache in _caches:
            # The old lock may be held forever, by a thread that the child does not have.
            cache._lock = threading.Lock()
            cache._journal = Journal()
            cache._plans.clear()  # In place, because `hit` is bound to this dictionary.
            cache._pending = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
