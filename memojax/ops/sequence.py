"""Sequences, which exist only while tracing: a sequence is a tuple of arrays with static positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._types import GraphValue
from ._common import ints, normalize_axis, nx, scalar
from .registry import op


def _index(position: GraphValue, end: int) -> int:
    """`position` as a number from 0 to `end`; negative positions count from `end`."""
    index = int(scalar(position))
    if not -end <= index <= end:
        raise ValueError(f"position {index} is out of range: expected -{end} to {end}")
    return index + end if index < 0 else index


@op("SequenceConstruct", since=11)
def sequence_construct(*inputs: GraphValue) -> tuple[GraphValue]:
    """A sequence of the inputs. https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html"""
    return (inputs,)


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> tuple[GraphValue]:
    """An empty sequence. https://onnx.ai/onnx/operators/onnx__SequenceEmpty.html"""
    return ((),)


@op("SequenceLength", since=11, shape_only=True)
def sequence_length(input_sequence: tuple[GraphValue, ...]) -> GraphValue:
    """Number of tensors. https://onnx.ai/onnx/operators/onnx__SequenceLength.html"""
    return np.asarray(len(input_sequence), np.int64)


@op("SequenceAt", since=11, static=("position",))
def sequence_at(input_sequence: tuple[GraphValue, ...], position: GraphValue) -> tuple[GraphValue]:
    """The tensor at a position. https://onnx.ai/onnx/operators/onnx__SequenceAt.html"""
    return (input_sequence[int(scalar(position))],)


@op("SequenceInsert", since=11, static=("position",))
def sequence_insert(
    input_sequence: tuple[GraphValue, ...], tensor: GraphValue, position: GraphValue = None
) -> tuple[GraphValue]:
    """The sequence with a tensor inserted before a position, by default at its end.

    https://onnx.ai/onnx/operators/onnx__SequenceInsert.html
    """
    at = len(input_sequence) if position is None else _index(position, len(input_sequence))
    return ((*input_sequence[:at], tensor, *input_sequence[at:]),)


@op("SequenceErase", since=11, static=("position",))
def sequence_erase(input_sequence: tuple[GraphValue, ...], position: GraphValue = None) -> tuple[GraphValue]:
    """The sequence without the tensor at a position, by default the last.

    https://onnx.ai/onnx/operators/onnx__SequenceErase.html
    """
    at = len(input_sequence) - 1 if position is None else _index(position, len(input_sequence))
    if at >= len(input_sequence) or at < 0:
        raise ValueError(f"position {at} is out of range for a sequence of {len(input_sequence)} tensors")
    return ((*input_sequence[:at], *input_sequence[at + 1 :]),)


@op("SequenceMap", since=17)
def sequence_map(
    input_sequence: tuple[GraphValue, ...], *additional_inputs: GraphValue, body: Any
) -> tuple[GraphValue, ...]:
    """Apply a subgraph to each tensor of the sequence. https://onnx.ai/onnx/operators/onnx__SequenceMap.html

    Each call gets the next tensor of additional sequences, and the whole of additional tensors.
    """
    lengths = {len(value) for value in (input_sequence, *additional_inputs) if isinstance(value, tuple)}
    if len(lengths) > 1:
        raise ValueError(f"the sequences have {sorted(lengths)} tensors, expected the same number in each")
    rest = [
        value if isinstance(value, tuple) else (value,) * len(input_sequence) for value in additional_inputs
    ]
    rows = [body(*row) for row in zip(input_sequence, *rest, strict=True)]
    return tuple(zip(*rows, strict=True)) if rows else ((),) * body.n_outputs


@op("ConcatFromSequence", since=11)
def concat_from_sequence(input_sequence: Sequence[GraphValue], *, axis: int, new_axis: int = 0) -> GraphValue:
    """The tensors joined along an axis, or along a new one.

    https://onnx.ai/onnx/operators/onnx__ConcatFromSequence.html
    """
    if not input_sequence:
        raise ValueError("its sequence is empty, so there is nothing to concatenate")
    return (nx.stack if new_axis else nx.concatenate)(list(input_sequence), axis=axis)


@op("SplitToSequence", since=11, static=("split",))
def split_to_sequence(
    input: GraphValue, split: GraphValue = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[GraphValue]:
    """Pieces along an axis: of the sizes `split`, of one size (the last may be smaller), or of size 1.

    https://onnx.ai/onnx/operators/onnx__SplitToSequence.html
    """
    axis = normalize_axis(axis, input.ndim)
    size = input.shape[axis]
    if split is None or np.ndim(split) == 0:
        each = 1 if split is None else int(scalar(split))
        if each < 1:
            raise ValueError(f"split is {each}, expected at least 1")
        starts = list(range(0, size, each))
    else:
        sizes = ints(split)
        if sum(sizes) != size or min(sizes, default=0) < 0:
            raise ValueError(f"split {list(sizes)} does not add up to the length of axis {axis}, {size}")
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
    pieces = nx.split(input, starts[1:], axis=axis) if starts else []
    if split is None and not keepdims:
        pieces = [nx.squeeze(piece, axis) for piece in pieces]
    return (tuple(pieces),)
