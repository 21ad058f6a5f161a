"""One agent at a time."""

from __future__ import annotations

from typing import Any, Unpack, final

from ..lowering.typed_model import TypedModel
from .compiled import ModelInferer
from .options import SharedOptions, infer_options
from .routes import OneByOne


@final
class BasicInferer(ModelInferer):
    """Runs agents one by one, on a single plan.

    Pick it if there is nearly always one agent.

    >>> policy = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo")).build_basic()
    >>> policy.infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)

    Pros:
        One plan: least memory, and no compile after the first.
    Cons:
        Time grows linearly with the number of agents.
    """

    def __init__(self, typed: TypedModel, **options: Unpack[SharedOptions]):
        """Compile the plan for one agent; options are those of `InferOptions`.

        Raises:
            OptionError: an option does not exist, or has the wrong type.
        """
        super().__init__(typed, [1], infer_options(type(self).__name__, options), OneByOne(), 1)

    def _arguments(self) -> dict[str, Any]:
        return {}
