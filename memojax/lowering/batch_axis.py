"""A graph as a function of rows `[n, *element_shape]`, on whichever axis its file has the batch.

There are two batch rules. `axis`: the file itself runs a whole batch, so it is traced at n. `vmap`: the batch
of the file is 1, or it has none, so the function of a single run is mapped over the rows. Under `vmap` rows
cannot mix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from .._types import Array, Params, Shape
from ..errors import DimensionError, LoweringError
from ..model.dimension import Element
from ..model.graph import Value
from ..model.signature import ModelApi, TensorSpec, plain_names
from ..ops.inline import inlined
from ..xla.settings import own_settings
from .batch_evidence import Layout, Strength
from .graph_function import GraphFunction
from .row_proof import Walk
from .row_states import Rows, Same, State
from .shared_steps import SharedSteps
from .size_numbers import SizeUses, deciding_sizes, different, fractions, numbers_in

log: logging.Logger = logging.getLogger("memojax")

PROBE_SIZES = (5, 7)
"""Two batch sizes that are unlikely to be a dimension of the model by chance. Only shapes are evaluated."""


@dataclass(frozen=True)
class OutputRows:
    """How an output of a batch divides into rows.

    Attributes:
        axis: the axis in the file that grows with the batch; None for a value that all rows share.
        per_row: entries of that axis for each row; if more than 1, it is a dimension of the element.
        rows_outermost: whether the entries of a row lie side by side, as after a Reshape to -1. Otherwise the
            first entries of all rows come first, as in a Concat of two heads along the batch.
    """

    axis: int | None
    per_row: int = 1
    rows_outermost: bool = True

    def is_proven(self, state: State) -> bool:
        """Whether an output in this state divides into rows so, and no row influences another."""
        if self.axis is None or isinstance(state, Same):
            return isinstance(state, Same) and (self.axis is None or self.axis in state.uniform)
        outer, inner = (1, self.per_row) if self.rows_outermost else (self.per_row, 1)
        return state == Rows(self.axis, outer, inner)

    def of(self, value: Any, n: int) -> Any:
        """An output of `n` rows in the file layout, a NumPy or JAX array, as rows `[n, *element_shape]`."""
        np_like: Any = np if isinstance(value, np.ndarray) else jnp
        # The value is the same for all agents, but callers expect a row for each.
        if self.axis is None:
            return np_like.broadcast_to(value, (n, *value.shape))
        if self.per_row == 1:
            return np_like.moveaxis(value, self.axis, 0)
        parts = (n, self.per_row) if self.rows_outermost else (self.per_row, n)
        value = value.reshape(*value.shape[: self.axis], *parts, *value.shape[self.axis + 1 :])
        return np_like.moveaxis(value, self.axis if self.rows_outermost else self.axis + 1, 0)


@dataclass(frozen=True)
class BatchRule:
    """How rows reach the file layout.

    Attributes:
        kind: "axis" or "vmap".
        inputs: name in the file -> (batch axis in the file or None, declared shape with the batch as 1).
        outputs: name in the file -> how the output divides into rows.
        reason: the evidence for this rule, in a few words.
        strength: how the batch is known.
        only_rows: the only batch size that the file runs; None if it runs any.
        by_number: whether the number of rows is part of a computation, as in a hand-written mean.
        apart: whether the traces prove that no row influences another, whatever the values.
        by_size: batch sizes to try, because a comparison of the number of rows, or the like, may decide
            something. What holds at one size need not hold at another then. Empty for other files.
        numbers: numbers in the file that rows may be compared with, for trial runs; empty if none are needed.
    """

    kind: Literal["axis", "vmap"]
    inputs: Mapping[str, tuple[int | None, Shape]]
    outputs: Mapping[str, OutputRows]
    reason: str
    strength: Strength = "unit"
    only_rows: int | None = None
    by_number: bool = False
    apart: bool = False
    by_size: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether rows are known not to influence each other, at any batch size."""
        return self.kind == "vmap" or (self.apart and not self.by_number and not self.by_size)

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})"


