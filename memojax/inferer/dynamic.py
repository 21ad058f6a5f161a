"""Any number of agents on one plan."""

from __future__ import annotations

from typing import Any, Unpack, final

from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import checked_size
from .compiled import ModelInferer
from .options import SharedOptions, infer_options
from .routes import OnePlan

DEFAULT_CAPACITY = 32


@final
class DynamicInferer(ModelInferer):
    """Runs any number of agents on one plan of a fixed capacity, padded and split.

    Pick it if memory must stay fixed and no call may ever compile.

    >>> policy = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo")).build_dynamic(capacity=4)
    >>> policy.infer_arrays({"obs": np.zeros((7, 6), np.float32)})["logits"].shape
    (7, 3)
    >>> [plan.size for plan in policy.plans()]
    [4]

    Pros:
        One plan: fixed memory, no latency spikes, no tuning.
    Cons:
        Every call costs as much as a full plan, however few the agents.
    """

    def __init__(self, typed: TypedModel, capacity: int = DEFAULT_CAPACITY, **options: Unpack[SharedOptions]):
        """Compile the plan for `capacity` rows; options are those of `InferOptions`.

        Raises:
            BatchSizeError: `capacity` is not a positive whole number.
            RowsMixError: rows of the model influence each other, so they cannot be padded or split.
        """
        self.capacity: int = checked_size(capacity)
        given = infer_options(type(self).__name__, options)
        super().__init__(typed, (), given, OnePlan(self.capacity), self.capacity)
        self._refuse_mixing("DynamicInferer")
        self.preload([self.capacity])

    def _arguments(self) -> dict[str, Any]:
        return {"capacity": self.capacity}
