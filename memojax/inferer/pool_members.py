"""Weight sets of a `PolicyPool` as inferers: one set, or a set for each agent."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, final

from .._types import Arrays
from ..errors import UnknownAgentError
from ..lowering.typed_model import TypedModel
from ..plans.cache import CacheInfo
from ..plans.plan import PlanInfo
from ..rows.scratch import ScratchPadView
from .of_model import InfererOfModel
from .pool import PolicyPool


class _OfPool(InfererOfModel):
    """Runs rows in a pool (abstract)."""

    def __init__(self, pool: PolicyPool):
        self.pool: PolicyPool = pool

    @abc.abstractmethod
    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        """The weight set of each of `n` rows."""

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        return self.pool.answer(inputs, lambda n: self._names(ids, n))

    def infer_raw(self, view: ScratchPadView) -> None:
        if not len(view):
            return
        inputs = {spec.name: rows for spec, rows in zip(self.raw_api.inputs, view.inputs, strict=True)}
        outputs = self.pool.answer(inputs, lambda n: self._names(view.ids, n))
        for slot, spec in enumerate(self.raw_api.outputs):
            view.set_output(slot, outputs[spec.name])

    def select_batch_size(self, max_count: int) -> int:
        return max(0, max_count)

    def is_ready(self, count: int) -> bool:
        return count < 1 or self.pool.is_ready(count)

    def prepare(self, count: int) -> Future[None]:
        return self.pool.prepare(count)

    def plans(self) -> list[PlanInfo]:
        """The plans of the pool; `size` counts rows per weight set."""
        return self.pool.plans()

    def cache_info(self) -> CacheInfo:
        """Counts of plans and calls of the pool."""
        return self.pool.cache_info()


@final
class PoolMember(_OfPool):
    """One weight set of a `PolicyPool` as an inferer; `pool[name]` gives it.

    In `evaluate`, agents whose policies are members of one pool are answered in one call.

    >>> pool = memojax.PolicyPool(memojax.policies.bundled("acrobot_ppo"))
    >>> pool.add("main")
    >>> pool["main"].infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)
    """

    def __init__(self, pool: PolicyPool, name: Hashable):
        """Take the set `name`.

        Raises:
            IncompatibleModelError: `name` is not in the pool.
        """
        super().__init__(pool)
        self.name: Hashable = name
        pool.params(name)

    def __repr__(self) -> str:
        return f"PoolMember({self.name!r} of {self.pool!r})"

    @property
    def typed(self) -> TypedModel:
        return self.pool.network.with_params(self.pool.params(self.name))

    @property
    def raw_api(self) -> Any:
        return self.pool.api

    @property
    def api(self) -> Any:
        return self.pool.api

    def update_params(self, weights: Any) -> None:
        """Replace the weights of this set; see `PolicyPool.swap`."""
        self.pool.swap(self.name, weights)

    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        return [self.name] * n


@final
class PoolSeats(_OfPool):
    """Answers each agent by the weight set that was assigned to it."""

    def __init__(self, pool: PolicyPool):
        """Begin without agents."""
        super().__init__(pool)
        self._assigned: dict[int, Hashable] = {}

    @property
    def typed(self) -> TypedModel:
        """The network with the weights of its file."""
        return self.pool.network

    def assign(self, agent: int, name: Hashable) -> None:
        """Let the set `name` answer `agent`, until the agent ends."""
        self._assigned[agent] = name

    def end_agent(self, agent: int) -> None:
        self._assigned.pop(agent, None)

    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        ids = range(n) if ids is None else ids
        if missing := [agent for agent in ids if agent not in self._assigned]:
            raise UnknownAgentError(f"no weight set is assigned to agent {missing[0]}: call assign first")
        return [self._assigned[agent] for agent in ids]
