"""Any number of agents on one plan."""

from __future__ import annotations

from typing import Any, final

from ..errors import BatchSizeError
from ..plan_cache import checked_size
from ..typed import TypedModel
from .model import ModelInferer, refuse_mixing

DEFAULT_CAPACITY = 32


@final
class DynamicInferer(ModelInferer):
    """Runs any number of agents on one plan of a fixed capacity, padded and split.

    Pick it when memory must stay fixed and no call may ever compile.

    Pros:
        One plan: fixed memory, no spikes, no tuning.
    Cons:
        Every call costs as much as a full plan, however few the agents.
    """

    def __init__(self, typed: TypedModel, capacity: int = DEFAULT_CAPACITY, **options: Any):
        """Compile the plan for `capacity` rows; options are `device`, `seed` and `precision`.

        Raises:
            BatchSizeError: `capacity` is no positive whole number.
            RowsMixError: the model's rows influence each other, so that they cannot be padded or split.
        """
        self.capacity = checked_size(capacity)
        super().__init__(typed, (), **options)
        refuse_mixing(self, "DynamicInferer")
        self.preload([self.capacity])

    def select_batch_size(self, max_count: int) -> int:
        return min(max_count, self.capacity)

    def _plan_size(self, n: int) -> int:
        if n > self.capacity:
            raise BatchSizeError(f"{n} rows at once is more than the capacity ({self.capacity}): split them")
        return self.capacity
