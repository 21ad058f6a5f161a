"""The batch rule: where a graph keeps its batch, and how rows `[n, *element_shape]` reach it.

Two rules cover every file. `axis`: the graph itself has a symbolic batch axis; it is traced at n. `vmap`: the batch is fixed in the
file (declared 1, baked into shape constants, or absent), so the function of a single run is mapped over the rows, which is right by
construction and which XLA lowers to the same matrix products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, Dim, Params, Shape
from ..errors import DimensionError, LoweringError, StaticInputError
from ..exporter_names import is_made_up_dimension
from ..model.graph import Graph, Value
from ..model.signature import ModelApi, TensorSpec, plain_names
from ..ops.inline import inlined
from ..xla.settings import own_settings
from .binding import bind_inputs
from .graph_function import GraphFunction

BatchAxis = int | None | Mapping[str, int | None]

_PROBE_SIZES = (5, 7)
"""Two sizes that are unlikely to be a dimension of the model by chance; shapes alone are evaluated."""


@dataclass(frozen=True)
class BatchRule:
    """How rows map to the file's own layout.

    Attributes:
        kind: "axis" or "vmap".
        inputs: name in the file -> (batch axis in the file or None, declared shape with the batch as 1).
        outputs: name in the file -> batch axis in the file, or None for a value that all rows share.
        reason: why this rule, in a few words.
    """

    kind: Literal["axis", "vmap"]
    inputs: Mapping[str, tuple[int | None, Shape]]
    outputs: Mapping[str, int | None]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})"


@dataclass(frozen=True)
class BatchedFunction:
    """A graph as a function of rows.

    `fn(params, rows, key)` takes a tuple of `[n, *element_shape]` arrays in the order of `api.inputs` and gives one array per name in
    `computed`; the outputs in `constant` depend on no input and are not computed per call.
    """

    function: GraphFunction
    rule: BatchRule
    api: ModelApi
    constants: Mapping[str, np.ndarray]
    computed: tuple[str, ...]
    constant: Mapping[str, np.ndarray]
    file_names: tuple[tuple[str, ...], tuple[str, ...]]

    def __call__(
        self, params: Params, rows: Sequence[Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        if self.rule.kind == "axis":
            return self._native(params, rows, key)
        if key is None:
            return jax.vmap(lambda *row: self._single(params, row, None))(*rows)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows[0].shape[0]))
        return jax.vmap(lambda row_key, *row: self._single(params, row, row_key))(keys, *rows)

    def _native(self, params: Params, rows: Sequence[Array], key: jax.Array | None) -> tuple[jax.Array, ...]:
        n = rows[0].shape[0]
        inputs: dict[str, Array] = dict(self.constants)
        for name, row in zip(self.file_names[0], rows, strict=True):
            axis = self.rule.inputs[name][0]
            inputs[name] = jnp.moveaxis(row, 0, axis) if axis else row
        outputs = self.function(params, inputs, key)
        result = []
        shapes = self._element_shapes()
        for name, shown in zip(self._computed_in_file(), self.computed, strict=True):
            axis, value = self.rule.outputs[name], jnp.asarray(outputs[name])
            if axis is not None and n == 1:
                value = value.reshape(
                    1, *shapes[shown]
                )  # a Squeeze without axes drops a batch of one as well
            elif axis is not None:
                value = jnp.moveaxis(value, axis, 0)
            else:
                value = jnp.broadcast_to(value, (n, *value.shape))
            result.append(value)
        return tuple(result)

    def _single(self, params: Params, row: Sequence[Array], key: jax.Array | None) -> tuple[jax.Array, ...]:
        inputs: dict[str, Array] = dict(self.constants)
        inputs.update(
            {
                name: value.reshape(self.rule.inputs[name][1])
                for name, value in zip(self.file_names[0], row, strict=True)
            }
        )
        outputs = self.function(params, inputs, key)
        shapes = self._element_shapes()
        return tuple(
            jnp.asarray(outputs[name]).reshape(shapes[shown])
            for name, shown in zip(self._computed_in_file(), self.computed, strict=True)
        )

    def _element_shapes(self) -> dict[str, Shape]:
        return {spec.name: spec.shape for spec in self.api.outputs}

    def _computed_in_file(self) -> tuple[str, ...]:
        shown = [spec.name for spec in self.api.outputs]
        return tuple(self.file_names[1][shown.index(name)] for name in self.computed)


def batched(
    function: GraphFunction,
    *,
    dims: Mapping[str, int] | None = None,
    batch_axis: BatchAxis = None,
    constants: Mapping[str, Any] | None = None,
) -> BatchedFunction:
    """Find the batch rule of a graph and apply it.

    Args:
        dims: values of symbolic dimensions other than the batch: symbol, or "input.axis" for one without a name -> size.
        batch_axis: overrides what the file says: an axis for all inputs, or input -> axis (None: that input has no batch axis).
        constants: values of inputs that are the same for all agents and calls, in the file's own layout.

    Raises:
        DimensionError: dimensions that are neither the batch nor bound, all of them listed; options that name nothing.
        LoweringError: the graph cannot be traced.
    """
    if constants:
        function = GraphFunction(bind_inputs(function.graph, constants))
    graph = function.graph
    bound = dict(graph.bound)
    values = list(graph.inputs)
    if unbound := function.static_inputs:
        raise StaticInputError(
            f"input {unbound[0]!r} decides a shape: bind it at load with constants={{{unbound[0]!r}: ...}} (or use memojax.run)"
        )
    axes, shapes = _layout(values, dict(dims or {}), batch_axis)
    shown_in = plain_names([value.name for value in values])
    shown_out = plain_names([value.name for value in graph.outputs])
    moving = [value.name for value in graph.outputs if value.name in function.depends_on(shown_in)]
    still = [value.name for value in graph.outputs if value.name not in moving]
    dtypes = {value.name: value.dtype or np.dtype(np.float32) for value in values}

    def specs(n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(
                tuple(n if axis == axes[name] else dim for axis, dim in enumerate(shape)), dtypes[name]
            )
            for name, shape in shapes.items()
        }

    def traced_at(n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return _abstract(function, specs(n), bound, moving)

    outputs: dict[str, int | None] = {}
    elements: dict[str, Shape] = {}
    results: dict[str, jax.ShapeDtypeStruct] = {}
    native = bool(values) and all(
        axis is not None and _symbolic(value, axis) for value, axis in ((v, axes[v.name]) for v in values)
    )
    native = native or (
        batch_axis is not None and bool(values) and all(axis is not None for axis in axes.values())
    )
    reason = "the file's own batch axis" if native else "the batch is fixed in the file"
    if native:
        try:
            first, second = map(traced_at, _PROBE_SIZES)
            outputs = {name: _output_axis(first[name].shape, second[name].shape) for name in moving}
            elements = {n: _without(first[n].shape, axis) for n, axis in outputs.items()}
            results = first
        except (LoweringError, _NoCleanAxis) as cause:
            native, reason = (
                False,
                f"the declared batch axis does not hold: {str(cause).splitlines()[0][:120]}",
            )
    if not native:
        results = traced_at(1)
        elements = {name: _without(results[name].shape, _unit_axis(results[name].shape)) for name in moving}
        outputs = dict.fromkeys(moving)
    constant = function.constant_outputs(still, bound) if still else {}
    rule = BatchRule("axis" if native else "vmap", {n: (axes[n], shapes[n]) for n in shapes}, outputs, reason)
    api = ModelApi(
        tuple(TensorSpec(shown_in[n], _without(shape, axes[n]), dtypes[n]) for n, shape in shapes.items()),
        tuple(
            TensorSpec(
                shown_out[v.name],
                *(
                    (elements[v.name], results[v.name].dtype)
                    if v.name in elements
                    else _spec(constant[v.name])
                ),
            )
            for v in graph.outputs
        ),
    )
    names = (tuple(shapes), tuple(value.name for value in graph.outputs))
    return BatchedFunction(
        function,
        rule,
        api,
        bound,
        tuple(shown_out[n] for n in moving),
        {shown_out[n]: constant[n] for n in still},
        names,
    )


def single_runs(
    graph: Graph, dims: Mapping[str, int] | None = None, batch_axis: BatchAxis = None
) -> dict[str, tuple[int | None, Shape]]:
    """Batch axis and shape of one run for each input, where every row runs by itself.

    Raises:
        DimensionError: dimensions that are neither the batch nor bound; options that name nothing.
    """
    axes, shapes = _layout(list(graph.inputs), dict(dims or {}), batch_axis)
    return {name: (axes[name], shape) for name, shape in shapes.items()}


class _NoCleanAxis(Exception):
    """An output's shape follows the batch in another way than by one axis."""


