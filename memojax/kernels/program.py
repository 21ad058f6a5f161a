"""Programs for the kernels, in the form that `native/program.h` declares.

A program is an array of int64 words: a header, then one step after another, each with its opcode and length.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_MAGIC = 0x6D656D6F6A617807
_HEADER_WORDS = 9
_THREADS_WORD = 8
_PRODUCT, _ELEMENTWISE, _REDUCE, _COPY, _FILL, _POOL, _SECTION, _DRAW, _WHOLE, _DEPTHWISE, _PICK = range(
    1, 12
)

INSTRUCTIONS = (
    *("add", "sub", "mul", "div", "max", "min", "neg", "abs", "exp", "log", "log1p", "expm1", "tanh"),
    *("logistic", "erf", "sqrt", "rsqrt", "floor", "ceil", "sign", "lt", "le", "gt", "ge", "eq", "ne"),
    *("select", "not", "and", "or", "is_finite", "move", "erf_inv"),
)
_CODES = {name: number for number, name in enumerate(INSTRUCTIONS)}
ACTIVATIONS = ("", "relu", "tanh", "logistic")
REDUCTIONS = {"sum": 0, "max": 1, "min": 2, "argmax": 3, "argmin": 4}
REGISTERS = 24
MOST_RUNS = 4096
MOST_BUFFERS = 512
MOST_COPY_DIMENSIONS = 8

ARENA = -1
SHARED = -3
ALIGNED = 16
"""Floats to which values in the arena are aligned: a cache line."""

_CHUNK_FLOATS = 48 * 1024
"""Floats of a chunk's intermediate values that still leave a core's cache room for weights."""

_CHUNK_ROWS = 32
"""Rows in a product from which additional rows bring no more speed."""


_BAND_FLOATS = 24 * 1024
"""Floats of a convolution's results that stay in the cache until windows of them are reduced."""

_LARGE_IMAGES = 64 * 1024
"""Floats of a convolution's results from which a pass over all of them leaves the cache."""

_LEAST_ROWS = 12
"""Rows that fill a block of a product's registers."""


class Place(NamedTuple):
    """The place of a value: it begins `offset` floats into a buffer, with `stride` floats per block of rows.

    `SHARED` is a buffer for values that one section makes and later ones read. In the arena (`ARENA`) a
    value's blocks begin at `offset` times their number, plus `stride`.
    """

    buffer: int
    offset: int = 0
    stride: int = 0


ABSENT = Place(-2)


@dataclass(frozen=True)
class Product:
    """Rows times a packed matrix, plus bias, through an activation; see `native/compute.h`.

    Attributes:
        images: images per block (rows, for a dense layer); each has `size` rows.
        runs: three pairs (count, step) that give the begins of a row's runs of `length` adjacent floats.
        groups: number of products, of `columns` columns each.
        group_steps: floats from one group to the next, in x, weights, bias and y.
        x_steps: floats from one image, line and row to the next; `y_steps` likewise.
        activation: one of `ACTIVATIONS`, of the sum; "" for none.
        grows: whether the product is added to the content of y.
        pairs: whether each block has its own matrices, one per group, one after the other.
    """

    x: Place
    weights: Place
    bias: Place
    y: Place
    images: int
    size: tuple[int, int]
    columns: int
    length: int
    runs: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    x_steps: tuple[int, int, int]
    y_steps: tuple[int, int, int]
    activation: str = ""
    grows: bool = False
    groups: int = 1
    group_steps: tuple[int, int, int, int] = (0, 0, 0, 0)
    pairs: bool = False

    @property
    def rows(self) -> int:
        """Rows per block that one matrix multiplies."""
        return self.images * self.size[0] * self.size[1]

    @property
    def flops(self) -> int:
        """Additions and multiplications per block."""
        depth = self.length * self.runs[0][0] * self.runs[1][0] * self.runs[2][0]
        return 2 * self.rows * self.columns * self.groups * depth


class Operand(NamedTuple):
    """An operand of elementwise code; `step` 0 means that one number fills a row."""

    place: Place
    row_stride: int
    step: int
    register: int


class Instruction(NamedTuple):
    """One instruction; a register of None stands for the number `immediate`."""

    name: str
    to: int
    a: int | None
    b: int | None = 0
    c: int | None = 0
    immediate: float = 0.0


