"""Chooses the plans of a policy that `evaluate` loads, and compiles them beside the run.

The choice must not depend on time. Two plans may differ in the last bit of a row. A run that used each plan
as soon as it was ready could not be repeated. Therefore a batch size always has the same plan. The next plan
of a shrinking batch compiles ahead, and a call that needs it early waits.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
from jax.sharding import NamedSharding

from ..errors import MemojaxError, OptionError
from ..inferer.base import Inferer
from ..inferer.memoizing import MemoizingDynamicInferer, OnMiss
from ..inferer.sharded import ShardedInferer
from ..lowering.exported import only_size
from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import Bucketing, bucket_of, checked_size


@dataclass(frozen=True)
class Planning:
    """The choice of plans; the keywords of `evaluate` describe each field."""

    bucketing: Bucketing | None = None
    on_miss: OnMiss = "compile"
    preload: Iterable[int] = ()
    cache_dir: str | PathLike[str] | None = None
    maxsize: int | None = None
    device: str | jax.Device | None = "auto"
    devices: str | Sequence[str | jax.Device] | None = None
    sharding: NamedSharding | None = None

    def __post_init__(self) -> None:
        # Read once: the options serve several policies, and an iterator would be empty for the second.
        object.__setattr__(self, "preload", tuple(checked_size(size) for size in self.preload))
        if not isinstance(self.bucketing, (str, type(None))) and not callable(self.bucketing):
            object.__setattr__(self, "bucketing", tuple(self.bucketing))


class FewSizes:
    """The default rule: powers of two up to the number of environments, or every size if rows mix.

    The test whether rows mix runs when the batch first shrinks, because many evaluations end before that.
    """

    def __init__(self, width: int):
        self.width = width
        self.mixing: Callable[[], Sequence[str]] = tuple
        """Gives the outputs in which rows influence each other."""
        self.independent: bool | None = None

    def __call__(self, rows: int) -> int:
        if rows == self.width:
            return rows
        if self.independent is None:
            try:
                self.independent = not self.mixing()
            except MemojaxError:  # For example a file that runs at one size only.
                self.independent = False
        if not self.independent:
            return rows
        size = power_of_two(rows)
        return min(size, self.width) if rows < self.width else size

    def __repr__(self) -> str:
        return f"'pow2' up to {self.width}, 'exact' where rows mix"

    def below(self, rows: int) -> int | None:
        """The next smaller plan than that of `rows`; None if there is none, or before the batch shrinks."""
        if not self.independent:
            return None
        return power_of_two(self(rows)) // 2 or None


def power_of_two(rows: int) -> int:
    """The smallest power of two that is at least `rows`."""
    return 1 << (rows - 1).bit_length()


class Warmup:
    """Compiles on its own thread the plans that an evaluation needs next; without a rule, none."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "memojax-evaluate")
        self._asked: set[int] = set()
        self._preloading: Future[Any] | None = None
        self._follow: tuple[FewSizes, Callable[[list[int]], Any]] | None = None

    def begin(
        self, inferer: MemoizingDynamicInferer | ShardedInferer, first: int | None, sizes: list[int]
    ) -> None:
        """Compile the plan for `first`, whose errors the first call reports, and those for `sizes`."""
        if first is not None:
            self._submit(lambda: inferer.preload([first]))
        if sizes:
            self._preloading = self._submit(lambda: inferer.preload(sizes))

    def follow(self, inferer: MemoizingDynamicInferer | ShardedInferer, rule: FewSizes) -> None:
        """Compile ahead the plans that a shrinking batch needs by `rule`."""
        self._follow = rule, inferer.preload if inferer.cache_info().maxsize is None else _nothing

    def wait(self) -> None:
        """Wait for the sizes that the caller asked for.

        Raises:
            LoweringError, CompileError: a size cannot be compiled.
        """
        if self._preloading is not None:
            self._preloading.result()

    def ahead(self, rows: int) -> None:
        """Compile the plan that the batch needs after it has shrunk well below `rows`."""
        if self._follow is None:
            return
        rule, compile_sizes = self._follow
        size = rule.below(rows)
        if size is not None and size not in self._asked:
            self._asked.add(size)
            self._submit(lambda: compile_sizes([size]))

    def close(self) -> None:
        """Drop the compiles that have not started, without waiting for the others."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, task: Callable[[], Any]) -> Future[Any]:
        # In the caller's context, which may hold a `forbid_compile`.
        return self._pool.submit(contextvars.copy_context().run, task)


def _nothing(sizes: list[int]) -> None:
    """With `maxsize`, no plan is made ahead, because preloaded plans would not count."""


def load_policy(typed: TypedModel, planning: Planning, width: int, seed: int) -> tuple[Inferer, Warmup]:
    """The policy, whose first plan is already compiling.

    Args:
        typed: the model.
        planning: the choice of plans.
        width: most rows in a batch.
        seed: seed of the numbers that a random model draws.

    Raises:
        BatchSizeError: the rule is unknown, or a size is not a positive whole number.
        RowsMixError: on_miss="pad" for a model in which rows influence each other.
    """
    only = only_size(typed)
    rule = FewSizes(width)
    bucketing: Bucketing = [only] if only else rule
    if planning.bucketing is not None:
        bucketing = planning.bucketing
    inferer = _inferer(typed, planning, bucketing, only, seed)
    warmup = Warmup()
    # With another `on_miss`, the caller wants to see misses, so nothing compiles ahead.
    helped = planning.on_miss == "compile"
    warmup.begin(inferer, bucket_of(bucketing, only)(width) if helped else None, list(planning.preload))
    if isinstance(inferer, MemoizingDynamicInferer):
        rule.mixing = lambda: inferer.mixing_outputs
    if bucketing is rule:
        warmup.follow(inferer, rule)
    return inferer, warmup


def _inferer(
    typed: TypedModel, planning: Planning, bucketing: Bucketing, only: int | None, seed: int
) -> MemoizingDynamicInferer | ShardedInferer:
    if planning.devices is not None or planning.sharding is not None:
        if planning.device not in ("auto", None):
            raise OptionError("device= names one device, devices= and sharding= several: give one of them")
        return ShardedInferer(
            typed,
            devices="all" if planning.devices is None else planning.devices,
            sharding=planning.sharding,
            bucketing=bucketing,
            on_miss=planning.on_miss,
            cache_dir=planning.cache_dir,
            maxsize=planning.maxsize,
        )
    return MemoizingDynamicInferer.from_typed(
        typed,
        bucketing=bucketing,
        max_batch_size=only,
        on_miss=planning.on_miss,
        cache_dir=planning.cache_dir,
        maxsize=planning.maxsize,
        device=planning.device,
        seed=seed,
    )
