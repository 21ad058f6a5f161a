"""`Predictor`: a policy that `Dataset.map_batches` applies."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from .._types import Source
from ..errors import MissingInputError, OptionError, RowsMixError
from ..inferer.memoizing import MemoizingDynamicInferer
from ..inferer.of_model import InfererOfModel
from ..lowering.typed_model import TypedModel
from ..rows.input_checks import check_names
from .shared import compiles, imported_ray, model_of, pin_assigned, with_plans

Columns = Mapping[str, "str | Sequence[str]"]

_policies: dict[str, MemoizingDynamicInferer] = {}
_lock = threading.Lock()


@final
class Predictor:
    """A policy that turns columns into columns: `dataset.map_batches(Predictor(policy), batch_size=1024)`.

    Every process that runs tasks holds one policy, however many tasks it runs. The plan travels with the
    policy, so these processes compile nothing. A smaller batch than the plan's is padded, a larger one is
    split.
    """

    def __init__(
        self,
        policy: InfererOfModel | TypedModel | Source,
        *,
        batch_size: int = 1024,
        inputs: Columns | None = None,
        outputs: Mapping[str, str] | None = None,
        keep: bool | Sequence[str] = True,
    ):
        """Compile the plan.

        Args:
            policy: a file, or a loaded policy with its present weights.
            batch_size: rows of the plan, equal to the `batch_size` of `map_batches`.
            inputs: input -> its column, or several columns of numbers to stack. None means columns with the
                inputs' names.
            outputs: output -> its column; missing outputs are dropped. None means all outputs, under their
                own names.
            keep: columns that stay in the result: all (True), none (False), or a list.

        Raises:
            MissingPackageError: Ray is not installed.
            UnknownInputError: the model lacks a name.
            RowsMixError: rows influence each other, so a smaller batch cannot be padded.
        """
        imported_ray("memojax.ray.Predictor")
        typed = model_of(policy)
        names, results = [spec.name for spec in typed.api.inputs], [spec.name for spec in typed.api.outputs]
        self.inputs: dict[str, str | Sequence[str]] = (
            dict(inputs) if inputs else {name: name for name in names}
        )
        self.outputs: dict[str, str] = dict(outputs) if outputs else {name: name for name in results}
        self.keep: bool | Sequence[str] = keep
        self.batch_size: int = batch_size
        check_names(names, self.inputs)
        if unknown := [name for name in self.outputs if name not in results]:
            raise OptionError(
                f"outputs= names {unknown[0]!r}; the outputs are {', '.join(map(repr, results))}"
            )
        if mixing := typed.mixing_outputs():
            raise RowsMixError(
                f"rows influence each other in output {', '.join(map(repr, mixing))}, so a batch cannot be "
                "padded or split"
            )
        self._payload: bytes = pickle.dumps(with_plans(typed, [batch_size]))
        self._digest: str = hashlib.sha256(self._payload).hexdigest()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Turn columns `[n, ...]` into columns `[n, ...]`."""
        rows = {name: _column(batch, columns) for name, columns in self.inputs.items()}
        answers = self.policy.infer_arrays(rows)
        kept = list(batch) if self.keep is True else list(self.keep or ())
        made = {column: np.array(answers[name]) for name, column in self.outputs.items()}
        return {column: batch[column] for column in kept} | made

    @property
    def policy(self) -> MemoizingDynamicInferer:
        """This process's policy."""
        found = _policies.get(self._digest)
        if found is None:
            with _lock:
                found = _policies.get(self._digest)
                if found is None:
                    pin_assigned()
                    found = pickle.loads(self._payload)
                    found.preload([self.batch_size])
                    _policies[self._digest] = found
        return found

    def compiles(self) -> int:
        """Number of plans that this process had to compile."""
        return compiles(self.policy)


def _column(batch: Mapping[str, Any], columns: str | Sequence[str]) -> Any:
    names = [columns] if isinstance(columns, str) else list(columns)
    if missing := [name for name in names if name not in batch]:
        raise MissingInputError(missing, list(batch), "the policy's columns")
    return batch[columns] if isinstance(columns, str) else np.stack([batch[name] for name in names], axis=-1)
