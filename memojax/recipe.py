"""How a size is compiled: the default, and the candidates that autotuning tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from jax import lax

from .hoist import Residue


@final
@dataclass(frozen=True)
class Recipe:
    """A way to compile one size.

    Attributes:
        name: shown in `plans()`.
        options: XLA's options for this executable.
        layers: whether each matrix product is kept apart from the next, so that XLA packs its weights but does not chain it.
        packs: whether the executable holds its weights once more, packed for its kernels.
        rows: run a batch of one as so many equal rows, which a matrix-matrix kernel takes; rows must be independent.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: bool = False
    packs: bool = False
    rows: int = 1

    def trace(self, residue: Residue, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of `residue`, in a traced function; `residue` was traced for `rows` times as many rows."""
        if self.rows > 1:
            inputs = [lax.broadcast_in_dim(x, (self.rows, *x.shape[1:]), range(x.ndim)) for x in inputs]
        outputs = residue(leading, inputs, _kept_apart if self.layers else None)
        return [lax.slice_in_dim(output, 0, 1) for output in outputs] if self.rows > 1 else outputs


def _kept_apart(primitive: Any, outputs: list[Any]) -> list[Any]:
    """A barrier behind each product: a rounding that changes no bit of a float32, which XLA does not remove."""
    if primitive.name != "dot_general":
        return outputs
    return [lax.reduce_precision(output, 8, 23) if output.dtype == np.float32 else output for output in outputs]


def _fused(*kinds: str) -> dict[str, str]:
    return {"xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


DEFAULT = Recipe("default")
FUSED = Recipe("ynn", _fused("DOT", "ELTWISE"), packs=True)
LAYERS = Recipe("ynn-layers", _fused("DOT", "ELTWISE"), layers=True, packs=True)
CONVOLUTIONS = Recipe("ynn-conv", _fused("DOT", "ELTWISE", "INDIVIDUAL_CONVOLUTION"), packs=True)
WIDE = Recipe("v512", {"xla_cpu_prefer_vector_width": "512"})
TWO_ROWS = Recipe("two-rows", _fused("DOT", "ELTWISE"), layers=True, packs=True, rows=2)

RECIPES = {recipe.name: recipe for recipe in (DEFAULT, FUSED, LAYERS, CONVOLUTIONS, WIDE, TWO_ROWS)}
