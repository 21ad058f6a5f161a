"""A policy as a pure function of weights and named inputs, for `memojax.to_jax`.

Inputs are checked while the function is traced, so a compiled loop pays nothing for the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Arrays, Params
from ..errors import (
    IncompatibleModelError,
    InputShapeError,
    LoweringError,
)
from ..model import Model
from ..model.dimension import fits_declared
from ..model.graph import Graph, Value
from ..model.signature import TensorSpec
from ..rows.input_checks import check_kind, check_names
from ..xla.limits import for_one_executable
from ..xla.pieces import in_pieces
from ..xla.settings import operator_settings
from .batch_axis import BatchedFunction
from .binding import bind_inputs, check_no_text, with_inputs
from .graph_function import GraphFunction
from .more_rows import BY_ROWS, check_rows_apart, more_than_declared
from .typed_model import TypedModel

PureFunction = Callable[..., Arrays]

Computation = Callable[[Params, Arrays, Any], Arrays]
"""A pure function of weights, arrays by name and a key, after all checks."""

Way = Callable[[Computation], Computation]
"""Another way to run a computation, with the same answers."""


def of_graph(
    model: Model, constants: Mapping[str, Any], way: Way | None = None
) -> tuple[PureFunction, Params]:
    """The graph in the file layout, and its weights; see `memojax.to_jax`.

    Raises:
        UnsupportedOpError: operators cannot be lowered; it lists all of them.
        InputError: `constants` names no input or does not fit, or an input holds strings and is not bound.
    """
    graph = bind_inputs(model.graph, constants)
    check_no_text(graph)
    functions: dict[tuple[str, ...], GraphFunction] = {(): GraphFunction(graph)}
    computations: dict[Any, Computation] = {}
    known_places: set[Any] = set()
    own = functions[()].params

    def fn(params: Params, inputs: Mapping[str, Any], key: jax.Array | None = None) -> Arrays:
        _check_weights(own, params)
        replaced = tuple(name for name in graph.defaults if name in inputs)
        if replaced not in functions:
            functions[replaced] = GraphFunction(with_inputs(graph, replaced))
        function = functions[replaced]
        values = {value.name: value for value in function.graph.inputs}
        given = {name: None for name, value in values.items() if value.kind == "optional"} | dict(inputs)
        check_names(values, given)
        given = {
            name: _declared(value, given[name], name in function.static_inputs)
            for name, value in values.items()
        }
        _check_symbols(values, given)
        weights = {name: params[name] for name in function.params}
        try:
            made = run(function, replaced, weights, given, key)
            shapes = _shapes(values, given)
            if any(more for _, _, more in shapes):
                _check_rows_kept(function.graph, shapes, made)
                _check_rows_apart(function, values, given, known_places)
            return made
        except LoweringError as cause:
            if type(cause) is not LoweringError or not (advice := _about_more_rows(values, given)):
                raise
            raise LoweringError(f"{cause}; {advice}") from cause

    def run(
        function: GraphFunction, replaced: tuple[str, ...], weights: Params, given: Arrays, key: Any
    ) -> Arrays:
        if way is None:
            return _computed(function, {}, weights, given, key)
        # What decides a shape, and the absence of an optional input, must stay outside of JAX's traces.
        fixed = {
            name: value for name, value in given.items() if value is None or name in function.static_inputs
        }
        known = replaced, tuple(fixed)
        found = computations.get(known) if all(value is None for value in fixed.values()) else None
        if found is None:
            found = computations[known] = way(partial(_computed, function, fixed))
        return found(weights, {name: value for name, value in given.items() if name not in fixed}, key)

    values = [value.name for value in graph.inputs]
    fn.__doc__ = f"{model.name}: {', '.join(values)} -> {', '.join(v.name for v in model.graph.outputs)}"
    return fn, dict(own)


def _computed(
    function: GraphFunction, fixed: Mapping[str, Any], weights: Params, given: Arrays, key: Any
) -> Arrays:
    def compute(weights: Params, given: Arrays, key: Any) -> Arrays:
        made = function(weights, {**given, **fixed}, key)
        return {name: _as_jax(name, value) for name, value in made.items()}

    with operator_settings(), for_one_executable():
        return (in_pieces(compute) if function.is_long else compute)(weights, given, key)


def _as_jax(name: str, value: Any) -> jax.Array:
    """An output as a `jax.Array`.

    Raises:
        LoweringError: it is text, a sequence, or an optional without a value.
    """
    if (
        value is None
        or isinstance(value, (tuple, list))
        or getattr(value, "dtype", np.dtype(bool)).kind == "O"
    ):
        what = "an optional without a value" if value is None else "text or a sequence"
        raise LoweringError(
            f"output {name!r} is {what}, and a function of JAX gives arrays of numbers: memojax.run gives it"
        )
    return jnp.asarray(value)


def of_rows(typed: TypedModel, way: Way | None = None) -> tuple[PureFunction, Params]:
    """An inferer's function of rows `[n, *element_shape]`, and its weights; see `memojax.to_jax`.

    Raises:
        DimensionError: only the place of a symbol suggested the batch, and rows influence each other.
    """
    typed.check_evidence()
    specs = {spec.name: spec for spec in typed.api.inputs}

    long = isinstance(typed.fn, BatchedFunction) and typed.fn.function.is_long

    def compute(params: Params, given: Arrays, key: Any) -> Arrays:
        with operator_settings(), for_one_executable():
            rows = [jnp.asarray(given[name]) for name in specs]
            run = in_pieces(typed.fn) if long else typed.fn
            computed = dict(zip(typed.computed, run(params, rows, key), strict=True))
            batched = (len(row) for row, spec in zip(rows, specs.values(), strict=True) if not spec.shared)
            n = next(batched, 1)
            constant = {
                name: jnp.broadcast_to(jnp.asarray(value), (n, *value.shape))
                for name, value in typed.constant.items()
            }
            return {spec.name: {**constant, **computed}[spec.name] for spec in typed.api.outputs}

    # An exported program is one call, in which the kernels find nothing.
    computation = way(compute) if way and typed.model is not None else compute

    def fn(params: Params, inputs: Mapping[str, Any], key: jax.Array | None = None) -> Arrays:
        check_names(specs, inputs)
        rows = {
            name: _declared(Value(name, spec.dtype, _shape_of(spec)), inputs[name], False)
            for name, spec in specs.items()
        }
        return computation(params, rows, key)

    fn.__doc__ = str(typed.api)
    return fn, typed.params


def _shape_of(spec: TensorSpec) -> tuple[Any, ...]:
    return spec.shape if spec.shared else ("n", *spec.shape)


def _check_weights(own: Params, given: Params) -> None:
    if missing := [name for name in own if name not in given]:
        raise IncompatibleModelError(
            f"weight {missing[0]!r} is missing ({len(missing)} missing in all): pass the weights that to_jax "
            "returned, or others of the same names"
        )
    for name, weight in own.items():
        if np.shape(given[name]) != np.shape(weight):
            raise IncompatibleModelError(
                f"weight {name!r} has shape {list(np.shape(given[name]))}, the model has "
                f"{list(np.shape(weight))}"
            )


def _shapes(
    values: Mapping[str, Value], given: Mapping[str, Any]
) -> list[tuple[Value, tuple[int, ...], bool]]:
    """Each input of known rank, its given shape, and whether that has more rows than the file's one."""
    found = []
    for name, value in values.items():
        if value.kind == "tensor" and value.shape is not None and given[name] is not None:
            shape = np.shape(given[name])
            found.append((value, shape, bool(more_than_declared(value, shape))))
    return found


