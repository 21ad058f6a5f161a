"""A few known batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack, final

from ..errors import BatchSizeError
from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import checked_size
from .compiled import ModelInferer
from .options import SharedOptions, infer_options
from .routes import FixedSizes


@final
class FixedBatchInferer(ModelInferer):
    """Runs agents in batches of configured sizes, the largest that fits first.

    Pick it if the number of agents is known, or if calls must not compile after the start. Rows that fill no
    size are padded to the smallest one.

    >>> policy = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo")).build_fixed([2, 4])
    >>> policy.infer_arrays({"obs": np.zeros((7, 6), np.float32)})["logits"].shape
    (7, 3)
    >>> [(plan.size, plan.calls) for plan in policy.plans()]
    [(2, 2), (4, 1)]

    Pros:
        Best speed where a size fits; fixed memory; no compile after construction.
    Cons:
        You must choose the sizes: `MemoizingDynamicInferer.recommend_sizes()` proposes them.
    """

    def __init__(self, typed: TypedModel, sizes: Iterable[int], **options: Unpack[SharedOptions]):
        """Compile a plan for each of `sizes`; options are those of `InferOptions`.

        Raises:
            BatchSizeError: there are no sizes, or one is not a positive whole number.
        """
        self.sizes: list[int] = sorted({checked_size(size) for size in sizes}, reverse=True)
        if not self.sizes:
            raise BatchSizeError("FixedBatchInferer needs at least one batch size, for example [1, 8, 32]")
        super().__init__(
            typed,
            self.sizes,
            infer_options(type(self).__name__, options),
            FixedSizes(self.sizes),
            max(self.sizes),
        )

    def _arguments(self) -> dict[str, Any]:
        return {"sizes": self.sizes}
