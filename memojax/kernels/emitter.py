"""Turns steps of a traced function into steps of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from .assembler import Assembler
from .program import ABSENT, MOST_RUNS, Place
from .values import Constant, Dim, Factor, Refused, Value, merged, outside
from .windows import Windows


@final
@dataclass
class Emitter(Assembler):
    """A program in progress; each method adds one operator of the network.

    A method raises `Refused` for an operator that the kernels do not have, or not in the given layout.
    """

    def dense(
        self,
        x: Value,
        weight: Constant,
        contract: tuple[Sequence[int], Sequence[int]],
        shape: Sequence[int],
        weight_first: bool,
        bias: Constant | None,
        activation: str,
        addend: Value | None = None,
    ) -> Value:
        """`x` times a matrix of weights; the result is added to `addend`, if given, in its place."""
        over_x, over_w = contract
        weight = weight.whole()
        if x.axis in over_x:
            raise Refused("a product over blocks")
        rest_w = [i for i in range(len(weight.shape)) if i not in over_w]
        columns = math.prod(weight.shape[i] for i in rest_w)
        depth = math.prod(weight.shape[i] for i in over_w)
        if not columns or not depth:
            raise Refused("a product of nothing")
        rest_x = [i for i in range(len(x.shape)) if i not in over_x]
        parts, order, inner = _summed(x, over_x)
        rows = merged([factor for i in rest_x for factor in x.dims[i]])
        # Too many runs for the kernel's loops: a dense copy of x has a single one.
        if (
            len(inner) > 4
            or (inner and inner[-1].stride != 1 and len(inner) > 3)
            or any(f.stride == 0 for f in inner)
            or len(rows) > 3
        ):
            x = self.copied(x, [*rest_x, *over_x])
            parts, order, inner = _summed(x, over_x)
            rows = merged([factor for i in rest_x for factor in x.dims[i]])
        arrangement = weight.then(
            ("transpose", (*over_w, *rest_w)),
            ("reshape", (*(part.size for part in parts), columns)),
            ("transpose", (*order, *(i for i in range(len(parts)) if i not in order), len(parts))),
            ("reshape", (1, depth, columns)),
            ("matrices", self.panel),
        )
        length, runs = (inner[-1].size, inner[:-1]) if inner and inner[-1].stride == 1 else (1, inner)
        images, size, steps = self._rows(x, rows)
        shown = [x.shape[i] for i in rest_x] + [weight.shape[i] for i in rest_w]
        axis = None if x.axis is None else rest_x.index(x.axis)
        if addend is not None and (weight_first or addend.axis != axis):
            raise Refused("a product added to blocks in another dimension")
        out = self.new(shown, axis) if addend is None else addend
        self.product_step(
            out,
            x,
            weight=self.weight(weight.source, arrangement, 0),
            bias=self._bias(bias, 1, columns),
            images=images,
            size=size,
            columns=columns,
            length=length,
            runs=_three(runs),
            x_steps=steps,
            y_steps=(size[0] * size[1] * columns, size[1] * columns, columns),
            activation=activation,
            grows=addend is not None,
        )
        if weight_first:
            n = len(rest_x)
            out = out.transposed([*range(n, n + len(rest_w)), *range(n)])
        return replace(out, shape=tuple(shape))

    def _rows(self, x: Value, rows: Dim) -> tuple[int, tuple[int, int], tuple[int, int, int]]:
        """Images per block, their lines and rows, and the steps of these three in floats."""
        outer = [*rows]
        if self.blocks == 1:
            outer = [Factor(1, 0)] * (3 - len(outer)) + outer
        elif outer and outer[0].stride * outer[0].size == x.block:
            outer = outer + [Factor(1, 0)] * (3 - len(outer))
        elif len(outer) < 3:
            outer = [Factor(1, x.block), *outer] + [Factor(1, 0)] * (2 - len(outer))
        else:
            raise Refused("rows in too many dimensions")
        return (
            outer[0].size,
            (outer[1].size, outer[2].size),
            (outer[0].stride, outer[1].stride, outer[2].stride),
        )

    def _bias(self, bias: Constant | None, groups: int, columns: int) -> Place:
        if bias is None:
            return ABSENT
        arrangement = bias.then(
            ("broadcast", (groups * columns,)) if math.prod(bias.held) == 1 else ("reshape", (-1,)),
            ("reshape", (groups, columns)),
            ("vectors",),
        )
        if math.prod(bias.held) == 1:
            arrangement = bias.then(("reshape", (1,)), *arrangement[len(bias.arrangement) :])
        return self.weight(bias.source, arrangement, 0)

    def convolution(
        self,
        x: Value,
        weight: Constant,
        params: dict[str, Any],
        shape: Sequence[int],
        bias: Constant | None,
        activation: str,
    ) -> Value:
        """A convolution over one or two dimensions.

        The kernel reads each window in place, as runs of adjacent floats: it never copies windows to a
        matrix.
        """
        lhs, rhs, out_spec = params["dimension_numbers"]
        windows = Windows.of(weight.shape, params)
        weight = weight.whole()
        if x.axis not in (None, lhs[0]):
            raise Refused("a convolution over blocks")
        config = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"])]
        if any(map(any, config)):
            order = [0, *range(2, len(shape)), 1] if windows.apart else None
            x = self._padded(x, [(0, 0, 0), (0, 0, 0), *config], lhs, order=order)
        x = x.transposed(lhs)
        if windows.apart:
            return self._depthwise(x, weight, windows, params, shape, bias, activation)
        if any(len(merged(dim)) > 1 for dim in x.dims):
            x = self.copied(x)
        image, channel, *steps = (merged(dim)[0].stride if merged(dim) else 0 for dim in x.dims)
        line, pixel = steps if len(steps) == 2 else (0, steps[0])
        images = x.per_block()[0]
        if self.blocks > 1 and images > 1 and images * image != x.block:
            raise Refused("images that lie apart")
        channels_inside, length, runs = windows.runs(channel, line, pixel)
        # The kernel sums in the order of memory, so the packed weights are put in that order, too.
        order = (*rhs[2:], rhs[1]) if channels_inside else (rhs[1], *rhs[2:])
        groups, columns = windows.groups, windows.columns
        arrangement = weight.then(
            ("transpose", (*order, rhs[0])),
            ("reshape", (windows.floats, groups, columns)),
            ("transpose", (1, 0, 2)),
            ("matrices", self.panel),
        )
        out = self.new(
            [shape[i] for i in out_spec], None if x.axis is None else 0, [0, *range(2, len(shape)), 1]
        )
        height, width = [1] * (4 - len(shape)) + [shape[i] for i in out_spec[2:]]
        channels = groups * columns
        panels = -(-columns // 16) * 16  # packed weights fill their last panel
        self.product_step(
            out,
            x,
            weight=self.weight(weight.source, arrangement, 0),
            bias=self._bias(bias, groups, columns),
            images=images,
            size=(height, width),
            columns=columns,
            length=length,
            runs=_three(runs),
            x_steps=(
                x.block if images == 1 else image,
                windows.strides[0] * line,
                windows.strides[1] * pixel,
            ),
            y_steps=(height * width * channels, width * channels, channels),
            activation=activation,
            groups=groups,
            group_steps=(windows.depth * channel, windows.floats * panels, panels, columns),
        )
        return out.transposed([out_spec.index(i) for i in range(len(out_spec))])

    def _depthwise(
        self,
        x: Value,
        weight: Constant,
        windows: Windows,
        params: dict[str, Any],
        shape: Sequence[int],
        bias: Constant | None,
        activation: str,
    ) -> Value:
        """A convolution with a window for each channel; `x` is in the order image, channel, line, pixel."""
        _, rhs, out_spec = params["dimension_numbers"]
        inner = [0, *range(2, len(shape)), 1]
        dims = [merged(dim) for dim in x.dims]
        if (
            any(len(dim) > 1 for dim in dims)
            or (dims[1] and dims[1][0].stride != 1)
            or (self.blocks > 1 and dims[0] and dims[0][0].size * dims[0][0].stride != x.block)
        ):
            x = self.copied(x, inner)
            dims = [merged(dim) for dim in x.dims]
        image, _, *steps = (dim[0].stride if dim else 0 for dim in dims)
        line, pixel = steps if len(steps) == 2 else (0, steps[0])
        images = x.per_block()[0]
        arrangement = weight.then(
            ("transpose", (*rhs[2:], rhs[1], rhs[0])), ("reshape", (windows.floats * windows.groups,))
        )
        out = self.new([shape[i] for i in out_spec], None if x.axis is None else 0, inner)
        height, width = [1] * (4 - len(shape)) + [shape[i] for i in out_spec[2:]]
        down, right = windows.dilation
        sizes = [height, width, windows.groups, *windows.size, down * line, right * pixel]
        sizes += [x.block if images == 1 else image, windows.strides[0] * line, windows.strides[1] * pixel]
        self.has_product = True
        self.emit(
            "depthwise",
            [x, out],
            x=x.place,
            weights=self.weight(weight.source, arrangement, 0),
            bias=self._bias(bias, 1, windows.groups),
            y=out.place,
            images=images,
            sizes=sizes,
            activation=activation,
        )
        return out.transposed([out_spec.index(i) for i in range(len(out_spec))])

    def _padded(
        self,
        x: Value,
        config: Sequence[tuple[int, int, int]],
        spec: Sequence[int],
        value: float = 0.0,
        order: Sequence[int] | None = None,
    ) -> Value:
        """A copy with numbers of `value` around and between the elements, or a part, as `lax.pad` has it.

        `config` (before, after, between; negative numbers cut off) is in the order of `spec`. The last
        dimension of `order`, by places in `spec`, is the innermost.
        """
        x = x.transposed(spec)
        steps = [between + 1 for _, _, between in config]
        shape = [
            (size - 1) * step + 1 + low + high
            for size, step, (low, high, _) in zip(x.shape, steps, config, strict=True)
        ]
        # The elements that are left; the first of them has this place in the copy.
        first = [max(0, -(low // step)) for step, (low, _, _) in zip(steps, config)]
        last = [
            min(size - 1, (total - 1 - low) // step)
            for size, total, step, (low, _, _) in zip(x.shape, shape, steps, config, strict=True)
        ]
        if any(b < a for a, b in zip(first, last)):
            raise Refused("a pad that leaves no element")
        ones, after = [1] * len(shape), [b + 1 for b in last]
        x = x.sliced(first, after, ones) or self.copied(x).sliced(first, after, ones) or x
        if order is None:
            strides = [merged(dim)[-1].stride if merged(dim) else 1 << 60 for dim in x.dims]
            order = sorted(range(len(shape)), key=lambda i: (i != 0, -strides[i]))
        back = [list(spec).index(i) for i in range(len(spec))]
        if x.shape == tuple(shape):
            return x.transposed(back)
        target = self.new(shape, x.axis, order)
        self.emit("fill", [target], y=target.place, count=target.size, value=value)
        inside = target.sliced(
            [a * step + low for a, step, (low, _, _) in zip(first, steps, config, strict=True)],
            [b * step + low + 1 for b, step, (low, _, _) in zip(last, steps, config, strict=True)],
            steps,
        )
        assert inside is not None
        self.copy(x, inside)
        return target.transposed(back)

    def filled(self, shape: Sequence[int], value: float) -> Value:
        """An array of one number, with its blocks where an array of XLA's has them."""
        target = self.new(shape, outside(shape, self.blocks, 0).axis)
        self.emit("fill", [target], y=target.place, count=target.size, value=value)
        return target

    def draw(self, key: Value, folds: Sequence[int], rows: int, shape: Sequence[int]) -> Value:
        """Random numbers in [1, 2), counted along the array, from the two words of a key.

        If `rows` is not 0, so many rows have own keys, and count their own numbers.
        """
        axis = outside(shape, self.blocks, 0).axis
        if (axis is not None and math.prod(shape[:axis]) != 1) or rows not in (0, self.blocks):
            raise Refused("draws whose blocks lie apart")
        if rows and (shape[0] != rows or (rows > 1 and axis != 0)):
            raise Refused("rows of draws apart from the blocks")
        target = self.new(shape, axis)
        self.emit("draw", [target], key=key.place, y=target.place, count=target.size, folds=list(folds))
        return target

    def pad(self, x: Value, config: Sequence[tuple[int, int, int]], value: float) -> Value:
        """`x` with a border of numbers."""
        if x.axis is not None and any(config[x.axis]):
            raise Refused("a pad of blocks")
        return self._padded(x, config, range(len(x.shape)), value)

    def concatenate(self, parts: Sequence[Value], dimension: int, shape: Sequence[int]) -> Value:
        """Arrays joined along a dimension."""
        axis = parts[0].axis
        if axis == dimension or any(part.axis != axis for part in parts):
            raise Refused("a concatenation of blocks")
        target = self.new(shape, axis)
        start = 0
        for part in parts:
            if not part.size:
                continue
            starts, limits = [0] * len(shape), list(shape)
            starts[dimension], limits[dimension] = start, start + part.shape[dimension]
            inside = target.sliced(starts, limits, [1] * len(shape))
            assert inside is not None
            self.copy(part, inside)
            start += part.shape[dimension]
        return target

    def reduce(self, x: Value, axes: Sequence[int], kind: str, shape: Sequence[int]) -> Value:
        """Sum or extreme over dimensions."""
        if x.axis in axes:
            raise Refused("a reduction over blocks")
        kept = [i for i in range(len(x.shape)) if i not in axes]
        parts = [(factor, i in axes) for i, dim in enumerate(x.dims) for factor in dim if factor.size != 1]
        # The kernel reduces [outer, reduced, inner]. If memory does not have this form, a copy gets it.
        parts.sort(key=lambda part: -part[0].stride)
        flags = [flag for _, flag in parts]
        whole = self._without_gaps(x, [factor for factor, _ in parts])
        together = flags == sorted(flags) or flags == sorted(flags, reverse=True) or _one_run(flags)
        in_order = [i for i, dim in enumerate(x.dims) if i in kept and math.prod(f.size for f in dim) > 1]
        by_stride = sorted(in_order, key=lambda i: -(merged(x.dims[i])[0].stride))
        if not (
            whole and together and in_order == by_stride and all(len(merged(x.dims[i])) <= 1 for i in kept)
        ):
            x = self.copied(x, [*kept, *axes])
            parts = [(factor, i in axes) for i in (*kept, *axes) for factor in x.dims[i] if factor.size != 1]
        sizes = [1, 1, 1]
        stage = 0
        for factor, flag in parts:
            if flag and stage == 0:
                stage = 1
            elif not flag and stage == 1:
                stage = 2
            sizes[stage] *= factor.size
        out = self.new(shape, None if x.axis is None else kept.index(x.axis))
        self.emit(
            "reduce",
            [x, out],
            x=x.place,
            y=out.place,
            outer=sizes[0],
            reduced=sizes[1],
            inner=sizes[2],
            kind=kind,
        )
        return out

    def pool(self, x: Value, kind: str, params: dict[str, Any], shape: Sequence[int]) -> Value:
        """A reduction over windows of one or two dimensions."""
        window, strides = params["window_dimensions"], params["window_strides"]
        if any(d != 1 for d in params["base_dilation"]):
            raise Refused("a window of another kind")
        moved = [
            i for i in range(len(window)) if window[i] != 1 or strides[i] != 1 or any(params["padding"][i])
        ]
        if not moved or len(moved) > 2 or x.axis in moved or len(x.shape) < 3:
            raise Refused("a window of another kind")
        spatial = moved
        rest = [i for i in range(len(window)) if i not in spatial]
        if x.axis is not None and x.axis != rest[0]:
            raise Refused("windows over blocks")
        images, channels = rest[:1], rest[1:]
        order = [*images, *spatial, *channels]
        dims = [factor for i in order for factor in x.dims[i] if factor.size != 1]
        if not self._without_gaps(x, dims) or dims != sorted(dims, key=lambda f: -f.stride):
            x = self.copied(x, order)
        per_block = x.per_block()
        out = self.new(shape, x.axis, order)
        get = lambda values: [1] * (2 - len(spatial)) + [values[i] for i in spatial]  # noqa: E731
        low = [pair[0] for pair in params["padding"]]
        sizes = [*get(per_block), *get(shape), *get(window), *get(strides), *get(params["window_dilation"])]
        sizes += [0] * (2 - len(spatial)) + [low[i] for i in spatial]
        count = math.prod(per_block[i] for i in channels)
        self.emit(
            "pool",
            [x, out],
            x=x.place,
            y=out.place,
            images=math.prod(per_block[i] for i in images),
            channels=count,
            kind=kind,
            sizes=sizes,
        )
        return out

    def _without_gaps(self, x: Value, dims: Sequence[Factor]) -> bool:
        one = merged(dims)
        return (not one or (len(one) == 1 and one[0].stride == 1)) and (self.blocks == 1 or x.block == x.size)

    def broadcast(self, x: Value, shape: Sequence[int], dimensions: Sequence[int]) -> Value:
        """New dimensions, and repeated ones, without a copy: a stride of 0 repeats an element."""
        dims: list[Dim] = [(Factor(size, 0),) for size in shape]
        for source, target in enumerate(dimensions):
            if x.shape[source] == shape[target]:
                dims[target] = x.dims[source]
        axis = None if x.axis is None else dimensions[x.axis]
        if axis is None and self.blocks > 1:
            raise Refused("blocks from one")
        if axis is not None and x.axis is not None and x.shape[x.axis] != shape[axis]:
            raise Refused("repeated blocks")
        return replace(x, shape=tuple(shape), dims=tuple(dims), axis=axis)


def _summed(x: Value, axes: Sequence[int]) -> tuple[list[Factor], list[int], Dim]:
    """The parts over which a product sums, their order in memory without parts of 1, and their runs."""
    # The kernel sums in the order of memory, so the packed weights are put in that order, too.
    parts = [factor for i in axes for factor in x.dims[i]]
    order = sorted((i for i in range(len(parts)) if parts[i].size != 1), key=lambda i: -parts[i].stride)
    # A row is read as runs of adjacent floats, so adjacent parts are joined.
    return parts, order, merged([parts[i] for i in order])


def _three(runs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    if math.prod(size for size, _ in runs) > MOST_RUNS:
        raise Refused("a window of too many runs")
    filled = [*((1, 0) for _ in range(3 - len(runs))), *((size, step) for size, step in runs)]
    return filled[0], filled[1], filled[2]


def _one_run(flags: Sequence[bool]) -> bool:
    """Whether the true flags are adjacent."""
    return sum(1 for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])) <= 1
