"""Find the batch of a graph: hypotheses from the file's declarations, each checked by tracing shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DimensionError, LimitError, LoweringError, StaticInputError
from ..model.dimension import Element, fits_declared, size_of, symbols_of
from ..model.exporter_names import continues_state
from ..model.graph import Graph, Value
from ..model.signature import ANY_SHAPE, ModelApi, TensorSpec, plain_names
from .batch_axis import (
    PROBE_SIZES,
    BatchedFunction,
    BatchRule,
    OutputRows,
    Traced,
    assemble,
    dtype_of,
    native_rows,
)
from .batch_evidence import (
    BatchAxis,
    Layout,
    ambiguous,
    by_count,
    contradiction,
    find_layout,
    without_batch,
)
from .binding import bind_inputs
from .fixed_size import baked_size, declared_size, in_multiples, row_multiple
from .free_function import Binding, FreeFunction
from .graph_function import GraphFunction
from .row_order import in_row_order

_MOST_ELEMENTS = 1 << 28
_TRIAL_SIZES = (11, 16, 32, 64, 128, 224)
"""Sizes to try for free symbols until the graph can be traced; networks of images need large ones."""
_STATIC_ELEMENTS = 64
"""A static input may have this many elements at most, since plans are told apart by its values."""


def batched(
    function: GraphFunction,
    *,
    dims: Mapping[str, int] | None = None,
    batch_axis: BatchAxis = None,
    constants: Mapping[str, Any] | None = None,
) -> BatchedFunction | FreeFunction:
    """A graph as a function of rows, by the available evidence for its batch.

    Args:
        dims: sizes of symbolic dimensions: symbol, or "input.axis" for one without a name -> size. Symbols
            that are neither the batch nor bound stay free: each call decides them.
        batch_axis: what the caller knows of the batch, see `BatchAxis`.
        constants: values of inputs that are the same for all agents and calls, in the file layout.

    Raises:
        DimensionError: the evidence for the batch is not enough, the file does not run by it, or an option
            names no input or symbol.
        LoweringError: the graph cannot be traced.
    """
    if constants:
        function = GraphFunction(bind_inputs(function.graph, constants))
    static = _static_names(function)
    declared = declared_shapes(function.graph, dims or {})
    open_shapes = {name: shape for name, shape in declared.items() if name not in static}
    layout = find_layout(open_shapes, batch_axis)
    traced = None
    # A graph with static inputs cannot be traced before a call gives their values, so nothing can confirm it.
    if (layout.strength == "leading" or by_count(layout)) and not static:
        layout, traced = _confirmed(function, layout, open_shapes)
    if not layout.free and not static:
        traced = traced or _traced(function, layout)
        return declared_size(traced) or _settled(traced)
    return _open(function, layout, static)


def declared_shapes(graph: Graph, dims: Mapping[str, int]) -> dict[str, tuple[Element, ...]]:
    """The declared shape of each input, with sizes from `dims` in place of symbols.

    An unnamed dimension is called "input.axis".

    Raises:
        DimensionError: an input has no declared shape, or `dims` names no dimension.
    """
    for value in graph.inputs:
        if value.kind != "tensor" or value.shape is None:
            what = "has no declared shape" if value.kind == "tensor" else f"is a {value.kind}"
            raise DimensionError(
                f"input {value.name!r} {what}, so it does not divide into rows: bind it with constants=, or "
                "use memojax.run"
            )
    named = {
        value.name: [_name_of(value, axis) for axis in range(len(value.shape or ()))]
        for value in graph.inputs
    }
    known = {symbol for shape in named.values() for dim in shape for symbol in symbols_of(dim)}
    places = {f"{name}.{axis}": dim for name, shape in named.items() for axis, dim in enumerate(shape)}
    if unused := [name for name in dims if name not in known and not isinstance(places.get(name), str)]:
        raise DimensionError(
            f"dims= names {unused[0]!r}, which no input declares; the symbols are "
            f"{', '.join(map(repr, sorted(known))) or 'none'}"
        )
    by_symbol = {**{str(places[n]): s for n, s in dims.items() if n in places}, **dims}
    shapes = {n: tuple(_with_sizes(dim, by_symbol) for dim in shape) for n, shape in named.items()}
    for name, shape in shapes.items():
        numbers = [dim for dim in shape if isinstance(dim, int)]
        if int(np.prod(numbers, dtype=object)) > _MOST_ELEMENTS:
            raise DimensionError(
                f"input {name!r} of shape {list(shape)} is too large for a policy: an input may have "
                f"{_MOST_ELEMENTS:,} elements"
            )
    return shapes


def _name_of(value: Value, axis: int) -> Element:
    dim = (value.shape or ())[axis]
    if isinstance(dim, int) and dim > 0:
        return dim
    return dim if isinstance(dim, str) and dim else f"{value.name}.{axis}"


def _with_sizes(dim: Element, sizes: Mapping[str, int]) -> Element:
    used = symbols_of(dim)
    return size_of(dim, sizes) if used and set(used) <= sizes.keys() else dim


def _static_names(function: GraphFunction) -> tuple[str, ...]:
    """Inputs whose values are part of a plan's key: few whole numbers that decide a shape or a branch.

    Raises:
        StaticInputError: an input decides a shape, but does not hold few whole numbers.
    """
    values = {value.name: value for value in function.graph.inputs}
    for name in function.static_inputs:
        value, shape = values[name], values[name].shape
        whole = value.dtype is not None and value.dtype.kind in "iub"
        numbers = [dim for dim in shape or () if isinstance(dim, int)]
        if not whole or shape is None or len(numbers) < len(shape) or np.prod(numbers) > _STATIC_ELEMENTS:
            raise StaticInputError(
                f"input {name!r} decides a shape: bind it at load with constants={{{name!r}: ...}} (or use "
                "memojax.run)"
            )
    return tuple(name for name in values if name in (*function.static_inputs, *function.branch_inputs))


def _settled(traced: Traced) -> BatchedFunction:
    """The function of rows of a graph whose shapes have no symbol but the batch."""
    function, layout = traced.function, traced.layout
    if not layout.native:
        return _one_by_one(traced, layout.reason)
    # A recurrent state that is declared for one row belongs to one agent, whatever the other inputs declare.
    if all(axis is None for axis in layout.axes.values()) or _has_unit_state(traced):
        return _one_by_one(traced, "an input is declared for one row")
    try:
        found = native_rows(traced)
    except LimitError:
        raise
    except LoweringError as cause:
        return _not_native(traced, cause)
    if (
        layout.strength == "named"
        and traced.outputs
        and all(how.axis is None for how in found.outputs.values())
    ):
        return _one_by_one(traced, "no output has the batch")
    rule = found.rule(layout)
    return in_row_order(assemble(function, rule, found.elements, found.results, traced.layout))


def _traced(function: GraphFunction, layout: Layout) -> Traced:
    graph = function.graph
    moving = function.depends_on({value.name for value in graph.inputs})
    names = tuple(value.name for value in graph.outputs if value.name in moving)
    return Traced(function, layout, dict(graph.bound), names)


def _confirmed(
    function: GraphFunction, layout: Layout, declared: Mapping[str, Sequence[Element]]
) -> tuple[Layout, Traced | None]:
    """The layout for a leading symbol or a count: it is the batch if an output grows with it.

    The second result holds the traces of this layout, if the first one has no free symbols.

    If the graph runs at none of the sizes tried, the symbol stays the batch here, and later steps decide.

    Raises:
        DimensionError: an output grows with the symbol, but other inputs contradict it.
    """
    traced = None
    for sizes in _trials(layout):
        traced = _traced(function, layout.bound(sizes))
        try:
            small, large = map(traced.at, PROBE_SIZES)
        except LimitError:
            raise
        except LoweringError:
            continue
        # No output grows: the symbol is a free dimension of one agent, such as the length of a sequence.
        if all(small[name].shape == large[name].shape for name in traced.outputs):
            return without_batch(declared), None
        break
    outputs = {value.name: value.shape or () for value in function.graph.outputs}
    if layout.strength == "leading" and (why := contradiction(declared, layout, outputs)):
        raise ambiguous(declared, why)
    return layout, None if layout.free else traced


def _trials(layout: Layout) -> list[dict[str, int]]:
    """Sizes to try for the free symbols of a layout."""
    return [dict.fromkeys(layout.free, size) for size in _TRIAL_SIZES] if layout.free else [{}]


def _has_unit_state(traced: Traced) -> bool:
    """Whether an input declared for one row is a state: an output holds its next value."""
    layout = traced.layout
    fixed = [name for name, axis in layout.axes.items() if axis is None and 1 in layout.shapes[name]]
    outputs = [value.name for value in traced.function.graph.outputs]
    return any(continues_state(name, output) for name in fixed for output in outputs)


def _not_native(traced: Traced, cause: LoweringError) -> BatchedFunction:
    """The function of rows of a file that declares a batch, but does not run at several sizes.

    Raises:
        DimensionError: the file runs neither for one row nor at one fixed size.
    """
    # The declared batch may be a mere name, if the exporter traced one row, or one batch, into the graph.
    why = str(cause).splitlines()[0][:160]
    reason = f"the declared batch axis does not hold: {why}"
    try:
        single = _one_by_one(traced, reason)
    except LimitError:
        raise
    except (LoweringError, DimensionError) as failure:
        single, refusal = None, failure
    else:
        refusal = None
    # Checked first: a file in multiples also runs at one baked size, where its rows may belong together.
    if single is None and (multiple := row_multiple(traced)) is not None:
        raise in_multiples(traced, multiple) from cause
    # One row can run by chance, when a constant of the baked size broadcasts over it: the baked size wins.
    if fixed := baked_size(traced, single):
        return fixed
    if single is not None:
        return single
    raise refusal or cause


def _one_by_one(traced: Traced, reason: str) -> BatchedFunction:
    """The function of a single run, mapped over the rows.

    Raises:
        LoweringError: the graph does not run for one row.
        DimensionError: an output of one row has another shape than the file declares.
    """
    layout = traced.layout
    results = traced.at(1)
    declared = {value.name: value.shape for value in traced.function.graph.outputs}
    axes = dict(layout.axes)
    # An input without the batch, such as a state `[1, H]`, is one agent's own: its 1 stands for the agent.
    for name, axis in axes.items():
        if axis is None and layout.strength != "absent":
            axes[name] = next((at for at, dim in enumerate(layout.shapes[name]) if dim == 1), None)
    elements = {}
    for name in traced.outputs:
        shape = results[name].shape
        _check_declared(name, shape, declared[name], layout)
        at = (
            _single_axis(shape, declared[name], layout) if any(a is not None for a in axes.values()) else None
        )
        elements[name] = tuple(dim for axis, dim in enumerate(shape) if axis != at)
    rows = {name: OutputRows(None) for name in traced.outputs}
    inputs = {name: (axes[name], layout.with_batch(name, 1)) for name in layout.shapes}
    rule = BatchRule("vmap", inputs, rows, reason, layout.strength)
    return assemble(traced.function, rule, elements, results, traced.layout)


def _single_axis(shape: Sequence[int], declared: Sequence[Any] | None, layout: Layout) -> int | None:
    """The batch axis of the output of one run: the declared one, else the first of size 1."""
    if declared and len(declared) == len(shape):
        for axis, dim in enumerate(declared):
            if dim in layout.symbols and shape[axis] == 1:
                return axis
    return next((axis for axis, dim in enumerate(shape) if dim == 1), None)


def _check_declared(name: str, shape: Sequence[int], declared: Sequence[Any] | None, layout: Layout) -> None:
    """Compare the shape of an output of one run with the declared one.

    Raises:
        DimensionError: the rank differs, or the size of a fixed dimension.
    """
    if declared is None:
        return
    wanted = [1 if dim in layout.symbols else dim for dim in declared]
    if not fits_declared(shape, wanted):
        raise DimensionError(
            f"output {name!r} has shape {list(shape)} for one row, but the file declares {list(declared)}: "
            "keep only the other outputs with outputs=[...], or run the file in its own layout with "
            "memojax.run or memojax.to_jax"
        )


def _open(function: GraphFunction, layout: Layout, static: Sequence[str]) -> FreeFunction:
    """The function of a graph with free symbols or static inputs.

    It is tried at a few sizes here to find its outputs. Each binding that is used later is checked again.
    """
    graph = function.graph
    found = None if static else _tried(function, layout)
    trial = found[1] if found else None
    shown_in = plain_names([value.name for value in graph.inputs])
    inputs = []
    for value in graph.inputs:
        name = value.name
        if name in static:
            numbers = tuple(dim for dim in value.shape or () if isinstance(dim, int))
            inputs.append(TensorSpec(shown_in[name], numbers, dtype_of(value), shared=True, static=True))
            continue
        axis = trial.rule.inputs[name][0] if trial else layout.axes[name]
        element = tuple(dim for at, dim in enumerate(layout.shapes[name]) if at != axis)
        shared = axis is None and (trial.rule.kind == "axis" if trial else layout.native)
        inputs.append(TensorSpec(shown_in[name], element, dtype_of(value), shared))
    outputs = _open_outputs(function, layout, found)
    constant = _still(function, layout)
    computed = tuple(spec.name for spec in outputs if spec.name not in constant)
    names = (tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs))
    trial_binding = Binding(tuple(found[0].items())) if found else None
    api = ModelApi(tuple(inputs), outputs)
    return FreeFunction(
        function, layout, api, tuple(static), computed, constant, names, build_bound, trial_binding
    )


def build_bound(function: GraphFunction, layout: Layout) -> BatchedFunction:
    """The function of rows for a layout whose free symbols are bound.

    Raises:
        DimensionError, LoweringError: the graph does not run at these sizes.
    """
    return _settled(_traced(function, layout))


def _tried(function: GraphFunction, layout: Layout) -> tuple[dict[str, int], BatchedFunction] | None:
    """The first sizes at which the graph runs, with its function of rows; None if it runs at none of them."""
    for sizes in _trials(layout):
        try:
            return sizes, _settled(_traced(function, layout.bound(sizes)))
        except LimitError:
            raise
        except (LoweringError, DimensionError):
            continue
    return None


def _open_outputs(
    function: GraphFunction, layout: Layout, found: tuple[dict[str, int], BatchedFunction] | None
) -> tuple[TensorSpec, ...]:
    """Outputs, with symbols for dimensions that follow one; as declared if no trial size runs."""
    graph = function.graph
    if found is None:
        shown = plain_names([value.name for value in graph.outputs])
        return tuple(
            TensorSpec(shown[value.name], _declared_element(value, layout), dtype_of(value))
            for value in graph.outputs
        )
    sizes, trial = found
    # One symbol at a time grows: the dimensions that change with it are written as expressions of it.
    shapes = [list(spec.shape) for spec in trial.api.outputs]
    for symbol, size in sizes.items():
        # A graph may run only at even sizes, or only at multiples of a size.
        for more in (2, size):
            try:
                moved = _settled(_traced(function, layout.bound({**sizes, symbol: size + more})))
            except LimitError:
                raise
            except (LoweringError, DimensionError):
                continue
            for shape, before, after in zip(shapes, trial.api.outputs, moved.api.outputs, strict=True):
                for axis, (a, b) in enumerate(zip(before.shape, after.shape, strict=False)):
                    if a != b and isinstance(a, int):
                        shape[axis] = _expressed(symbol, (size, size + more), (a, b))
            break
    return tuple(
        replace(spec, shape=tuple(shape)) for spec, shape in zip(trial.api.outputs, shapes, strict=True)
    )


def _expressed(symbol: str, sizes: tuple[int, int], found: tuple[int, int]) -> str:
    """A dimension as an expression of a symbol, from its sizes at two sizes of the symbol.

    It is the symbol plus a number, or a multiple of it. Anything else is shown as "symbol*".
    """
    (small, large), (first, second) = sizes, found
    if second - first == large - small:
        offset = first - small
        return f"{symbol} {'+' if offset > 0 else '-'} {abs(offset)}" if offset else symbol
    if (second - first) == (first // small) * (large - small) and first % small == 0:
        return f"{first // small} * {symbol}"
    return f"{symbol}*"


def _declared_element(value: Value, layout: Layout) -> tuple[Element, ...]:
    if not value.shape:
        return ANY_SHAPE
    shape = [dim if dim is not None else f"{value.name}.{axis}" for axis, dim in enumerate(value.shape or ())]
    at = next((axis for axis, dim in enumerate(shape) if dim in layout.symbols), None)
    if at is None and shape and layout.strength != "absent":
        at = next((axis for axis, dim in enumerate(shape) if dim == 1), 0)
    return tuple(dim for axis, dim in enumerate(shape) if axis != at)


def _still(function: GraphFunction, layout: Layout) -> dict[str, np.ndarray]:
    """Outputs that depend on no input, by the names shown to callers."""
    traced = _traced(function, layout)
    shown = plain_names([value.name for value in function.graph.outputs])
    still = [value.name for value in function.graph.outputs if value.name not in traced.outputs]
    constant = function.constant_outputs(still, traced.constants) if still else {}
    return {shown[name]: array for name, array in constant.items()}
