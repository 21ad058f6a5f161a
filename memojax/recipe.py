"""How a size is compiled: the default, and the candidates that autotuning tries."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from jax import lax

from .hoist import Residue, Rewrite, Step


@final
@dataclass(frozen=True)
class Recipe:
    """A way to compile one size.

    Attributes:
        name: shown in `plans()`.
        options: XLA's options for this executable.
        rewrite: what to do with single steps, if not what they say.
        packs: whether the executable holds its weights once more, packed for its kernels.
        rows: run a batch of one as so many equal rows, which a matrix-matrix kernel takes; rows must be independent.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Rewrite | None = None
    packs: bool = False
    rows: int = 1

    def trace(self, residue: Residue, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of `residue`, in a traced function; `residue` was traced for `rows` times as many rows."""
        if self.rows > 1:
            inputs = [lax.broadcast_in_dim(x, (self.rows, *x.shape[1:]), range(x.ndim)) for x in inputs]
        outputs = residue(leading, inputs, self.rewrite)
        return [lax.slice_in_dim(output, 0, 1) for output in outputs] if self.rows > 1 else outputs


def _kept_apart(step: Step, inputs: list[Any]) -> list[Any]:
    """A product with a barrier behind it, a rounding that changes no bit of a float32 and that XLA does not remove.

    XLA then packs the weights of each product, but does not chain products in one kernel.
    """
    outputs = step.bind(inputs)
    if step.primitive.name != "dot_general":
        return outputs
    return [lax.reduce_precision(output, 8, 23) if output.dtype == np.float32 else output for output in outputs]


def _flipped(step: Step, inputs: list[Any]) -> list[Any]:
    """A row times a matrix as the matrix turned times a column: each output reads its weights in one run."""
    if step.primitive.name != "dot_general" or step.params["dimension_numbers"] != _ROWS_BY_MATRIX:
        return step.bind(inputs)
    row, matrix = inputs
    column = lax.dot_general_p.bind(matrix, row, **{**step.params, "dimension_numbers": (((0,), (1,)), ((), ()))})
    return [lax.transpose(column, (1, 0))]


YNN = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's option for what its CPU backend gives to the YNNPACK library; the rest it compiles itself, or gives to Eigen."""

_ROWS_BY_MATRIX = (((1,), (0,)), ((), ()))


def _fused(*kinds: str) -> dict[str, str]:
    return {YNN: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


DEFAULT = Recipe("default")
FUSED = Recipe("ynn", _fused("DOT", "ELTWISE"), packs=True)
LAYERS = Recipe("ynn-layers", _fused("DOT", "ELTWISE"), rewrite=_kept_apart, packs=True)
CONVOLUTIONS = Recipe("ynn-conv", _fused("DOT", "ELTWISE", "INDIVIDUAL_CONVOLUTION"), packs=True)
EIGEN = Recipe("eigen-conv", _fused("INDIVIDUAL_DOT"))
WIDE = Recipe("v512", {"xla_cpu_prefer_vector_width": "512"})
FLIPPED = Recipe("flipped", rewrite=_flipped)
TWO_ROWS = Recipe("two-rows", _fused("DOT", "ELTWISE"), rewrite=_kept_apart, packs=True, rows=2)

RECIPES = {recipe.name: recipe for recipe in (DEFAULT, FUSED, LAYERS, CONVOLUTIONS, EIGEN, WIDE, FLIPPED, TWO_ROWS)}


def options_for(recipe: Recipe, residue: Residue) -> Mapping[str, Any]:
    """XLA's options for a recipe; the default one leaves convolutions to Eigen where YNNPACK has no AVX-512 kernels.

    A 84x84x4 Nature CNN then takes 0.85 of the time for one frame and 0.25 for 128 (EPYC Milan, jaxlib 0.10.2).
    """
    convolutions = any(step.primitive.name == "conv_general_dilated" for step in residue.steps)
    return EIGEN.options if recipe is DEFAULT and convolutions and not has_avx512() else recipe.options


@functools.cache
def has_avx512() -> bool:
    """Whether this CPU has 512-bit vectors; False where it does not say."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
