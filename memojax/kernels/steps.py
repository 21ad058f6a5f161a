"""Translates each primitive of a traced function into steps of a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from .emitter import Emitter
from .group import Group, Pending
from .pairs import product_of_pairs
from .picks import gathered, scattered, turned
from .program import INSTRUCTIONS
from .values import Constant, Refused, Value, arranged

Known: TypeAlias = "Value | Constant | Pending"


@dataclass
class Translator:
    """Adds steps to an emitter; `uses` is the number of readers of each value."""

    emitter: Emitter
    uses: Mapping[int, int]
    known: dict[int, Known] = field(default_factory=dict)

    def add(self, index: int, step: Any, operands: Sequence[Known], fused: Fused | None = None) -> None:
        """Add the step with number `index`; `fused` holds the steps after a product that it absorbs.

        Raises:
            Refused: the step cannot be part of a program.
        """
        name = step.primitive.name
        if name in ELEMENTWISE:
            self.known[step.outputs[0]] = self._elementwise(index, step, operands)
            return
        made = (
            STEPS[name](self, step, operands, fused)
            if name in _PRODUCTS
            else STEPS[name](self, step, operands)
        )
        if fused and fused.shape is not None:
            made = [_as_shape(self, made[0], fused.shape)]
        self.known.update(zip(fused.outputs if fused else step.outputs, made, strict=True))

    def value(self, known: Known) -> Value:
        """A known value in memory."""
        return self.emitter.here(known)

    def _elementwise(self, index: int, step: Any, operands: Sequence[Known]) -> Known:
        shape = tuple(step.avals[0].shape)
        emitter = self.emitter
        if all(isinstance(operand, Constant) for operand in operands):
            raise Refused("elementwise code over constants")
        # JAX's elementwise primitives repeat dimensions of size 1.
        operands = [
            one if isinstance(one, Constant) or one.shape == shape else self._spread(one, shape)
            for one in operands
        ]
        if emitter.group is not None and (emitter.group.shape != shape or not emitter.group.room(3)):
            # A group runs over arrays of one shape and one block dimension; others start a new group.
            emitter.flush()
        group = emitter.group
        if group is not None:
            axes = {value.axis for value in group.inputs if isinstance(value, Value)}
            for operand in operands:
                found = (
                    operand.value if isinstance(operand, Pending) and operand.group is not group else operand
                )
                if isinstance(found, Value) and found.axis not in axes:
                    emitter.flush()
                    group = None
                    break
        if group is None:
            for operand in operands:
                if isinstance(operand, Pending):
                    self.value(operand)
            group = emitter.group = Group(shape)
        registers, immediate = [], 0.0
        for operand in operands:
            number = operand.number if isinstance(operand, Constant) else None
            if number is not None and (None not in registers or number == immediate):
                immediate = number
                registers.append(None)
            elif isinstance(operand, Constant):
                registers.append(
                    group.operand(Constant(shape, _held(operand, shape), operand.source, operand.arrangement))
                )
            else:
                registers.append(group.operand(operand))
        group.steps.append(index)
        register = ELEMENTWISE[step.primitive.name](group, step, registers, immediate)
        return group.result(register, self.uses.get(step.outputs[0], 0))

    def _spread(self, operand: Known, shape: tuple[int, ...]) -> Value:
        value = self.value(operand)
        if len(value.shape) != len(shape):
            raise Refused("elementwise code over several shapes")
        return self.emitter.broadcast(value, shape, range(len(shape)))


@dataclass(frozen=True)
class Fused:
    """Steps that a product absorbs: an addend, a bias, an activation; and the shape of the final result."""

    bias: Constant | None = None
    activation: str = ""
    outputs: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    addend: Value | None = None


def spread(constant: Constant, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The part of `shape` that a constant holds before it is repeated; None if it does not fit."""
    if math.prod(constant.held) == 1:
        return (1,) * len(shape)
    fits = len(constant.shape) == len(shape) and all(
        a in (1, b) for a, b in zip(constant.shape, shape, strict=True)
    )
    return constant.held if fits else None


def _held(constant: Constant, shape: tuple[int, ...]) -> tuple[int, ...]:
    held = spread(constant, shape)
    if held is None:
        raise Refused("elementwise code over several shapes")
    return held


# Elementwise primitives
# --------------------------------------------------------------------------------------------------


def _plain(name: str) -> Callable[..., int]:
    return lambda group, step, registers, immediate: group.add(name, *registers, immediate=immediate)


def _power(group: Group, step: Any, registers: list[int | None], _: float) -> int:
    exponent = step.params["y"]
    if not 1 <= exponent <= 4:
        raise Refused(f"power {exponent}")
    base = registers[0]
    result = base
    for _i in range(exponent - 1):
        result = group.add("mul", result, base)
    return group.add("move", base) if exponent == 1 else result  # pyright: ignore[reportReturnType]


