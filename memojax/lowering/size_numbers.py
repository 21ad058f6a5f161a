"""Where the number of rows itself takes part in a computation.

Fractions in a trace that depend on it, such as the 1/n of a hand-written mean, change every answer. Whole
numbers may be bounds of indices, as in any file, or decide something: an `If` on the batch size, or `n % 2`.
Such a file is checked again at each batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ..model.graph import Node
from .shared_steps import NODES, Program

SizeUses: TypeAlias = "dict[tuple[str, str], list[list[np.ndarray | None]]]"
"""(a node's first output, its operator) -> the known inputs of each run of the node; None for data."""

_COMPARED = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Max", "Min", "Clip"})
_ROUNDED = frozenset({"Div", "Mod"})
_DECIDING = frozenset(
    {"If", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "Floor", "Ceil", "Round", "Sign", "BitShift"}
    | {"BitwiseAnd", "BitwiseOr", "BitwiseXor", "Not", "And", "Or", "Xor"}
)
_WITH_DATA = frozenset({"Add", "Sub", "Mul", "Pow", "Where", *_COMPARED, *_ROUNDED})
_BOUNDS, _LARGEST_TRIED = 4, 64
_NOTED = 64
"""Entries of a value that is noted: sizes are scalars and shapes."""


def numbers_in(closed: ClosedJaxpr) -> tuple[float | int, ...]:
    """The numbers that a trace has as literals or as constants of one value, in their order."""
    return tuple(_in_closed(closed))


def fractions(numbers: Sequence[float | int]) -> tuple[float, ...]:
    """The floats among `numbers`."""
    return tuple(number for number in numbers if isinstance(number, float))


def different(numbers: Sequence[float | int]) -> tuple[float, ...]:
    """The different ones of `numbers`, fractions first."""
    found = dict.fromkeys(number for number in numbers if np.isfinite(number) and number)
    return tuple(sorted(found, key=lambda number: isinstance(number, int)))


def _in_closed(closed: ClosedJaxpr) -> Iterator[float | int]:
    for value in closed.consts:
        yield from _alike(value)
    yield from _in(closed.jaxpr)


def _in(jaxpr: Jaxpr) -> Iterator[float | int]:
    for equation in jaxpr.eqns:
        for operand in equation.invars:
            if isinstance(operand, Literal):
                yield from _alike(operand.val)
        if equation.primitive.name == NODES:
            yield from _in_steps(equation.params["program"])
            continue
        for part in equation.params.values():
            for body in part if isinstance(part, (tuple, list)) else (part,):
                if isinstance(body, ClosedJaxpr):
                    yield from _in_closed(body)
                elif isinstance(body, Jaxpr):
                    yield from _in(body)


def _in_steps(program: Program) -> Iterator[float | int]:
    known: dict[int, tuple[float | int, ...]] = {}
    for step, _ in program.steps:
        if (found := known.get(id(step))) is None:
            found = known[id(step)] = numbers_in(step.traced)
        yield from found


def _alike(value: Any) -> Iterator[float | int]:
    """The entry of an array whose entries are all the same."""
    dtype = getattr(value, "dtype", np.dtype(type(value)))
    if jnp.issubdtype(dtype, jnp.floating):
        array = np.asarray(value).astype(np.float64)
    elif jnp.issubdtype(dtype, jnp.integer):
        array = np.asarray(value)
    else:
        return
    if array.size and (array == array.flat[0]).all():
        yield array.flat[0].item()


def note_use(uses: SizeUses, node: Node, inputs: Sequence[Any]) -> None:
    """Note the known inputs of `node`, if its operator may decide something by a size."""
    kind = node.op_type
    if kind not in _WITH_DATA and kind not in _DECIDING and not _makes_flag(node):
        return
    known = [value if isinstance(value, np.ndarray) and value.size <= _NOTED else None for value in inputs]
    if any(value is not None and value.dtype.kind in "iubf" for value in known):
        uses.setdefault((node.outputs[0], kind), []).append(known)


def deciding_sizes(small: SizeUses, large: SizeUses) -> tuple[int, ...]:
    """Batch sizes to try if the uses noted at two of them show that the size may decide something.

    Empty if it decides nothing.
    """
    if small.keys() != large.keys():
        return _with_bounds([])
    bounds: list[int] | None = None
    for key, some in small.items():
        if len(some) != len(large[key]):
            return _with_bounds([])
        for a, b in zip(some, large[key], strict=True):
            if _decides(key[1], a, b):
                bounds = [*(bounds or ()), *_whole_in(a, b)]
    return () if bounds is None else _with_bounds(bounds)


def _with_bounds(bounds: Sequence[int]) -> tuple[int, ...]:
    """A few usual sizes, and those around the numbers that a size meets."""
    around = {size + step for size in bounds[:_BOUNDS] for step in (-1, 0, 1, 2)}
    return tuple(sorted({2, 3, 4, 8} | {size for size in around if 2 <= size <= _LARGEST_TRIED}))


def _whole_in(small: Sequence[np.ndarray | None], large: Sequence[np.ndarray | None]) -> list[int]:
    """The numbers that do not change with the size, but meet it."""
    still = [a for a, b in zip(small, large, strict=True) if a is not None and b is not None and _equal(a, b)]
    numbers = [number for value in still for number in value.ravel()]
    return [int(number) for number in numbers if np.isfinite(number) and abs(number) < 1e6]


def _makes_flag(node: Node) -> bool:
    return node.op_type == "Cast" and node.attributes.get("to") == _BOOL


_BOOL = 9
"""ONNX's number of the boolean dtype."""


def _decides(kind: str, small: Sequence[np.ndarray | None], large: Sequence[np.ndarray | None]) -> bool:
    pairs = list(zip(small, large, strict=True))
    grown = [a is not None and b is not None and not _equal(a, b) for a, b in pairs]
    if not any(grown):
        return False
    if any(a is None for a, _ in pairs):  # the size meets data
        return any(a is not None and b is not None and _hold_size(a, b) for a, b in pairs)
    # A size is at least one, so it never meets a number below one.
    still = [a for (a, _), moves in zip(pairs, grown, strict=True) if not moves and a is not None]
    if kind in _COMPARED:
        return not still or any((bound >= 1).any() for bound in still)
    if kind in _ROUNDED:
        return not _divides(pairs)
    return kind in _DECIDING or kind == "Cast"


def _equal(small: np.ndarray, large: np.ndarray) -> bool:
    return bool(np.array_equal(small, large, equal_nan=small.dtype.kind == "f"))


def _hold_size(small: np.ndarray, large: np.ndarray) -> bool:
    """Whether a value that meets data holds the number of rows.

    Of one with an entry for each row, its number counts: a mask of zeros holds none. Entries that differ, as
    from 0 to n - 1, make an answer depend on its place, which the trace shows.
    """
    if small.shape == large.shape:
        return not _equal(small, large)
    if not small.size or not large.size:
        return False
    first, other = small.flat[0], large.flat[0]
    return bool(first != other and (small == first).all() and (large == other).all())


def _divides(pairs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether a whole division leaves no rest at both sizes, so it leaves none at any."""
    return all((np.mod(pairs[0][at], pairs[1][at]) == 0).all() for at in (0, 1))
