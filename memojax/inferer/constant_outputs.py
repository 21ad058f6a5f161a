"""Outputs that depend on no input, as rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._types import Arrays
from ..lowering.typed_model import TypedModel

_MOST_TEMPLATES = 256


class ConstantOutputs:
    """Constant outputs for n rows, kept for each n because a broadcast costs about 10 us."""

    def __init__(self, typed: TypedModel):
        self._typed = typed
        self._templates: dict[int, dict[str, Any]] = {}

    def template(self, typed: TypedModel, n: int) -> dict[str, Any]:
        """All outputs in the model's order for `n` rows; None stands for a computed output."""
        if typed is not self._typed or len(self._templates) > _MOST_TEMPLATES:
            self._typed, self._templates = typed, {}
        kept = self._templates
        if (found := kept.get(n)) is None:
            constant = {
                name: np.broadcast_to(value, (n, *value.shape)) for name, value in typed.constant.items()
            }
            found = kept[n] = {spec.name: constant.get(spec.name) for spec in typed.api.outputs}
        return found

    def in_order(self, typed: TypedModel, named: Arrays, n: int) -> Arrays:
        """Computed and constant outputs for `n` rows, in the model's order."""
        results = self.template(typed, n).copy()
        results.update(named)
        return results
