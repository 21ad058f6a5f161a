"""One agent at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from ..lowering.typed_model import TypedModel
from .compiled import ModelInferer


@final
class BasicInferer(ModelInferer):
    """Runs agents one by one, on a single plan.

    Pick it when there is nearly always one agent.

    >>> policy = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo")).build_basic()
    >>> policy.infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)

    Pros:
        One plan: least memory, no compile after the first.
    Cons:
        Time grows linearly with the number of agents.
    """

    def __init__(self, typed: TypedModel, **options: Any):
        """Compile the plan for one agent; options are `device`, `seed` and `precision`."""
        super().__init__(typed, _ONE, **options)

    def _arrived(self, count: int) -> None:
        """Every plan is there from the start."""

    def _arguments(self) -> dict[str, Any]:
        return {}

    def _route(self, count: int) -> tuple[int, int]:
        return 1, 1


_ONE: Iterable[int] = (1,)