def _spec(array: np.ndarray) -> tuple[Shape, np.dtype]:
    return array.shape, array.dtype


def _abstract(
    function: GraphFunction,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    bound: Mapping[str, np.ndarray],
    outputs: Sequence[str],
) -> dict[str, jax.ShapeDtypeStruct]:
    def run(params: Any, inputs: Any, key: Any) -> dict[str, jax.Array]:
        with inlined():
            results = function(
                params,
                {**bound, **inputs},
                jax.random.wrap_key_data(key, impl="threefry2x32") if function.random else None,
            )
        for name in outputs:
            if isinstance(results[name], (tuple, type(None))):
                raise LoweringError(
                    f"output {name!r} is a sequence or optional; an inferer needs tensors (memojax.run gives them)"
                )
        return {name: jnp.asarray(results[name]) for name in outputs}

    with own_settings():
        return jax.eval_shape(run, function.params, dict(specs), jax.ShapeDtypeStruct((2,), np.uint32))


def _layout(
    values: Sequence[Value], dims: dict[str, int], batch_axis: BatchAxis
) -> tuple[dict[str, int | None], dict[str, Shape]]:
    """Batch axis and single-run shape of each input."""
    for value in values:
        if value.kind != "tensor" or value.shape is None:
            what = "has no declared shape" if value.kind == "tensor" else f"is a {value.kind}"
            raise DimensionError(
                f"input {value.name!r} {what}, so its rows are not known: bind it with constants=, or use memojax.run"
            )
    declared = {
        value.name: tuple(_named(value, axis, dims) for axis in range(len(value.shape or ())))
        for value in values
    }
    axes = _given_axes(declared, batch_axis) if batch_axis is not None else _found_axes(declared)
    unbound: list[str] = []
    shapes: dict[str, Shape] = {}
    for name, shape in declared.items():
        sizes = []
        for axis, dim in enumerate(shape):
            if axis == axes[name]:
                sizes.append(1)
            elif isinstance(dim, int):
                sizes.append(dim)
            else:
                unbound.append(f"{dim} (axis {axis} of input {name!r}, declared {list(shape)})")
                sizes.append(1)
        shapes[name] = tuple(sizes)
    if unbound:
        example = unbound[0].split(" ")[0]
        raise DimensionError(
            f"{len(unbound)} symbolic dimension(s) are neither the batch nor bound: {'; '.join(dict.fromkeys(unbound))}. "
            f"Bind them with dims={{{example!r}: 16}}, or name the batch with batch_axis=."
        )
    if huge := [name for name, shape in shapes.items() if int(np.prod(shape, dtype=object)) > 1 << 28]:
        raise DimensionError(
            f"input {huge[0]!r} has {list(shapes[huge[0]])} elements per agent, more than any policy takes"
        )
    unused = [
        name
        for name in dims
        if not any(name in (value.shape or ()) or _is_place(name, value) for value in values)
    ]
    if unused:
        raise DimensionError(f"dims= names {unused[0]!r}, which no input declares")
    return axes, shapes


