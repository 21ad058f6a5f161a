"""Candidates: the ways to compile a size. One is the default; autotuning tries the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from jax import lax

from ..xla.options import VECTOR_WIDTH, YNN, ynn
from .hoist import Residual, Rewrite, Step


@final
@dataclass(frozen=True)
class Candidate:
    """A way to compile one size.

    Attributes:
        name: the candidate's name in `plans()`.
        options: XLA's options for this executable.
        rewrite: replaces the evaluation of single steps.
        packs: whether the executable holds a second copy of its weights, packed for its kernels.
        rows: number of equal rows that run a batch of one, for a matrix-matrix kernel; rows must be
            independent.
        kernels: whether memojax's own kernels run the parts that they can.
        ordered: whether nested calls keep XLA from waking threads between the plan's parts; see `in_order`.
        layouts: whether XLA chooses how weights that are arguments lie in memory.
        halves: whether both halves of the rows run at the same time, each on one core; see `halves`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Rewrite | None = None
    packs: bool = False
    rows: int = 1
    kernels: bool = False
    ordered: bool = False
    layouts: bool = False
    halves: bool = False

    def trace(self, residual: Residual, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Outputs of `residual` inside a traced function; it was traced for `rows` times the size."""
        if self.rows > 1:
            inputs = [lax.broadcast_in_dim(x, (self.rows, *x.shape[1:]), range(x.ndim)) for x in inputs]
        outputs = residual(leading, inputs, self.rewrite)
        return [lax.slice_in_dim(output, 0, 1) for output in outputs] if self.rows > 1 else outputs


def _kept_apart(step: Step, inputs: list[Any]) -> list[Any]:
    """A product followed by a barrier: a rounding that changes no float32 and that XLA does not remove.

    XLA then packs the weights of each product, but does not chain products in one kernel.
    """
    outputs = step.bind(inputs)
    if step.primitive.name != "dot_general":
        return outputs
    return [
        lax.reduce_precision(output, 8, 23) if output.dtype == np.float32 else output for output in outputs
    ]


def _flipped(step: Step, inputs: list[Any]) -> list[Any]:
    """A row times a matrix as transposed matrix times column: each output then reads contiguous weights."""
    if step.primitive.name != "dot_general" or step.params["dimension_numbers"] != _ROWS_BY_MATRIX:
        return step.bind(inputs)
    row, matrix = inputs
    column = lax.dot_general_p.bind(
        matrix, row, **{**step.params, "dimension_numbers": (((0,), (1,)), ((), ()))}
    )
    return [lax.transpose(column, (1, 0))]


def _in_three_passes(step: Step, inputs: list[Any]) -> list[Any]:
    """A float32 product as three products on tensor cores, which together round about as float32 does."""
    if step.primitive.name != "dot_general" or any(x.dtype != np.float32 for x in (*inputs, *step.avals)):
        return step.bind(inputs)
    left, right = inputs
    return [
        lax.dot_general(
            left,
            right,
            step.params["dimension_numbers"],
            precision=lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
            preferred_element_type=np.float32,
        )
    ]


_ROWS_BY_MATRIX = (((1,), (0,)), ((), ()))


DEFAULT = Candidate("default")
"""Chosen by `choice.py`, which may make it another one; else it has XLA's order and our options."""

PLAIN = Candidate("xla")
ORDERED = Candidate("in-order", ordered=True)
KERNELS = Candidate("kernels", kernels=True)
KERNELS_ORDERED = Candidate("kernels-in-order", kernels=True, ordered=True)
FUSED = Candidate("ynn", ynn("DOT", "ELTWISE"), packs=True)
LAYERS = Candidate("ynn-layers", ynn("DOT", "ELTWISE"), rewrite=_kept_apart, packs=True)
CONVOLUTIONS = Candidate("ynn-conv", ynn("DOT", "ELTWISE", "INDIVIDUAL_CONVOLUTION"), packs=True)
EIGEN = Candidate("eigen", ynn())
EIGEN_CONVOLUTIONS = Candidate("eigen-conv", ynn("INDIVIDUAL_DOT"))
HALVES = Candidate("halves", ynn(), halves=True)
"""On one thread, Eigen multiplies and convolves at least as fast as YNNPACK."""

LOOPS = Candidate("loops", {**ynn(), "xla_cpu_multi_thread_eigen": False})
"""XLA compiles small products itself, and Eigen computes the others."""

NARROW = Candidate("v256", {VECTOR_WIDTH: "256"})
FLIPPED = Candidate("flipped", rewrite=_flipped)
TWO_ROWS = Candidate("two-rows", ynn("DOT", "ELTWISE"), rewrite=_kept_apart, packs=True, rows=2)
NO_TRITON = Candidate("no-triton", {"xla_gpu_enable_triton_gemm": False})
THREE_PASSES = Candidate("tf32-x3", rewrite=_in_three_passes)
LAYOUTS = Candidate("xla-layouts", packs=True, layouts=True)

CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        DEFAULT,
        PLAIN,
        ORDERED,
        KERNELS,
        KERNELS_ORDERED,
        FUSED,
        LAYERS,
        CONVOLUTIONS,
        EIGEN,
        EIGEN_CONVOLUTIONS,
        HALVES,
        LOOPS,
        NARROW,
        FLIPPED,
        TWO_ROWS,
        NO_TRITON,
        THREE_PASSES,
        LAYOUTS,
    )
}


def without_kernels(candidate: Candidate) -> Candidate:
    """What runs if the kernels can run no part of a plan."""
    return ORDERED if candidate.ordered else DEFAULT


def unordered(candidate: Candidate) -> Candidate:
    """The candidate without nested calls."""
    if not candidate.ordered:
        return candidate
    return replace(candidate, name=(KERNELS if candidate.kernels else DEFAULT).name, ordered=False)


def plain(candidate: Candidate) -> Candidate:
    """What runs if a candidate's nested calls do not compile."""
    return KERNELS if candidate.kernels else PLAIN


def fits(candidate: Candidate, residual: Residual, constants: Sequence[Any]) -> bool:
    """Whether `candidate` is safe for a model; `constants` are the leading weights of `residual`.

    A packing candidate of YNNPACK fuses more than one product, and such a fusion must not have an operand of
    equal numbers; `xla/options.py` says why.
    """
    fuses = candidate.packs and YNN in candidate.options
    return not fuses or not _multiplies_one_number(residual, constants)


_PRODUCTS = ("dot_general", "conv_general_dilated")
_LOOPS = ("scan", "while", "cond")
_MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")


def _multiplies_one_number(residual: Residual, constants: Sequence[Any]) -> bool:
    uniform = {
        number for number, value in zip(residual.leading, constants, strict=True) if _is_uniform(value)
    }
    matrices = {
        number
        for number, value in zip(residual.leading, constants, strict=True)
        if number in uniform and np.ndim(value) > 1
    }
    for step in residual.steps:
        name = step.primitive.name
        if name in _LOOPS and matrices.intersection(atom for atom in step.inputs if isinstance(atom, int)):
            return True
        operands = [
            atom in uniform if isinstance(atom, int) else _is_uniform(atom.value) for atom in step.inputs
        ]
        if name in _PRODUCTS and any(operands):
            return True
        if name == "broadcast_in_dim" or (name in _MOVES and all(operands)):
            uniform.update(step.outputs)
    return False


def _is_uniform(value: Any) -> bool:
    array = np.asarray(value)
    return array.size > 1 and bool((array == array.flat[0]).all())
