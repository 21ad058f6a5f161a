"""The step that packs weights for the kernels, once for all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..plans.hoist import StandIn, Step
from ..rows.scratch import aligned_empty
from .values import Arrangement, arranged

_PACKED = StandIn("packed")


def packed(source: int, arrangement: Arrangement, number: int, aval: Any) -> Step:
    """The step that arranges the value `source` for a program, under the given number."""
    return _Pack(_PACKED, {"arrangement": arrangement}, (source,), (number,), (aval,))


class _Pack(Step):
    """Packs weights for the kernels."""

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        return [arranged(jnp.asarray(inputs[0]), self.params["arrangement"], jnp)]

    def on_host(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        made = np.ascontiguousarray(arranged(np.asarray(inputs[0]), self.params["arrangement"]))
        packed = aligned_empty(made.shape, made.dtype)
        packed[...] = made
        return [packed]
