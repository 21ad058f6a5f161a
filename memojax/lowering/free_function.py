"""A graph with free dimensions or static inputs: each combination has a function of rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.core import Tracer

from ..errors import InputShapeError, StaticInputError
from ..model.dimension import Element, solve
from ..model.signature import ModelApi
from .batch_axis import BatchedFunction
from .batch_evidence import Layout
from .binding import bind_inputs
from .graph_function import GraphFunction


@dataclass(frozen=True)
class Binding:
    """Sizes of free symbols and values of static inputs, on which a plan depends as on the batch size.

    Attributes:
        sizes: (symbol, size), in the model's order.
        values: (static input, dtype, shape, bytes).
    """

    sizes: tuple[tuple[str, int], ...] = ()
    values: tuple[tuple[str, str, tuple[int, ...], bytes], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sizes or self.values)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.shown().items())

    def constants(self) -> dict[str, np.ndarray]:
        """The static inputs as arrays."""
        return {
            name: np.frombuffer(data, dtype).reshape(shape).copy() for name, dtype, shape, data in self.values
        }

    def shown(self) -> dict[str, Any]:
        """Names to sizes and values, for messages."""
        return {**dict(self.sizes), **{name: array.tolist() for name, array in self.constants().items()}}


def frozen_value(name: str, array: np.ndarray) -> tuple[str, str, tuple[int, ...], bytes]:
    """A static input as an entry of `Binding.values`."""
    return name, array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


@dataclass(frozen=True)
class FreeFunction:
    """A graph that becomes a `BatchedFunction` once a binding is chosen, see `at`.

    Attributes:
        function: the graph.
        layout: the batch axis of each input; its shapes hold the free symbols.
        api: inputs and outputs with symbols in their element shapes.
        static: names in the file of inputs whose values are part of a binding.
        computed, constant: as in `BatchedFunction`.
        file_names: input and output names in the file.
        build: makes the function of rows for a graph function and a layout without symbols.
        trial: a binding at which the graph runs; None if the search found none.
    """

    function: GraphFunction
    layout: Layout
    api: ModelApi
    static: tuple[str, ...]
    computed: tuple[str, ...]
    constant: Mapping[str, np.ndarray]
    file_names: tuple[tuple[str, ...], tuple[str, ...]]
    build: Callable[[GraphFunction, Layout], BatchedFunction] = field(repr=False)
    trial: Binding | None = None

    @property
    def rule(self) -> str:
        """How the batch was found, for messages."""
        return f"{'axis' if self.layout.native else 'vmap'} ({self.layout.reason})"

    def __call__(self, params: Any, rows: Sequence[Any], key: Any = None) -> tuple[Any, ...]:
        """Run the function for the sizes of `rows`; static inputs must be concrete.

        Raises:
            InputShapeError: sizes contradict each other.
            StaticInputError: a static input is traced.
        """
        shapes = [tuple(row.shape) for row in rows]
        for spec, row in zip(self.api.inputs, rows, strict=True):
            if spec.static and isinstance(row, Tracer):
                raise StaticInputError(
                    f"input {spec.name!r} decides a shape or a branch, so its value must be known while "
                    "tracing: pass a NumPy array that the traced function closes over"
                )
        values = [np.asarray(row) for spec, row in zip(self.api.inputs, rows, strict=True) if spec.static]
        elements = [s if spec.shared else s[1:] for spec, s in zip(self.api.inputs, shapes, strict=True)]
        binding = binding_of(self.api, elements, values)
        kept = [row for spec, row in zip(self.api.inputs, rows, strict=True) if not spec.static]
        return self.at(binding)(params, kept, key)

    def at(self, binding: Binding) -> BatchedFunction:
        """The function of rows for `binding`.

        Raises:
            DimensionError: the graph does not run at these sizes, or its batch does not hold there.
        """
        return self.build(self.bound_function(binding), self.bound_layout(binding))

    def bound_layout(self, binding: Binding) -> Layout:
        """The layout with numbers in place of symbols, and without static inputs."""
        names = set(self.static) if binding.values else set()
        layout = self.layout.bound(dict(binding.sizes))
        return Layout(
            {name: axis for name, axis in layout.axes.items() if name not in names},
            {name: shape for name, shape in layout.shapes.items() if name not in names},
            layout.strength,
            layout.symbols,
            layout.reason,
        )

    def bound_function(self, binding: Binding) -> GraphFunction:
        """The graph with its static inputs as constants."""
        if not binding.values:
            return self.function
        names = dict(zip((spec.name for spec in self.api.inputs), self.file_names[0], strict=True))
        given = {names.get(name, name): array for name, array in binding.constants().items()}
        return GraphFunction(bind_inputs(self.function.graph, given))


def binding_of(
    api: ModelApi, elements: Sequence[Sequence[int]], values: Sequence[np.ndarray] = ()
) -> Binding:
    """The binding of inputs with these element shapes and static inputs with these values.

    Raises:
        InputShapeError: a shape has the wrong rank or size, or sizes contradict each other.
    """
    places: list[tuple[str, Element, int]] = []
    for spec, given in zip(api.inputs, elements, strict=True):
        if len(given) != len(spec.shape):
            raise InputShapeError(
                f"input {spec.name!r} has element shape {list(given)}, expected {list(spec.shape)}"
            )
        places += [
            (f"axis {axis} of an element of input {spec.name!r}", dim, size)
            for axis, (dim, size) in enumerate(zip(spec.shape, given))
        ]
    found = solve(places, InputShapeError)
    static = [spec for spec in api.inputs if spec.static]
    return Binding(
        tuple((name, found[name]) for name in api.free),
        tuple(frozen_value(spec.name, array) for spec, array in zip(static, values, strict=True)),
    )
