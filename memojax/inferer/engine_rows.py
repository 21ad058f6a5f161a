"""What rows of one engine have in common, in the host's memory and on devices."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._types import Arrays
from ..errors import RowsMixError
from ..lowering.batch_axis import BatchedFunction
from ..lowering.index_checks import RowChecks
from ..lowering.typed_model import TypedModel
from ..plans.cache import PlanCache
from ..plans.engine import Engine
from .constant_outputs import ConstantOutputs
from .histogram import BatchHistogram
from .routes import OnePlan, Route


class EngineRows(abc.ABC):
    """The route, the counts and the checks of the rows that one engine runs (abstract)."""

    def __init__(self, engine: Engine, route: Route, checked: bool):
        """Deal rows out to the plans of `engine` by `route`; `checked` is that of `InferOptions`."""
        typed = engine.typed
        self.engine: Engine = engine
        self.cache: PlanCache = engine.cache
        self.route: OnePlan | Route = OnePlan(typed.only_rows) if typed.only_rows else route
        self.histogram: BatchHistogram = BatchHistogram()
        self._constants = ConstantOutputs(typed)
        self._inputs = typed.api.inputs
        self._checks = RowChecks(typed.fn) if checked and isinstance(typed.fn, BatchedFunction) else None

    @abc.abstractmethod
    def hit(self, inputs: Mapping[str, Any]) -> Arrays | None:
        """Outputs by name, if a plan takes the inputs unchanged; else None, and nothing has run."""

    @abc.abstractmethod
    def infer(self, inputs: Mapping[str, Any], ids: Sequence[int] | None = None) -> Arrays:
        """Run NumPy rows that need a cast, a split or a compile; errors name the agents in `ids`."""

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights."""
        return self.engine.typed

    def check_indices(self, rows: Sequence[Any], n: int, ids: Sequence[int] | None) -> None:
        """Check that every index is in range, if the model is loaded with `checked=True`.

        Raises:
            IndexRangeError: one does not.
        """
        if self._checks is not None:
            each = [
                np.broadcast_to(row, (n, *row.shape)) if spec.shared else np.asarray(row)
                for spec, row in zip(self._inputs, rows, strict=True)
            ]
            self._checks(self.typed.params, each, ids)

    def arrived(self, n: int, cache: PlanCache | None = None) -> tuple[int, int]:
        """Count a batch of `n` rows, and let the route prepare for it.

        Returns:
            How many rows to take at first, and the size of the plan that runs them.

        Raises:
            CompileForbiddenError: the batch needs a compile that the options forbid.
        """
        self.histogram.arrived(n)
        return self.route.arrived(n, self.cache if cache is None else cache)

    def constant_rows(self, name: str, n: int) -> np.ndarray:
        """A constant output for `n` rows."""
        return self._constants.template(self.typed, n)[name]

    def refuse_mixing(self, what: str) -> None:
        """Check that rows do not influence each other, before `what` is done to them.

        Raises:
            RowsMixError: they do; the message names the outputs.
        """
        if self.engine.mixing is None:
            self.engine.mixing = self.typed.mixing_outputs()
        refuse_mixing(self.engine.mixing, what, self.typed.rule if self.typed.only_rows else "")


def refuse_mixing(mixing: Sequence[str], what: str, rule: str = "") -> None:
    """Check that `mixing` is empty.

    Raises:
        RowsMixError: it names outputs in which rows influence each other.
    """
    if mixing:
        why = f" ({rule})" if rule else ""
        raise RowsMixError(
            f"{what} needs rows that do not influence each other, but in this model{why} they do (output "
            f"{', '.join(map(repr, mixing))}): use MemoizingDynamicInferer, which runs every batch at its "
            "exact size"
        )