def _select(group: Group, step: Any, registers: list[int | None], immediate: float) -> int:
    if len(registers) != 3:
        raise Refused("a choice of another kind")
    if registers[0] is None:
        chosen = registers[2] if immediate else registers[1]
        if chosen is None:
            raise Refused("a choice between numbers")
        return group.add("move", chosen)
    return group.add("select", *registers, immediate=immediate)


def _convert(group: Group, step: Any, registers: list[int | None], immediate: float) -> int:
    # Whole numbers are floats here; truth values, too.
    if step.avals[0].dtype == np.bool_:
        return group.add("ne", registers[0], None, immediate=0.0)
    return group.add("move", *registers)


ELEMENTWISE: dict[str, Callable[..., int]] = {
    **{name: _plain(name) for name in INSTRUCTIONS if name not in ("select", "move")},
    "integer_pow": _power,
    "square": lambda group, step, registers, immediate: group.add("mul", registers[0], registers[0]),
    "select_n": _select,
    "convert_element_type": _convert,
    "copy": lambda group, step, registers, immediate: group.add("move", *registers),
    "stop_gradient": lambda group, step, registers, immediate: group.add("move", *registers),
}


# Moves
# --------------------------------------------------------------------------------------------------


def _reshape(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    shape = tuple(step.avals[0].shape)
    (x,) = operands
    if step.primitive.name == "reshape" and step.params.get("dimensions") is not None:
        raise Refused("a reshape with dimensions")
    if isinstance(x, Constant):
        if x.held != x.shape and math.prod(x.held) != 1:
            if [size for size in x.shape if size != 1] == [size for size in shape if size != 1]:
                held = _reshaped_hold(x, shape)
                return [Constant(shape, held, x.source, x.then(("reshape", held)))]
            x = x.whole()
        held = shape if x.held == x.shape else (1,) * len(shape)
        return [Constant(shape, held, x.source, x.then(("reshape", held)))]
    return [_as_shape(t, x, shape)]


def _as_shape(t: Translator, known: Known, shape: tuple[int, ...]) -> Value:
    x = t.value(known)
    return x.reshaped(shape, t.emitter.blocks) or _must(t.emitter.copied(x).reshaped(shape, t.emitter.blocks))


def _reshaped_hold(x: Constant, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A broadcast constant in another shape, where only dimensions of size 1 come and go."""
    held = iter([kept for kept, size in zip(x.held, x.shape, strict=True) if size != 1])
    return tuple(1 if size == 1 else next(held) for size in shape)


def _must(value: Value | None) -> Value:
    if value is None:
        raise Refused("a reshape of scattered elements")
    return value


def _transpose(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    (x,) = operands
    order = tuple(step.params["permutation"])
    if isinstance(x, Constant):
        return [
            Constant(
                tuple(x.shape[i] for i in order),
                tuple(x.held[i] for i in order),
                x.source,
                x.then(("transpose", order)),
            )
        ]
    return [t.value(x).transposed(order)]


def _broadcast(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    (x, *_) = operands
    shape, dimensions = tuple(step.params["shape"]), tuple(step.params["broadcast_dimensions"])
    if isinstance(x, Constant):
        held = [1] * len(shape)
        for source, target in enumerate(dimensions):
            held[target] = x.held[source]
        return [Constant(shape, tuple(held), x.source, x.then(("reshape", tuple(held))))]
    return [t.emitter.broadcast(t.value(x), shape, dimensions)]


def _slice(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    (x,) = operands
    starts, limits = step.params["start_indices"], step.params["limit_indices"]
    return [_part(t, x, starts, limits, step.params["strides"] or (1,) * len(starts))]


def _part(
    t: Translator, x: Known, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]
) -> Value | Constant:
    if isinstance(x, Constant):
        shape = tuple(-(-(b - a) // stride) for a, b, stride in zip(starts, limits, strides, strict=True))
        parts = tuple(
            (a, b, stride) if held != 1 else (0, 1, 1)
            for a, b, stride, held in zip(starts, limits, strides, x.held, strict=True)
        )
        held = tuple(1 if one == 1 else size for size, one in zip(shape, x.held, strict=True))
        return Constant(shape, held, x.source, x.then(("slice", parts)))
    value = t.value(x)
    return value.sliced(starts, limits, strides) or _must(
        t.emitter.copied(value).sliced(starts, limits, strides)
    )


def _split(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    (x,) = operands
    axis, shape = step.params["axis"], tuple(x.shape)
    start, found = 0, []
    for size in step.params["sizes"]:
        starts, limits = [0] * len(shape), list(shape)
        starts[axis], limits[axis] = start, start + size
        found.append(_part(t, x, starts, limits, (1,) * len(shape)))
        start += size
    return found


def _concatenate(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    return [
        t.emitter.concatenate(
            [t.value(x) for x in operands], step.params["dimension"], tuple(step.avals[0].shape)
        )
    ]


def _stack(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    axis, shape = step.params["axis"], tuple(step.avals[0].shape)
    single = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = []
    for operand in operands:
        value = t.value(operand)
        parts.append(
            value.reshaped(single, t.emitter.blocks)
            or _must(t.emitter.copied(value).reshaped(single, t.emitter.blocks))
        )
    return [parts[0] if len(parts) == 1 else t.emitter.concatenate(parts, axis, shape)]


def _pad(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    x, filler = operands
    number = filler.number if isinstance(filler, Constant) else None
    if number is None:
        raise Refused("a pad with a computed number")
    return [t.emitter.pad(t.value(x), step.params["padding_config"], number)]


def _rev(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    return [turned(t.emitter, t.value(operands[0]), tuple(map(int, step.params["dimensions"])))]


def _indices(operand: Known) -> np.ndarray | Constant:
    """Indices that are part of the function, or weights."""
    if not isinstance(operand, Constant):
        raise Refused("computed indices")
    if isinstance(operand.source, int):
        return operand.whole()
    array = np.broadcast_to(arranged(operand.source, operand.arrangement), operand.shape)
    if array.size and np.abs(array).max() >= 1 << 24:
        raise Refused("indices too large for a float")
    return array.astype(np.int64)


def _gather(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    x, indices = operands
    return [gathered(t.emitter, t.value(x), _indices(indices), step.params, tuple(step.avals[0].shape))]


def _scatter(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    x, indices, updates = operands
    return [scattered(t.emitter, t.value(x), _indices(indices), t.value(updates), step.params)]


# Products and reductions
# --------------------------------------------------------------------------------------------------


def _dense(t: Translator, step: Any, operands: Sequence[Known], fused: Fused | None) -> list[Known]:
    (over_a, over_b), (batch_a, batch_b) = step.params["dimension_numbers"]
    a, b = operands
    shape = tuple(step.avals[0].shape)
    if not isinstance(a, Constant) and not isinstance(b, Constant):
        over, batch = (over_a, over_b), (batch_a, batch_b)
        return [product_of_pairs(t.emitter, t.value(a), t.value(b), over, batch, shape)]
    if batch_a or batch_b:
        raise Refused("a product for each of a batch")
    fused = fused or Fused()
    if isinstance(a, Constant) and isinstance(b, Constant):
        a = t.value(a)
    if isinstance(b, Constant) and not isinstance(a, Constant):
        return [
            t.emitter.dense(
                t.value(a), b, (over_a, over_b), shape, False, fused.bias, fused.activation, fused.addend
            )
        ]
    if isinstance(a, Constant) and not isinstance(b, Constant):
        return [
            t.emitter.dense(
                t.value(b), a, (over_b, over_a), shape, True, fused.bias, fused.activation, fused.addend
            )
        ]
    raise Refused("a product of other operands")


def _convolution(t: Translator, step: Any, operands: Sequence[Known], fused: Fused | None) -> list[Known]:
    x, weight = operands
    if not isinstance(weight, Constant) or isinstance(x, Constant):
        raise Refused("a convolution with computed weights")
    fused = fused or Fused()
    shape = tuple(step.avals[0].shape)
    return [t.emitter.convolution(t.value(x), weight, step.params, shape, fused.bias, fused.activation)]


def _reduce(kind: str) -> Callable[..., list[Known]]:
    def reduce(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
        return [t.emitter.reduce(t.value(operands[0]), step.params["axes"], kind, tuple(step.avals[0].shape))]

    return reduce


def _draw(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
    given, shape = step.params, tuple(step.avals[0].shape)
    return [t.emitter.draw(t.value(operands[0]), given["folds"], given["rows"], shape)]


def _window(kind: str) -> Callable[..., list[Known]]:
    def window(t: Translator, step: Any, operands: Sequence[Known]) -> list[Known]:
        return [t.emitter.pool(t.value(operands[0]), kind, step.params, tuple(step.avals[0].shape))]

    return window


_PRODUCTS = ("dot_general", "conv_general_dilated")
PICKS = ("gather", "scatter")
STEPS: dict[str, Callable[..., list[Known]]] = {
    "dot_general": _dense,
    "conv_general_dilated": _convolution,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "rev": _rev,
    "gather": _gather,
    "scatter": _scatter,
    "reduce_sum": _reduce("sum"),
    "reduce_max": _reduce("max"),
    "reduce_min": _reduce("min"),
    "argmax": _reduce("argmax"),
    "argmin": _reduce("argmin"),
    "draw": _draw,
    "reduce_window_max": _window("max"),
    "reduce_window_sum": _window("sum"),
}
