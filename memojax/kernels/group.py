"""Gathers elementwise steps into one piece of elementwise code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from .program import REGISTERS, Instruction, Operand, Place
from .values import Arrangement, Constant, Factor, Refused, Value, merged, refined, row_major

_LARGEST_CONSTANT = 1 << 16
"""Limit of floats of a constant that is expanded over its broadcast dimensions."""


class Memory(Protocol):
    """The part of an `Emitter` that elementwise code needs: memory for values, and steps."""

    blocks: int

    def new(self, shape: Sequence[int], axis: int | None, order: Sequence[int] | None = None) -> Value:
        """A dense value, with the last dimension of `order` innermost."""
        ...

    def weight(self, source: Any, arrangement: Arrangement, size: int) -> Place:
        """An argument made of weights."""
        ...

    def copied(self, value: Value, order: Sequence[int] | None = None) -> Value:
        """A dense copy."""
        ...

    def copy(self, value: Value, target: Value) -> None:
        """Add a copy into `target`."""
        ...

    def emit(self, method: str, uses: Sequence[Value], **given: Any) -> None:
        """Add a step that touches `uses`."""
        ...


class _Part(NamedTuple):
    """A part of dimension `dim`, and its stride in each input (for a constant: whether it varies)."""

    position: int
    dim: int
    size: int
    strides: tuple[int, ...]


@dataclass(eq=False)
class Pending:
    """A result of elementwise code that is not in memory yet; `uses` counts the readers still to come."""

    group: Group
    register: int
    uses: int
    value: Value | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.group.shape


@dataclass(eq=False)
class Group:
    """Elementwise code over arrays of one shape."""

    shape: tuple[int, ...]
    inputs: list[Value | Constant] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    results: list[Pending] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Indices of the steps in this code."""
    _registers: dict[Any, int] = field(default_factory=dict)
    _next: int = 0

    def room(self, instructions: int) -> bool:
        """Whether this many more instructions fit, each with two new inputs."""
        return self._next + 3 * instructions <= REGISTERS

    def operand(self, value: Value | Constant | Pending) -> int:
        """The register of an input or of an earlier result."""
        if isinstance(value, Pending):
            value.uses -= 1
            if value.group is self:
                return value.register
            assert value.value is not None
            value = value.value
        if value not in self._registers:
            self._registers[value] = self._new()
            self.inputs.append(value)
        return self._registers[value]

    def add(self, name: str, *operands: Any, immediate: float = 0.0) -> int:
        """Add an instruction, and return its result's register; an operand of None means `immediate`."""
        to = self._new()
        a, b, c = (*operands, 0, 0, 0)[:3]
        self.code.append(Instruction(name, to, a, b, c, immediate))
        return to

    def result(self, register: int, uses: int) -> Pending:
        """The result in a register, for `uses` readers."""
        pending = Pending(self, register, uses)
        self.results.append(pending)
        return pending

    def _new(self) -> int:
        if self._next == REGISTERS:
            raise Refused("elementwise code of too many registers")
        self._next += 1
        return self._next - 1

    # To memory
    # ----------------------------------------------------------------------------------------------

    def emit(self, memory: Memory) -> None:
        """Add the code to a program, and place the results with readers in memory."""
        wanted = [result for result in self.results if result.uses > 0]
        if not wanted:
            return
        inputs = list(self.inputs)
        values = [value for value in inputs if isinstance(value, Value)]
        if not values:
            raise Refused("elementwise code over constants")
        axis = values[0].axis
        if any(value.axis != axis for value in values):
            raise Refused("blocks in different dimensions")
        try:
            parts = self._parts(inputs)
        except Refused:
            inputs = [
                # Some dimension has no parts common to all inputs, until dense copies replace scattered ones.
                memory.copied(v) if isinstance(v, Value) and any(len(merged(d)) > 1 for d in v.dims) else v
                for v in inputs
            ]
            parts = self._parts(inputs)
        start = self._columns(inputs, parts, memory.blocks)
        for number, value in enumerate(inputs):
            if isinstance(value, Value) and not _fits(value, parts, number, start, memory.blocks):
                # The copy has the layout of the results, so it fits wherever a row begins.
                copy = self._like(memory, parts, axis)
                memory.copy(value, copy)
                inputs[number] = copy
        if any(inputs[n] is not v for n, v in enumerate(self.inputs)):
            parts = self._parts(inputs)
            start = self._columns(inputs, parts, memory.blocks)
        columns = math.prod(part.size for part in parts[start:])
        rows = math.prod(part.size for part in parts[:start])
        operands, uses = [], []
        for number, value in enumerate(inputs):
            register = self._registers[self.inputs[number]]
            if isinstance(value, Constant):
                operands.append(self._constant(memory, value, number, parts, start, register))
                continue
            row = _row_stride(value, parts, number, start, memory.blocks)
            if row is None:
                raise Refused("elementwise code over arrays that lie apart")
            # Rows of one number, one after the other, are a single long row for the loops.
            step = 1 if any(part.strides[number] for part in parts[start:]) or row == columns == 1 else 0
            operands.append(Operand(value.place, row, step, register))
            uses.append(value)
        outputs = []
        for result in wanted:
            result.value = self._like(memory, parts, axis)
            outputs.append(Operand(result.value.place, columns, 1, result.register))
            uses.append(result.value)
        memory.emit(
            "elementwise",
            uses,
            rows=rows,
            columns=columns,
            inputs=operands,
            outputs=outputs,
            code=list(self.code),
        )

    def _parts(self, inputs: Sequence[Value | Constant]) -> list[_Part]:
        """The parts of one block's dimensions, the outermost in memory first."""
        axis = next(value.axis for value in inputs if isinstance(value, Value))
        sizes = next(value for value in inputs if isinstance(value, Value)).per_block()
        found = []
        for dim in range(len(self.shape)):
            given = []
            for value in inputs:
                if isinstance(value, Value):
                    given.append(value.dims[dim])
                elif value.held[dim] == 1:
                    given.append((Factor(sizes[dim], 0),))
                else:
                    if dim == axis:
                        raise Refused("a constant that varies over blocks")
                    given.append((Factor(sizes[dim], 1),))
            found += [
                _Part(len(found) + i, dim, size, tuple(strides))
                for i, (size, *strides) in enumerate(refined(given))
            ]
        values = [number for number, value in enumerate(inputs) if isinstance(value, Value)]
        lead = max(values, key=lambda number: sum(part.strides[number] != 0 for part in found))
        return sorted(found, key=lambda part: -part.strides[lead])

    def _columns(self, inputs: Sequence[Value | Constant], parts: Sequence[_Part], blocks: int) -> int:
        """Index of the first part of a row: the choice that most inputs fit, then the longest rows."""
        latest = len(parts)
        for number, value in enumerate(inputs):
            if isinstance(value, Constant):
                latest = min(
                    latest, next((i for i, part in enumerate(parts) if part.strides[number]), len(parts))
                )
        values = [(number, value) for number, value in enumerate(inputs) if isinstance(value, Value)]
        misfits = [
            sum(not _fits(value, parts, number, start, blocks) for number, value in values)
            for start in range(latest + 1)
        ]
        return misfits.index(min(misfits))

    def _like(self, memory: Memory, parts: Sequence[_Part], axis: int | None) -> Value:
        """A new value whose parts lie in the order of `parts`."""
        strides = row_major([part.size for part in parts])
        dims: list[list[Factor]] = [[] for _ in self.shape]
        for part, stride in sorted(zip(parts, strides, strict=True), key=lambda one: one[0].position):
            dims[part.dim].append(Factor(part.size, stride))
        return replace(memory.new(self.shape, axis), dims=tuple(map(tuple, dims)))

    def _constant(
        self,
        memory: Memory,
        value: Constant,
        number: int,
        parts: Sequence[_Part],
        start: int,
        register: int,
    ) -> Operand:
        inner = parts[start:]
        # Expanded over the parts of a row only: the operand's row stride of 0 repeats it for each row.
        if math.prod(value.held) == 1:
            return Operand(memory.weight(value.source, value.then(("reshape", (1,))), 1), 0, 0, register)
        columns = math.prod(part.size for part in inner)
        if columns > _LARGEST_CONSTANT:
            raise Refused("a constant too large to be spread")
        shape = [part.size if part.strides[number] else 1 for part in parts]
        natural = sorted(range(len(parts)), key=lambda i: parts[i].position)
        arrangement = value.then(
            ("reshape", tuple(shape[i] for i in natural)),
            ("transpose", tuple(natural.index(i) for i in range(len(parts)))),
            ("reshape", tuple(shape[start:])),
            ("broadcast", tuple(part.size for part in inner)),
            ("reshape", (columns,)),
        )
        return Operand(memory.weight(value.source, arrangement, columns), 0, 1, register)


def _fits(value: Value, parts: Sequence[_Part], number: int, start: int, blocks: int) -> bool:
    return _row_stride(value, parts, number, start, blocks) is not None


def _row_stride(value: Value, parts: Sequence[_Part], number: int, start: int, blocks: int) -> int | None:
    """Floats from row to row, if rows begin with part `start`; None if `value` lies otherwise."""
    inner = merged([Factor(part.size, part.strides[number]) for part in parts[start:]])
    if len(inner) > 1 or (inner and inner[0].stride not in (0, 1)):
        return None
    outer = merged([Factor(part.size, part.strides[number]) for part in parts[:start]])
    if len(outer) > 1:
        return None
    if not outer:
        return value.block if blocks > 1 else 0
    if blocks > 1 and outer[0].stride * outer[0].size != value.block:
        return None
    return outer[0].stride
