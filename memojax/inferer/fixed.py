"""A few known batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from ..errors import BatchSizeError
from ..plan_cache import checked_size
from ..typed import TypedModel
from .model import ModelInferer, refuse_mixing


@final
class FixedBatchInferer(ModelInferer):
    """Runs agents in batches of configured sizes, the largest that fits first.

    Pick it when the number of agents is known, or when compiles after the start are not acceptable. A rest that no size fits is padded
    into the smallest one.

    Pros:
        Best speed where a size fits; fixed memory; never compiles after construction.
    Cons:
        Sizes must be chosen: ask `MemoizingDynamicInferer.plans()` what was used.
    """

    def __init__(self, typed: TypedModel, sizes: Iterable[int], **options: Any):
        """Compile a plan for each of `sizes`; options are `device`, `seed` and `precision`.

        Raises:
            BatchSizeError: no sizes, or one that is no positive whole number.
        """
        self.sizes = sorted({checked_size(size) for size in sizes}, reverse=True)
        if not self.sizes:
            raise BatchSizeError("FixedBatchInferer needs at least one batch size, for example [1, 8, 32]")
        super().__init__(typed, self.sizes, **options)

    def select_batch_size(self, max_count: int) -> int:
        return next((size for size in self.sizes if size <= max_count), max_count)

    def _plan_size(self, n: int) -> int:
        if n in self.sizes:
            return n
        size = next((size for size in reversed(self.sizes) if size >= n), None)
        if size is None:
            raise BatchSizeError(f"{n} rows at once is more than the largest configured size ({self.sizes[0]}): split them")
        refuse_mixing(self, f"padding {n} rows to the configured size {size}")
        return size
