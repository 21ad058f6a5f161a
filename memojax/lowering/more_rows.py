"""More rows than the one that a file declares, in the file layout: they must not influence each other.

`memojax.to_jax` runs such files for more rows. Their graph was only ever meant for one, so a mean over all
entries, or an index into a state with its axes in another order, would mix the rows without a word. Traces
prove that it does not, as for inferers; trial runs decide where traces prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from .._types import Shape
from ..errors import DimensionError, InputShapeError, LimitError, LoweringError
from ..model.graph import Value
from .batch_axis import BatchedFunction, Traced, assemble, native_rows
from .batch_evidence import Layout
from .binding import bind_inputs
from .graph_function import GraphFunction
from .row_order import in_row_order
from .typed_model import TypedModel

Given: TypeAlias = "Mapping[str, tuple[Value, Shape]]"
"""Input -> its declaration, and the shape that a caller gives."""

BY_ROWS = "to_jax of a loaded policy (memojax.load) gives a function of rows [n, *element_shape]"

_WITH_STEPS = frozenset({"GRU", "LSTM", "RNN", "Scan", "Loop"})
_MOST_LAYOUTS = 16


def more_than_declared(value: Value, shape: Shape) -> list[int]:
    """Axes that the file declares as 1, and of which the given shape has another number of entries."""
    return [axis for axis, (dim, size) in enumerate(zip(value.shape or (), shape)) if dim == 1 != size]


def check_rows_apart(
    function: GraphFunction, given: Given, fixed: Mapping[str, Any], known: set[Any]
) -> None:
    """Check that the rows of `given` do not influence each other; the same shapes of one row always pass.

    A single sequence of a recurrent file passes as well: its steps are meant to influence each other.

    Args:
        function: the graph.
        given: the inputs that are arrays of numbers.
        fixed: inputs whose values decide a shape, and optional inputs without a value.
        known: places of rows that passed before; those of `given` are added.

    Raises:
        InputShapeError: the inputs have different numbers of rows.
        LoweringError: rows influence each other, by any choice of their axes, or the file does not run for
            other numbers of rows.
    """
    more = {
        name: axes for name, (value, shape) in given.items() if (axes := more_than_declared(value, shape))
    }
    if not more or _is_sequence(function, given, list(more)):
        return
    bound = {name: value for name, value in fixed.items() if value is not None}
    function = GraphFunction(bind_inputs(function.graph, bound)) if bound else function
    absent: dict[str, Any] = {name: None for name in fixed if name not in bound}
    values = tuple((name, np.asarray(value).tobytes()) for name, value in bound.items())
    why: LoweringError | None = None
    for layout in _layouts(given, more):
        place = values, tuple(absent), *((name, layout.axes[name], layout.shapes[name]) for name in given)
        if place in known:
            return
        try:
            mixing = _mixing(function, layout, absent)
        except LimitError:
            raise
        except (LoweringError, DimensionError) as cause:
            why = why or LoweringError(f"rows cannot be told apart: {cause}")
            continue
        if not mixing:
            known.add(place)
            return
        why = LoweringError(f"rows influence each other in output {', '.join(map(repr, mixing))}")
    assert why is not None
    raise why


def _is_sequence(function: GraphFunction, given: Given, more: list[str]) -> bool:
    """Whether the only input with more entries is a sequence: its second axis is that of the rows."""
    return (
        len(more) == 1
        and len(given[more[0]][1]) > 2
        and any(node.op_type in _WITH_STEPS for node in function.graph.all_nodes())
    )


def _layouts(given: Given, more: Mapping[str, list[int]]) -> Iterator[Layout]:
    """The axes on which the rows may lie: those of one size, which the file declares as 1 or leaves open.

    Raises:
        InputShapeError: no size is common to the inputs.
    """
    sizes = [{given[name][1][axis] for axis in axes} for name, axes in more.items()]
    if not (common := set.intersection(*sizes)):
        (first, *_), others = more, [name for name in more if sizes[0].isdisjoint(_sizes(given, more, name))]
        second = (others or list(more)[1:])[0]
        raise InputShapeError(
            f"inputs {first!r} and {second!r} have different numbers of rows: their shapes are "
            f"{list(given[first][1])} and {list(given[second][1])}, the model takes "
            f"{list(given[first][0].shape or ())} and {list(given[second][0].shape or ())}: {BY_ROWS}"
        )
    tried = 0
    for n in sorted(common):
        choices = [_choices(*given[name], n) for name in given]
        for axes in product(*choices):
            if (tried := tried + 1) > _MOST_LAYOUTS:
                return
            yield _layout(given, dict(zip(given, axes, strict=True)), n)


def _sizes(given: Given, more: Mapping[str, list[int]], name: str) -> set[int]:
    return {given[name][1][axis] for axis in more[name]}


def _choices(value: Value, shape: Shape, n: int) -> list[int] | list[None]:
    """Axes of an input on which `n` rows may lie; None alone if it has no such axis."""
    dims = value.shape or ()
    return [
        axis for axis, (dim, size) in enumerate(zip(dims, shape)) if size == n and (dim == 1 or _is_open(dim))
    ] or [None]


def _is_open(dim: Any) -> bool:
    return not isinstance(dim, int)


def _layout(given: Given, axes: Mapping[str, int | None], n: int) -> Layout:
    shapes = {
        name: tuple(1 if axis == axes[name] else size for axis, size in enumerate(shape))
        for name, (_, shape) in given.items()
    }
    return Layout(axes, shapes, "said", (), f"{n} rows where the file declares one")


def _mixing(function: GraphFunction, layout: Layout, absent: Mapping[str, Any]) -> tuple[str, ...]:
    """Outputs in which rows influence each other, if they lie on the axes of `layout`.

    Raises:
        LoweringError: the graph does not run for other numbers of rows.
        DimensionError: an output does not divide into rows.
    """
    moving = function.depends_on(layout.shapes)
    names = tuple(value.name for value in function.graph.outputs if value.name in moving)
    traced = Traced(function, layout, {**function.graph.bound, **absent}, names)
    found = native_rows(traced)
    rule = found.rule(layout)
    if rule.keeps_rows_apart:
        return ()
    rows = assemble(function, rule, found.elements, found.results, layout)
    return _by_trial(in_row_order(replace(rows, constants=traced.constants)))


def _by_trial(rows: BatchedFunction) -> tuple[str, ...]:
    """Outputs in which rows influence each other, by trial runs."""
    return TypedModel(
        rows, rows.function.params, rows.api, rows.computed, random=rows.function.random
    ).mixing_outputs()
