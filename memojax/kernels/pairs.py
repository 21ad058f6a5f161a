"""Products of two computed arrays, one for each block of rows: attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .assembler import Assembler
from .packing import padded
from .program import ABSENT
from .values import Dim, Factor, Refused, Value, merged

Axes = tuple[Sequence[int], Sequence[int]]


def product_of_pairs(
    memory: Assembler, a: Value, b: Value, over: Axes, batch: Axes, shape: Sequence[int]
) -> Value:
    """`a` times `b` for each of `batch`, summed over `over`.

    Raises:
        Refused: the blocks lie in none of the dimensions of `batch`.
    """
    a = _in_order(a, (batch[0], _rest(a, over[0], batch[0]), over[0]))
    b = _in_order(b, (batch[1], over[1], _rest(b, over[1], batch[1])))
    count = len(batch[0])
    if a.axis != b.axis or (a.axis is not None and (a.axis >= count or math.prod(a.shape[: a.axis]) != 1)):
        raise Refused("a product over blocks")
    if not memory.is_whole(a):
        a = memory.copied(a)
    k_dims = len(over[0])
    groups = math.prod(b.per_block()[:count])
    rows = math.prod(a.per_block()[count : len(a.shape) - k_dims])
    depth = math.prod(b.shape[count : count + k_dims])
    columns = math.prod(b.shape[count + k_dims :])
    out = memory.new(shape, a.axis)
    packed = _packed(memory, b, count, count + k_dims)
    memory.product_step(
        out,
        a,
        packed,
        weight=packed.place,
        bias=ABSENT,
        images=1,
        size=(1, rows),
        columns=columns,
        length=depth,
        runs=((1, 0), (1, 0), (1, 0)),
        x_steps=(0, 0, depth),
        y_steps=(0, 0, columns),
        groups=groups,
        group_steps=(rows * depth, depth * padded(columns), 0, rows * columns),
        pairs=True,
    )
    return out


def _rest(value: Value, *taken: Sequence[int]) -> list[int]:
    return [i for i in range(len(value.shape)) if not any(i in axes for axes in taken)]


def _in_order(value: Value, axes: Sequence[Sequence[int]]) -> Value:
    return value.transposed([axis for group in axes for axis in group])


def _packed(memory: Assembler, b: Value, first: int, last: int) -> Value:
    """The matrices of `b` as packed weights lie: dimensions `first` to `last` are the rows, those behind the
    columns."""
    inner = merged([factor for dim in b.dims[last:] for factor in dim])
    if len(inner) > 1:
        b = memory.copied(b)
        inner = merged([factor for dim in b.dims[last:] for factor in dim])
    columns, step = (inner[0].size, inner[0].stride) if inner else (1, 0)
    outer = [factor for dim in b.dims[:first] for factor in dim if factor.size != 1]
    rows: Dim = tuple(factor for dim in b.dims[first:last] for factor in dim if factor.size != 1)
    depth, wide, panel = math.prod(f.size for f in rows), padded(columns), memory.panel
    groups = math.prod(factor.size for factor in outer)
    blocks = 1 if b.axis is None else memory.blocks
    target = memory.new((blocks, groups, depth * wide), None if b.axis is None else 0)
    whole = columns // panel

    def copy(start: int, width: int, step_of_row: int, panels: Sequence[tuple[int, int, int]]) -> None:
        dims = [
            *_steps(outer, depth * wide),
            *panels,
            *_steps(rows, step_of_row),
            (width, step, 1),
        ]
        if len(dims) > 8:
            raise Refused("a product of too many dimensions")
        memory.emit(
            "copy",
            [b, target],
            x=replace(b, offset=b.offset + start * step).place,
            y=replace(target, offset=start * depth).place,
            blocks=(b.block, target.block),
            dims=dims,
        )

    if whole:
        copy(0, panel, panel, [(whole, panel * step, depth * panel)])
    if left := columns - whole * panel:
        copy(whole * panel, left, wide - whole * panel, [])
    return target


def _steps(factors: Sequence[Factor], step: int) -> list[tuple[int, int, int]]:
    """(size, step in the source, step in the packed copy), where the innermost takes `step` in the copy."""
    found: list[tuple[int, int, int]] = []
    for factor in reversed(factors):
        found.insert(0, (factor.size, factor.stride, step))
        step *= factor.size
    return found
