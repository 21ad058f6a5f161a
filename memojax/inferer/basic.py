"""One agent at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from ..errors import BatchSizeError
from ..typed import TypedModel
from .model import ModelInferer


@final
class BasicInferer(ModelInferer):
    """Runs agents one by one, on a single plan.

    Pick it when there is nearly always one agent.

    Pros:
        One plan: least memory, no compile after the first.
    Cons:
        Time grows linearly with the number of agents.
    """

    def __init__(self, typed: TypedModel, **options: Any):
        """Compile the plan for one agent; options are `device`, `seed` and `precision`."""
        super().__init__(typed, _ONE, **options)

    def select_batch_size(self, max_count: int) -> int:
        return min(max_count, 1)

    def _plan_size(self, n: int) -> int:
        if n != 1:
            raise BatchSizeError(f"BasicInferer runs one row at a time, got {n} at once: call infer_arrays or infer_batch, which split")
        return 1


_ONE: Iterable[int] = (1,)
