"""A file with graph breaks as a function of rows: each row runs by itself, partly on the host.

An executable calls back into Python for a batch. So padding, splitting, states and devices work as for every
model. It costs some 300 us a row, and shapes that depend on data compile when a call first meets them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .._types import Shape
from ..errors import DimensionError, LoweringError, MemojaxError
from ..model.graph import Graph
from ..model.signature import ModelApi, TensorSpec, plain_names
from ..xla.host_calls import called_back
from .batch_axis import BatchRule
from .batch_evidence import BatchAxis, ambiguous, find_layout
from .find_batch import declared_shapes
from .oneshot import OneShot

_PROBES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda normal: normal,
    lambda normal: -normal,
    np.rint,
    np.ones_like,
    np.zeros_like,
)
"""Kinds of rows that show whether a shape depends on data: either sign, rounded, all ones, all zeros."""


@dataclass(frozen=True)
class HostRows:
    """`fn(params, rows, key)` that calls back into Python; `params` is not read.

    Attributes:
        graph: the graph, with its constants bound.
        layout: name of an input in the file -> (its batch axis or None, the shape of one run).
        api: inputs and outputs of one row.
        random: whether the graph draws random numbers.
        breaks: the operators at which the graph breaks.
    """

    graph: Graph
    layout: Mapping[str, tuple[int | None, Shape]]
    api: ModelApi
    random: bool
    breaks: tuple[str, ...]

    def __call__(self, params: Any, rows: Sequence[Any], key: Any = None) -> tuple[Any, ...]:
        count = rows[0].shape[0]
        outputs = tuple(jax.ShapeDtypeStruct((count, *spec.shape), spec.dtype) for spec in self.api.outputs)
        drawn = [jax.random.key_data(key)] if self.random else []
        return tuple(
            jax.pure_callback(called_back(self.run), outputs, *rows, *drawn, vmap_method="sequential")
        )

    @property
    def rule(self) -> BatchRule:
        """The batch rule: rows map to the file layout one at a time."""
        return BatchRule("vmap", self.layout, {}, "the graph breaks")

    @property
    def file_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of inputs and of outputs in the file."""
        return tuple(self.layout), tuple(value.name for value in self.graph.outputs)

    @property
    def constants(self) -> Mapping[str, Any]:
        """Bound inputs, name -> value."""
        return self.graph.bound

    def run(self, *given: Any) -> tuple[np.ndarray, ...]:
        """Outputs `[n, *element_shape]` for rows `[n, *element_shape]`, on the host.

        `given` are the inputs in order, and the data of a key if the graph is random. A row of zeros may be
        padding. If it cannot run, its outputs are NaN, or the least whole number of their dtype.

        Raises:
            LoweringError: a row cannot run, or an output has another shape for it than for other rows.
        """
        arrays = [np.asarray(value) for value in given]
        rows = arrays[: len(self.api.inputs)]
        results = [np.zeros((len(rows[0]), *spec.shape), spec.dtype) for spec in self.api.outputs]
        for index in range(len(rows[0])):
            row = [values[index] for values in rows]
            try:
                answers = self._single(row, _seed(arrays[-1], index) if self.random else 0)
            except MemojaxError:
                if any(value.any() for value in row):
                    raise
                answers = [_nothing(spec) for spec in self.api.outputs]
            for result, answer in zip(results, answers, strict=True):
                result[index] = answer
        return tuple(results)

    def _single(self, row: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        feeds = {
            name: value.reshape(shape)
            for (name, (_, shape)), value in zip(self.layout.items(), row, strict=True)
        }
        outputs = list(self._program(feeds, seed=seed).values())
        for spec, value in zip(self.api.outputs, outputs, strict=True):
            if value.size != np.prod(spec.shape, dtype=int):
                raise LoweringError(
                    f"output {spec.name!r} has shape {list(value.shape)} for this row and {list(spec.shape)} "
                    "for others, so its shape depends on data, which an inferer does not allow: leave it out "
                    "with outputs=, or use memojax.run"
                )
        return [np.reshape(value, spec.shape) for spec, value in zip(self.api.outputs, outputs, strict=True)]

    @functools.cached_property
    def _program(self) -> OneShot:
        return OneShot.of_graph(self.graph)

    def __getstate__(self) -> dict[str, Any]:
        """The state without executables, which the process that unpickles it compiles anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_program"}


def single_runs(
    graph: Graph, dims: Mapping[str, int], batch_axis: BatchAxis
) -> dict[str, tuple[int | None, Shape]]:
    """Batch axis and shape of one run for each input, as the file declares them.

    See `find_batch.batched` for the options.

    Raises:
        DimensionError: the evidence for the batch is not enough, or a dimension is neither the batch nor
            bound.
    """
    declared = declared_shapes(graph, dims)
    layout = find_layout(declared, batch_axis)
    if layout.strength == "leading":
        carried = {dim for value in graph.outputs for dim in value.shape or ()}
        if not carried.intersection(layout.symbols):
            raise ambiguous(declared, f"{layout.symbols[0]!r} leads an input, but no output declares it")
    if layout.free:
        example = ", ".join(f"{symbol!r}: 16" for symbol in layout.free)
        raise DimensionError(
            f"the graph of this file breaks, so each dimension needs one size, but "
            f"{', '.join(map(repr, layout.free))} are neither the batch nor bound: load it with "
            f"dims={{{example}}}"
        )
    return {name: (axis, layout.with_batch(name, 1)) for name, axis in layout.axes.items()}


def host_rows(graph: Graph, layout: Mapping[str, tuple[int | None, Shape]]) -> HostRows:
    """A graph with breaks as a function of rows; running a few rows shows the shapes of its outputs.

    Args:
        graph: a graph whose constants are bound.
        layout: input -> (its batch axis in the file or None, the shape of one run).

    Raises:
        DimensionError: an output has another shape for other rows, or is no array of numbers.
        LoweringError: no row runs.
    """
    program = OneShot.of_graph(graph)
    random = program.draws
    shown_in = plain_names([value.name for value in graph.inputs])
    shown_out = plain_names([value.name for value in graph.outputs])
    dtypes = {value.name: value.dtype or np.dtype(np.float32) for value in graph.inputs}
    inputs = tuple(
        TensorSpec(shown_in[name], _without(shape, axis), dtypes[name])
        for name, (axis, shape) in layout.items()
    )
    shapes = {name: shape for name, (_, shape) in layout.items()}
    seen = _outputs_of(program, shapes, dtypes)
    outputs = []
    for name, shown in shown_out.items():
        found = {(value[name].shape, value[name].dtype) for value in seen if hasattr(value[name], "dtype")}
        if len(found) != 1 or next(iter(found))[1].kind == "O":
            kinds = (
                ", ".join(f"{dtype}{list(shape)}" for shape, dtype in sorted(found, key=str)) or "no tensor"
            )
            raise DimensionError(
                f"output {name!r} does not have the same dtype and shape for every row ({kinds}): leave it "
                "out with outputs=, or use memojax.run"
            )
        ((shape, dtype),) = found
        unit = next((axis for axis, dim in enumerate(shape) if dim == 1), None)
        outputs.append(TensorSpec(shown, _without(shape, unit), dtype))
    breaks = tuple(dict.fromkeys(node.op_type for node in program.breaks))
    return HostRows(graph, layout, ModelApi(inputs, tuple(outputs)), random, breaks)


def _outputs_of(
    program: OneShot, shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype]
) -> list[dict[str, Any]]:
    """The outputs of a few rows; rows that cannot run are skipped, unless none can."""
    rng = np.random.default_rng(0)
    seen: list[dict[str, Any]] = []
    failure: MemojaxError | None = None
    for probe in _PROBES:
        row = {name: probe(rng.standard_normal(shape)).astype(dtypes[name]) for name, shape in shapes.items()}
        try:
            seen.append(program(row))
        except MemojaxError as cause:
            failure = cause
    if failure is not None and not seen:
        raise failure
    return seen


def _nothing(spec: TensorSpec) -> Any:
    """The value of an output that has no answer."""
    if jnp.issubdtype(spec.dtype, jnp.inexact):
        return np.nan
    return False if spec.dtype == np.bool_ else ml_dtypes.iinfo(spec.dtype).min


def _seed(key: np.ndarray, row: int) -> int:
    return int(np.random.SeedSequence([*map(int, key.ravel()), row]).generate_state(1)[0])


def _without(shape: Shape, axis: int | None) -> Shape:
    return tuple(dim for place, dim in enumerate(shape) if place != axis)