@dataclass(frozen=True)
class BatchedFunction:
    """A graph as a function of rows.

    `fn(params, rows, key)` takes a tuple of `[n, *element_shape]` arrays in the order of `api.inputs`; a
    shared input has no n. It returns one array `[n, *element_shape]` for each name in `computed`.

    Attributes:
        function: the graph.
        rule: how rows reach the file layout.
        api: inputs and outputs, without the batch axis.
        constants: bound inputs, name in the file -> value.
        computed: names of the outputs that the function returns.
        constant: outputs that depend on no input, name -> value for each agent.
        file_names: names of inputs and of outputs in the file; `api` may show shorter ones.
        layout: the batch axis of each input in the file.
    """

    function: GraphFunction
    rule: BatchRule
    api: ModelApi
    constants: Mapping[str, np.ndarray]
    computed: tuple[str, ...]
    constant: Mapping[str, np.ndarray]
    file_names: tuple[tuple[str, ...], tuple[str, ...]]
    layout: Layout

    def __call__(
        self, params: Params, rows: Sequence[Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        if self.rule.kind == "axis":
            return self._native(params, rows, key)
        if key is None:
            return jax.vmap(lambda *row: self._single(params, row, None))(*rows)
        # A key of its own for each row: with one key for all, equal agents would draw equal numbers.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows[0].shape[0]))
        return jax.vmap(lambda row_key, *row: self._single(params, row, row_key))(keys, *rows)

    def _native(self, params: Params, rows: Sequence[Array], key: jax.Array | None) -> tuple[jax.Array, ...]:
        """The function of a file that runs a whole batch: one run for all rows."""
        inputs: dict[str, Array] = dict(self.constants)
        n = 1  # if all inputs are shared
        for name, row in zip(self.file_names[0], rows, strict=True):
            axis = self.rule.inputs[name][0]
            if axis is not None:
                n = row.shape[0]
            # Axis 0 is where rows are already, and None is a shared input.
            inputs[name] = jnp.moveaxis(row, 0, axis) if axis else row
        outputs = self.function(params, inputs, key)
        return tuple(self._rows_of(name, jnp.asarray(outputs[name]), n) for name in self._computed_in_file())

    def _rows_of(self, name: str, value: jax.Array, n: int) -> jax.Array:
        """An output in the file layout as rows `[n, *element_shape]`."""
        how, shape = self.rule.outputs[name], self._element_shapes()[name]
        if n == 1 and how.axis is not None and is_fixed_shape(shape) and value.size == math.prod(shape):
            return value.reshape(1, *shape)  # a Squeeze without axes drops a batch of one as well
        if how.axis is not None and (
            len(value.shape) <= how.axis or value.shape[how.axis] != n * how.per_row
        ):
            raise self._odd(name, value.shape, n)
        rows = how.of(value, n)
        # Shapes were compared at two sizes only, and a Slice or an If may change its mind at others.
        if len(rows.shape) != len(shape) + 1 or any(
            isinstance(want, int) and want != got for want, got in zip(shape, rows.shape[1:], strict=True)
        ):
            raise self._odd(name, value.shape, n)
        return rows

    def _odd(self, name: str, found: Sequence[int], n: int) -> DimensionError:
        how, element = self.rule.outputs[name], list(self._element_shapes()[name])
        return DimensionError(
            f"output {name!r} has shape {list(found)} for {n} rows, not one row of {element} for each on "
            f"axis {how.axis}, as for {PROBE_SIZES[0]} and for {PROBE_SIZES[1]} rows: max_batch_size= splits "
            "larger batches, outputs=[...] keeps only other outputs, and memojax.run runs the file as it is"
        )

    def _single(self, params: Params, row: Sequence[Array], key: jax.Array | None) -> tuple[jax.Array, ...]:
        """The function of a single run, from one row of each input to one row of each output."""
        inputs: dict[str, Array] = dict(self.constants)
        for name, value in zip(self.file_names[0], row, strict=True):
            # A row lacks the batch axis of size 1 that the file declares.
            inputs[name] = value.reshape(self.rule.inputs[name][1])
        outputs = self.function(params, inputs, key)
        # The output of a run may have a batch axis of size 1 as well, which the element shape lacks.
        shapes = self._element_shapes()
        return tuple(jnp.asarray(outputs[name]).reshape(shapes[name]) for name in self._computed_in_file())

    def _element_shapes(self) -> dict[str, Any]:
        return {name: spec.shape for name, spec in zip(self.file_names[1], self.api.outputs, strict=True)}

    def _computed_in_file(self) -> tuple[str, ...]:
        shown = [spec.name for spec in self.api.outputs]
        return tuple(self.file_names[1][shown.index(name)] for name in self.computed)


def is_fixed_shape(shape: Sequence[Any]) -> bool:
    """Whether no dimension is a symbol."""
    return all(isinstance(dim, int) for dim in shape)


@dataclass(frozen=True)
class Trace:
    """A graph traced for one number of rows.

    Attributes:
        outputs: output -> shape and dtype in the file layout.
        sizes: known values that nodes compare, round, or mix with data.
        numbers: the numbers of the trace, in order; only for `PROBE_SIZES`, as are the next two.
        states: how rows lie in each output, by the order of names; None if the trace tells nothing of it.
        passed: how rows lay in the results of each step.
    """

    outputs: dict[str, jax.ShapeDtypeStruct]
    sizes: SizeUses
    numbers: tuple[float | int, ...] = ()
    states: list[State] | None = None
    passed: list[Rows] = field(default_factory=list)


@dataclass(frozen=True)
class Traced:
    """A graph at a layout; only its shapes are evaluated, never its numbers.

    Attributes:
        function: the graph.
        layout: a layout without free symbols.
        constants: bound inputs, name in the file -> value.
        outputs: names in the file of the outputs that depend on an input.
    """

    function: GraphFunction
    layout: Layout
    constants: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    _probes: dict[int, Trace] = field(default_factory=dict, repr=False, compare=False)
    """Traces at `PROBE_SIZES`: more than one question asks for them, and a long graph takes seconds."""

    def at(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Output -> shape and dtype in the file layout, for `n` rows; see `trace`."""
        return self.trace(n).outputs

    def trace(self, n: int) -> Trace:
        """The trace for `n` rows.

        Raises:
            LoweringError: the graph does not run at this batch size.
        """
        made = self._probes.get(n)
        if made is None:
            made = self._traced(n)
            if n in PROBE_SIZES:
                self._probes[n] = made
        return made

    def _traced(self, n: int) -> Trace:
        sizes: SizeUses = {}
        values = {value.name: value for value in self.function.graph.inputs}
        specs = {
            name: jax.ShapeDtypeStruct(self.layout.with_batch(name, n), dtype_of(values[name]))
            for name in self.layout.shapes
        }

        def run(params: Any, inputs: Any, key: Any) -> dict[str, jax.Array]:
            drawn = jax.random.wrap_key_data(key, impl="threefry2x32") if self.function.random else None
            # JAX would keep the traces of its inner jits for good, and a probe is never used again.
            with inlined():
                results = self.function(
                    params, {**self.constants, **inputs}, drawn, sizes=sizes, shared=SharedSteps()
                )
            for name in self.outputs:
                if isinstance(results[name], (tuple, type(None))):
                    raise LoweringError(
                        f"output {name!r} is a sequence or optional, and an inferer returns tensors only: "
                        "leave it out with outputs=, or use memojax.run"
                    )
            return {name: jnp.asarray(results[name]) for name in self.outputs}

        with own_settings():
            # Draws are part of the shapes' trace, so it takes a key, of which only the shape matters.
            key = jax.ShapeDtypeStruct((2,), np.uint32)
            closed, outputs = jax.make_jaxpr(run, return_shape=True)(self.function.params, specs, key)
        if n not in PROBE_SIZES:
            return Trace(outputs, sizes)
        # A trace of a long graph is a million objects, so only what it tells is kept.
        states, passed = _passing(self, closed, n)
        return Trace(outputs, sizes, numbers_in(closed), states, passed)


def dtype_of(value: Value) -> np.dtype:
    """The dtype of a graph input; float32 if the file declares none."""
    return value.dtype or np.dtype(np.float32)


class OddOutputError(DimensionError):
    """An output depends on the batch size, but does not divide into rows."""


def rows_of_output(
    name: str, first: Shape, second: Shape, declared: Sequence[Any] | None, symbols: Sequence[str]
) -> tuple[OutputRows, tuple[Element, ...]]:
    """How an output divides into rows, and its element shape, from its shapes for 5 and for 7 rows.

    Args:
        name: the output, for errors.
        first: shape at the first of `PROBE_SIZES`.
        second: shape at the second.
        declared: dimensions in the file, if it declares any.
        symbols: the file's names for the batch.

    Raises:
        OddOutputError: no axis grows in step with the batch.
    """
    small, large = PROBE_SIZES
    growing = [axis for axis, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    # An output that does not grow is the same for all agents, such as a table of weights.
    if len(first) == len(second) and not growing:
        return OutputRows(None), first
    # An axis has one entry for each row, or a fixed number of them, such as agents times actions.
    exact = [axis for axis in growing if (first[axis], second[axis]) == (small, large)]
    multiple = [
        axis for axis in growing if first[axis] % small == 0 and second[axis] == first[axis] // small * large
    ]
    # Either all growing axes equal the batch size, or a single one is a multiple of it. With any other
    # growth, nothing tells which entries belong to which agent.
    if len(first) != len(second) or not multiple or len(exact) + (not exact) < len(growing):
        raise OddOutputError(
            f"output {name!r} has shape {list(first)} for {small} rows and {list(second)} for {large}, so it "
            "does not divide into one row for each agent: keep only the other outputs with outputs=[...], or "
            "use memojax.run or memojax.to_jax"
        )
    # Of several axes that follow the batch (attention is [n, n]), the one that the file names is the batch.
    said = [axis for axis in exact if declared and len(declared) == len(first) and declared[axis] in symbols]
    axis = (said or exact or multiple)[0]
    per_row = first[axis] // small
    batch = symbols[0] if symbols else "n"
    # The others stay in the element, as a symbol: their length is the batch size.
    rest: list[Element] = [batch if at in exact else dim for at, dim in enumerate(first)]
    # `_rows_of` splits an axis of n * per_row entries, so per_row takes the place of the batch in an element.
    rest[axis : axis + 1] = [per_row] if per_row != 1 else []
    return OutputRows(axis, per_row), tuple(rest)


@dataclass(frozen=True)
class NativeRows:
    """What two traces tell of a file that runs whole batches.

    Attributes:
        outputs: output -> how it divides into rows.
        elements: output -> element shape.
        results: output -> a spec with its dtype.
        by_number, apart, by_size, numbers: see `BatchRule`.
    """

    outputs: Mapping[str, OutputRows]
    elements: Mapping[str, tuple[Element, ...]]
    results: Mapping[str, Any]
    by_number: bool
    apart: bool
    by_size: tuple[int, ...]
    numbers: tuple[float, ...]

    def rule(self, layout: Layout) -> BatchRule:
        """The rule of a file that runs whole batches as `layout` says."""
        return BatchRule(
            "axis",
            {name: (layout.axes[name], layout.with_batch(name, 1)) for name in layout.shapes},
            self.outputs,
            layout.reason,
            layout.strength,
            by_number=self.by_number,
            apart=self.apart,
            by_size=self.by_size,
            numbers=self.numbers,
        )


def native_rows(traced: Traced) -> NativeRows:
    """How the outputs of a file that runs whole batches divide into rows.

    Raises:
        LoweringError: the file does not run at both of `PROBE_SIZES`.
        OddOutputError: an output does not divide into rows.
    """
    # The two sizes have no common factor, so an axis that follows both follows the batch.
    small, large = map(traced.trace, PROBE_SIZES)
    first, second = small.outputs, large.outputs
    declared = {value.name: value.shape for value in traced.function.graph.outputs}
    rows, elements = {}, {}
    for name in traced.outputs:
        rows[name], elements[name] = rows_of_output(
            name, first[name].shape, second[name].shape, declared[name], traced.layout.symbols
        )
    # A mean over the batch by hand divides by the number of rows: such a fraction differs.
    few, many = fractions(small.numbers), fractions(large.numbers)
    by_number = len(few) == len(many) and not np.array_equal(few, many, equal_nan=True)
    # Other numbers of rows must pass in the same way for the proof to hold for them.
    apart = _proves(small, rows) and _proves(large, rows) and small.passed == large.passed
    # Proven rows need no trial runs, so no numbers to try in them.
    numbers = () if apart else different(small.numbers)
    return NativeRows(
        rows, elements, first, by_number, apart, deciding_sizes(small.sizes, large.sizes), numbers
    )


def _proves(trace: Trace, rows: Mapping[str, OutputRows]) -> bool:
    """Whether a trace proves that its outputs are the rows of `rows`."""
    return trace.states is not None and all(
        how.is_proven(state) for (_, how), state in zip(sorted(rows.items()), trace.states, strict=True)
    )


def _passing(
    traced: Traced, closed: jax.extend.core.ClosedJaxpr, n: int
) -> tuple[list[State] | None, list[Rows]]:
    """How `n` rows lie in the outputs of a trace, and how they pass through it; see `Trace`.

    The arguments of the trace are the weights, the inputs by name, and the key of draws.
    """
    weights: list[State] = [Same() for _ in jax.tree.leaves(traced.function.params)]
    axes = traced.layout.axes
    # JAX sorts the names of a dict.
    given: list[State] = [
        Same() if (axis := axes[name]) is None else Rows(axis) for name in sorted(traced.layout.shapes)
    ]
    walk = Walk(n, traced.function.random)
    try:
        return walk.outputs(closed, [*weights, *given, Same()]), walk.passed
    except (KeyError, AttributeError) as cause:  # a JAX whose equations have other parameters
        log.info("this JAX's traces prove nothing of rows, so trial runs do: %r", cause)
        return None, []


def assemble(
    function: GraphFunction,
    rule: BatchRule,
    elements: Mapping[str, Sequence[Element]],
    results: Mapping[str, Any],
    layout: Layout,
) -> BatchedFunction:
    """Put a function of rows together.

    Args:
        function: the graph.
        rule: how rows reach the file layout.
        elements: computed output -> element shape, by names in the file.
        results: computed output -> an array or spec with its dtype, by names in the file.
        layout: the batch axis of each input in the file.
    """
    graph = function.graph
    values = {value.name: value for value in graph.inputs}
    shown_in = plain_names(list(rule.inputs))
    shown_out = plain_names([value.name for value in graph.outputs])
    # Outputs that depend on no input have no element shape: they are computed here, once.
    moving = [value.name for value in graph.outputs if value.name in elements]
    still = [value.name for value in graph.outputs if value.name not in elements]
    constants = dict(graph.bound)
    constant = function.constant_outputs(still, constants) if still else {}
    inputs = []
    for name, (axis, shape) in rule.inputs.items():
        # Under vmap every input has rows; a batched file takes an input without a batch once for all.
        shared = rule.kind == "axis" and axis is None
        element = shape if axis is None else (*shape[:axis], *shape[axis + 1 :])
        inputs.append(TensorSpec(shown_in[name], element, dtype_of(values[name]), shared))
    outputs = []
    # In the file's order, in which constant outputs stand among computed ones.
    for value in graph.outputs:
        if value.name in elements:
            spec = TensorSpec(shown_out[value.name], tuple(elements[value.name]), results[value.name].dtype)
        else:
            array = constant[value.name]
            spec = TensorSpec(shown_out[value.name], array.shape, array.dtype)
        outputs.append(spec)
    names = (tuple(rule.inputs), tuple(value.name for value in graph.outputs))
    return BatchedFunction(
        function,
        rule,
        ModelApi(tuple(inputs), tuple(outputs)),
        constants,
        tuple(shown_out[name] for name in moving),
        {shown_out[name]: constant[name] for name in still},
        names,
        layout,
    )