def lines_of(product: Mapping[str, Any], pool: Mapping[str, Any]) -> int:
    """Lines of results per pass of a convolution and the reduction over windows behind it.

    0 if they do not run together: the windows share lines, or the convolution's results are small.
    """
    (high, wide, out_high, _, window, _, stride, _, apart, _, above, _), columns = (
        pool["sizes"],
        product["columns"],
    )
    line, images = wide * columns, product["images"]
    dense = product["y_steps"] == (high * line, line, columns) and product["size"] == (high, wide)
    if (
        not dense
        or product.get("groups", 1) != 1
        or product.get("pairs")
        or product.get("grows")
        or (pool["channels"], pool["images"]) != (columns, images)
        or (window, above) != (stride, 0)
        or (window > 1 and apart != 1)
        or out_high * window > high
        or out_high < 2
        or images * high * line < _LARGE_IMAGES
    ):
        return 0
    return max(1, _BAND_FLOATS // (window * line))


def least_of(rows: int) -> int:
    """How few blocks, of `rows` rows of a product each, a thread may take instead of a share of each step."""
    return -(-_LEAST_ROWS // max(1, rows))


def chunk_of(blocks: int, rows: int, arena_row: int) -> int:
    """Blocks per pass, for products of `rows` rows and `arena_row` intermediate floats per block."""
    by_rows = max(1, _CHUNK_ROWS // max(1, rows))
    by_room = max(1, _CHUNK_FLOATS // max(1, arena_row))
    return max(1, min(blocks, max(by_rows, min(by_room, 2 * by_rows))))


@dataclass
class Program:
    """The words of a program in progress, for `blocks` blocks of rows and `buffers` arguments and results.

    Attributes:
        arena_row: floats of the arena per block of a chunk.
        shared: floats that later sections read, for all blocks.
    """

    blocks: int
    buffers: int
    words: list[int] = field(default_factory=list)
    steps: int = 0
    flops: int = 0
    arena_row: int = 0
    shared: int = 0

    def array(self) -> np.ndarray:
        """The program; without an explicit section, all of it is one."""
        first = [] if self.words and self.words[0] == _SECTION else [_SECTION, 4, *[max(1, self.blocks)] * 2]
        words = [*first, *self.words]
        steps = self.steps + bool(first)
        count = _HEADER_WORDS + len(words)
        header = [_MAGIC, count, self.blocks, self.arena_row, self.shared, self.flops, steps, self.buffers, 0]
        return np.array([*header, *words], np.int64)

    def section(self, chunk: int, least: int) -> None:
        """Begin a section of `chunk` blocks per pass, which waits for all blocks of the section before.

        A thread may take as few as `least` blocks.
        """
        self._add(_SECTION, [chunk, least])

    def product(self, p: Product) -> None:
        """Add a dense layer or a convolution."""
        runs = [word for pair in p.runs for word in pair]
        self._add(
            _PRODUCT,
            [
                *p.x,
                *p.weights,
                *p.bias,
                *p.y,
                p.images,
                *p.size,
                p.columns,
                p.length,
                p.groups,
                *p.group_steps,
                *p.x_steps,
                *p.y_steps,
                ACTIVATIONS.index(p.activation),
                int(p.grows),
                int(p.pairs),
                *runs,
            ],
        )
        self.flops += p.flops
        if p.activation in ("tanh", "logistic"):
            self.flops += 18 * p.rows * p.columns * p.groups

    def elementwise(
        self,
        rows: int,
        columns: int,
        inputs: Sequence[Operand],
        outputs: Sequence[Operand],
        code: Sequence[Instruction],
    ) -> None:
        """Add elementwise code over `rows` x `columns` per block."""
        words = [rows, columns, len(inputs), len(outputs), len(code)]
        for operand in (*inputs, *outputs):
            words += [*operand.place, operand.row_stride, operand.step, operand.register]
        for one in code:
            registers = [255 if register is None else register for register in (one.a, one.b, one.c)]
            words.append(
                _CODES[one.name] | one.to << 8 | registers[0] << 16 | registers[1] << 24 | registers[2] << 32
            )
            words.append(_float_bits(one.immediate))
        self._add(_ELEMENTWISE, words)
        self.flops += 6 * rows * columns * (len(code) + 2)

    def reduce(self, x: Place, y: Place, outer: int, reduced: int, inner: int, kind: str) -> None:
        """Add a reduction from [outer, reduced, inner] to [outer, inner] per block."""
        self._add(_REDUCE, [*x, *y, outer, reduced, inner, REDUCTIONS[kind]])
        self.flops += 2 * outer * reduced * inner

    def copy(self, x: Place, y: Place, blocks: tuple[int, int], dims: Sequence[tuple[int, int, int]]) -> None:
        """Add a copy of `dims` (size, step in x, step in y); `blocks` are the steps from block to block."""
        merged = merged_copy(dims)
        self._add(_COPY, [*x, *y, *blocks, len(merged), *(word for dim in merged for word in dim)])
        self.flops += 8 * int(np.prod([size for size, _, _ in dims], dtype=np.int64))

    def fill(self, y: Place, count: int, value: float) -> None:
        """Fill `count` floats per block with `value`."""
        self._add(_FILL, [*y, count, _float_bits(value)])
        self.flops += count

    def draw(self, key: Place, y: Place, count: int, folds: Sequence[int]) -> None:
        """Add random numbers in [1, 2), `count` for each block.

        A fold of -1 is the block's number. Each block then counts from 0, else all blocks count together.
        """
        self._add(_DRAW, [*key, *y, count, len(folds), *folds])
        self.flops += 60 * count

    def whole(self, x: Place, y: Place, count: int, bits: int) -> None:
        """Add the change of `count` floats for each block to integers of 32 or 64 bits."""
        self._add(_WHOLE, [*x, *y, count, bits])
        self.flops += 4 * count

    def pool(
        self,
        x: Place,
        y: Place,
        images: int,
        channels: int,
        kind: str,
        sizes: Sequence[int],
        lines: int = 0,
    ) -> None:
        """Add a reduction over windows.

        `sizes` are pairs: input, output, window, strides, dilation, padding before. If `lines` is not 0, the
        product before this step has no other reader; both run together, so many lines of results at a time.
        """
        self._add(_POOL, [*x, *y, images, channels, REDUCTIONS[kind], *sizes, lines])
        self.flops += 2 * images * channels * sizes[2] * sizes[3] * sizes[4] * sizes[5]

    def depthwise(
        self,
        x: Place,
        weights: Place,
        bias: Place,
        y: Place,
        images: int,
        sizes: Sequence[int],
        activation: str,
    ) -> None:
        """Add a convolution with a window for each channel.

        `sizes` are height, width and channels of a result; height and width of a window, and the steps
        between its lines and pixels; the steps of x from image to image, line to line and pixel to pixel.
        """
        self._add(_DEPTHWISE, [*x, *weights, *bias, *y, images, *sizes, ACTIVATIONS.index(activation)])
        self.flops += 2 * images * sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4]

    def pick(
        self, x: Place, places: Place, y: Place, count: int, blocks: tuple[int, int], scatters: bool
    ) -> None:
        """Add moves of `count` single elements: from listed places of x, or to listed places of y.

        `places` are int32; one below zero is left out. `blocks` are the steps from block to block.
        """
        self._add(_PICK, [*x, *places, *y, count, *blocks, int(scatters)])
        self.flops += 8 * count

    def _add(self, opcode: int, words: Sequence[int]) -> None:
        self.words += [opcode, len(words) + 2, *map(int, words)]
        self.steps += 1


def bound_threads(program: np.ndarray, threads: int) -> None:
    """Let a run use so many threads at most."""
    program[_THREADS_WORD] = threads


def memory_of(program: np.ndarray, threads: int) -> int:
    """Bytes of values in between that a run needs at most, on so many threads."""
    threads = min(threads, int(program[_THREADS_WORD]) or threads)
    blocks, arena_row, shared = (int(word) for word in program[2:5])
    chunk, at = 1, _HEADER_WORDS
    while at < program.size:
        if program[at] == _SECTION:
            chunk = max(chunk, int(program[at + 2]))
        at += int(program[at + 1])
    return 4 * (arena_row * min(blocks, chunk * threads) + shared)


def _float_bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def merged_copy(dims: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same copy in fewer dimensions: (size, step in x, step in y)."""
    merged: list[tuple[int, int, int]] = []
    for size, a, b in dims:
        if size == 1:
            continue
        if merged and merged[-1][1] == a * size and merged[-1][2] == b * size:
            merged[-1] = merged[-1][0] * size, a, b
        else:
            merged.append((size, a, b))
    return merged