def _named(value: Value, axis: int, dims: Mapping[str, int]) -> int | str:
    dim: Dim = (value.shape or ())[axis]
    if isinstance(dim, int) and dim > 0:
        return dim
    place = f"{value.name}.{axis}"
    name = dim if isinstance(dim, str) else place
    return dims.get(name, dims.get(place, name))


def _is_place(name: str, value: Value) -> bool:
    return any(name == f"{value.name}.{axis}" for axis in range(len(value.shape or ())))


def _given_axes(declared: Mapping[str, Sequence[int | str]], batch_axis: BatchAxis) -> dict[str, int | None]:
    if isinstance(batch_axis, Mapping):
        if unknown := batch_axis.keys() - declared.keys():
            raise DimensionError(
                f"batch_axis= names {min(unknown)!r}, which is no input; the inputs are {', '.join(map(repr, declared))}"
            )
        given: dict[str, int | None] = {**_found_axes(declared), **batch_axis}
    else:
        given = dict.fromkeys(declared, batch_axis)
    for name, axis in given.items():
        if axis is None:
            continue
        rank = len(declared[name])
        if not -rank <= axis < rank:
            raise DimensionError(
                f"batch_axis {axis} is out of range for input {name!r} of shape {list(declared[name])}"
            )
        given[name] = axis % rank
    return given