def _check_symbols(values: Mapping[str, Value], given: Mapping[str, Any]) -> None:
    """Check that inputs with more rows than the file's one agree with the other inputs about symbols.

    A state of `[1, "batch", H]` with its rows first would otherwise fit, and be broadcast over the agents.

    Raises:
        InputShapeError: two inputs give a symbol two sizes.
    """
    shapes = _shapes(values, given)
    sizes = {}
    for value, shape, more in shapes:
        if not more:
            sizes |= {dim: (size, value.name) for dim, size in zip(value.shape or (), shape)}
    for value, shape, more in shapes:
        for dim, size in zip(value.shape or (), shape):
            known, by = sizes.get(dim, (size, ""))
            if more and isinstance(dim, str) and known != size:
                raise InputShapeError(
                    f"input {value.name!r} has shape {list(shape)}, the model takes "
                    f"{list(value.shape or ())}, and {dim!r} is {known} by input {by!r}: {BY_ROWS}"
                )


def _check_rows_kept(
    graph: Graph, shapes: list[tuple[Value, tuple[int, ...], bool]], made: Mapping[str, Any]
) -> None:
    """Check that an output of a file for one row, run for more, has more rows as well.

    A `Resize` to the sizes of the example, for one, makes one row of all. One output with more is enough: the
    last state of a longer sequence has the shape of one step.

    Raises:
        LoweringError: all outputs that depend on the rows have the shape that the file declares for one row.
    """
    rows = {value.name for value, _, more in shapes if more}
    same = [out.name for out in graph.outputs if rows and out.shape == made[out.name].shape]
    if not same:
        return
    for node in graph.nodes:
        if not rows.isdisjoint(node.reads()):
            rows.update(node.outputs)
    lost = [name for name in same if name in rows]
    if lost and all(out.name in lost for out in graph.outputs if out.name in rows):
        raise LoweringError(f"output {lost[0]!r} has the shape {list(made[lost[0]].shape)} of one row")


def _check_rows_apart(
    function: GraphFunction, values: Mapping[str, Value], given: Mapping[str, Any], known: set[Any]
) -> None:
    """As `check_rows_apart`; a sequence or an optional with a value as an input leaves it out."""
    fixed = {name: value for name, value in given.items() if value is None or name in function.static_inputs}
    arrays = {name: (values[name], np.shape(value)) for name, value in given.items() if name not in fixed}
    if all(value.kind == "tensor" for value, _ in arrays.values()):
        check_rows_apart(function, arrays, fixed, known)


def _about_more_rows(values: Mapping[str, Value], given: Mapping[str, Any]) -> str:
    """Advice where an input has more rows than the one of the file; empty if none has."""
    for value, shape, more in _shapes(values, given):
        if more:
            return (
                f"input {value.name!r} has shape {list(shape)}, but the file was exported for "
                f"{list(value.shape or ())}: {BY_ROWS}"
            )
    return ""


def _declared(value: Value, given: Any, static: bool) -> Any:
    """`given`, checked against the rank, sizes and kind of number that the file declares.

    Many files exported for one row run for more. So a declared 1 fits any length on axis 0; of three or more
    axes (a recurrent state is `[1, 1, H]`), on each.
    """
    if value.kind != "tensor" or value.shape is None:
        return given
    if isinstance(given, (list, tuple)):
        given = np.asarray(given) if static else jnp.asarray(given)
    shape = np.shape(given)
    free = range(len(value.shape)) if len(value.shape) > 2 else (0,)
    if not fits_declared(
        shape, [None if dim == 1 and i in free else dim for i, dim in enumerate(value.shape)]
    ):
        raise InputShapeError(
            f"input {value.name!r} has shape {list(shape)}, the model takes {list(value.shape)}: jax.vmap "
            f"maps the function over further axes, and {BY_ROWS}"
        )
    dtype = getattr(given, "dtype", None)
    if value.dtype is not None and value.dtype != object and dtype is not None:
        check_kind(value.name, dtype, value.dtype)
    return given