def _found_axes(declared: Mapping[str, Sequence[int | str]]) -> dict[str, int | None]:
    """The batch axis of each input: that of the symbol most inputs share, else that of its own name for a batch, else the first unit axis."""
    symbol = _batch_symbol(declared)
    axes: dict[str, int | None] = {}
    for name, shape in declared.items():
        if symbol is not None and symbol in shape:
            axes[name] = list(shape).index(symbol)
        elif symbol is not None or any(isinstance(dim, str) for dim in shape):
            axes[name] = _own_axis(shape)
        else:
            axes[name] = _unit_axis(shape)
    return axes


def _batch_symbol(declared: Mapping[str, Sequence[int | str]]) -> str | None:
    """The symbol that is the batch: shared by most inputs, then called so, then on axis 0; None where there is none or each has its own."""
    counts = Counter(dim for shape in declared.values() for dim in set(shape) if isinstance(dim, str))
    firsts = {shape[0] for shape in declared.values() if shape and isinstance(shape[0], str)}
    if not counts or (
        len(firsts) > 1 and max(counts.values()) == 1 and all(map(is_made_up_dimension, firsts))
    ):
        return None
    return max(
        counts,
        key=lambda s: (
            counts[s],
            "batch" in s.lower() or s in ("N", "B"),
            s in firsts,
            not is_made_up_dimension(s),
        ),
    )


def _own_axis(shape: Sequence[int | str]) -> int | None:
    """Axis 0, or the only symbolic one, if what it is called may be this input's name for the batch (`obs_batch`, `state_batch`)."""
    symbolic = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
    if not symbolic or (symbolic[0] != 0 and len(symbolic) > 1):
        return None
    symbol = str(shape[symbolic[0]])
    return symbolic[0] if is_made_up_dimension(symbol) or "batch" in symbol.lower() else None


def _symbolic(value: Value, axis: int) -> bool:
    dim = (value.shape or ())[axis]
    return not isinstance(dim, int) or dim == 0


def _unit_axis(shape: Sequence[int | str]) -> int | None:
    return next((axis for axis, dim in enumerate(shape) if dim == 1), None)


def _without(shape: Sequence[int], axis: int | None) -> Shape:
    return tuple(dim for index, dim in enumerate(shape) if index != axis)


def _output_axis(first: Shape, second: Shape) -> int | None:
    if first == second:
        return None
    small, large = _PROBE_SIZES
    different = [axis for axis, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if (
        len(first) != len(second)
        or len(different) != 1
        or (first[different[0]], second[different[0]]) != (small, large)
    ):
        raise _NoCleanAxis(
            f"an output has shape {list(first)} at batch {small} and {list(second)} at batch {large}"
        )
    return different[0]
