"""Run any graph in the file layout: one executable for each set of input shapes and static values."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from .._argument_checks import as_count
from .._types import GraphValue, Source
from ..errors import (
    CompileError,
    InputError,
    InputShapeError,
    TripCountError,
    Unsupported,
    UnsupportedOpError,
    printable,
)
from ..model import load_model
from ..model.dimension import fits_declared
from ..model.graph import Graph, Node, Value
from ..model.load import Model
from ..ops.inline import inlined
from ..ops.resolve import Operators
from ..ops.trips import at_most
from ..rows.input_checks import as_kind, check_names
from ..xla.cpu_client import cpu_device
from ..xla.fork import check_not_forked
from ..xla.limits import TRIPS, for_one_executable
from ..xla.memory import check_memory
from ..xla.options import compiled
from ..xla.pieces import in_pieces
from ..xla.settings import own_settings
from .binding import bind_inputs, with_inputs
from .graph_breaks import HostCall, host_nodes, split
from .graph_function import GraphFunction
from .index_checks import check_indices
from .interpreter import IndexChecks
from .labels import with_strings

log: logging.Logger = logging.getLogger("memojax")
_BREAK = "it runs on the host, between compiled parts of the graph, which strict=True refuses"


class OneShot:
    """A model in the file layout, compiled for each new set of input shapes.

    Inputs that decide a shape or a branch are part of the set by their values; inputs with a default may be
    left out. Operators that only the host can run (NonZero, strings, ...) break the graph into parts;
    `breaks` lists them. Use this class to run a model once or to compare it with another runtime. For a
    policy that is called in a loop, an inferer is faster.

    >>> model = memojax.OneShot(memojax.policies.bundled("acrobot_ppo"))
    >>> model({"obs": np.zeros((2, 6), np.float32)})["logits"].shape
    (2, 3)
    >>> model
    OneShot(obs -> logits; 1 plans)
    """

    model: Model
    graph: Graph
    breaks: list[Node]

    def __init__(
        self,
        source: Source,
        *,
        outputs: tuple[str, ...] | None = None,
        constants: Mapping[str, Any] | None = None,
        device: jax.Device | None = None,
        strict: bool = False,
        max_trip_count: int | None = None,
        checked: bool = False,
    ):
        """Load a model.

        Args:
            source: path, bytes, file object, `ModelProto` or loaded `Model`.
            outputs: keep only these outputs and the nodes that they need.
            constants: inputs to bind, name -> value in the file layout.
            device: the device to run on; memojax's CPU device by default.
            strict: refuse a model whose graph breaks.
            max_trip_count: trips that a call allows to all its loops whose end depends on data, since an
                executable cannot be interrupted. The default is 262,144, or the environment variable
                `MEMOJAX_MAX_TRIP_COUNT`. A call that needs more raises `TripCountError`.
            checked: raise an error if data gives an index out of range; otherwise the result is NaN there.

        Raises:
            ModelLoadError: `source` cannot be loaded.
            UnsupportedOpError: operators cannot be lowered; with `strict`, also: the graph breaks.
            InputError: `constants` names no input, or does not fit; `max_trip_count` is below 1.
        """
        if max_trip_count is not None:
            max_trip_count = as_count("max_trip_count", max_trip_count, InputError)
        model = load_model(source, outputs=outputs)
        self.model = model
        self._set_up(bind_inputs(model.graph, constants or {}), device, max_trip_count, checked)
        if self.breaks:
            if strict:
                raise UnsupportedOpError(
                    [Unsupported(n.domain, n.op_type, n.opset, (n.name,), _BREAK) for n in self.breaks]
                )
            listing = ", ".join(f"{node.name} ({node.op_type})" for node in self.breaks)
            log.warning(
                "%s: %d graph break(s), run on the host between compiled parts: %s",
                printable(model.name),
                len(self.breaks),
                printable(listing),
            )
        self._programs[()] = self._program(self.graph)

    @classmethod
    def of_graph(cls, graph: Graph) -> OneShot:
        """A `OneShot` for a loaded graph, without the warning about its breaks."""
        made = cls.__new__(cls)
        made._set_up(graph, None, None, False)
        made._programs[()] = made._program(graph)
        return made

    def _set_up(
        self, graph: Graph, device: jax.Device | None, max_trip_count: int | None, checked: bool
    ) -> None:
        self.graph = graph
        self._operators = Operators()
        self._part = functools.partial(
            _Compiled,
            device=device or cpu_device(),
            operators=self._operators,
            max_trip_count=max_trip_count,
            checked=checked,
        )
        self.breaks = host_nodes(graph, self._operators)
        self._programs: dict[tuple[str, ...], _Program] = {}

    @property
    def draws(self) -> bool:
        """Whether the graph has random operators."""
        return self._operators.draw(self.graph)

    def __repr__(self) -> str:
        """Inputs, outputs, the number of executables, and the operators at which the graph breaks."""
        inputs, outputs = (
            ", ".join(value.name for value in values) for values in (self.graph.inputs, self.graph.outputs)
        )
        breaks = f", graph breaks at {', '.join(node.op_type for node in self.breaks)}" if self.breaks else ""
        return f"OneShot({ascii(inputs)[1:-1]} -> {ascii(outputs)[1:-1]}; {self.plans} plans{breaks})"

    def __call__(self, inputs: Mapping[str, Any], *, seed: int = 0) -> dict[str, GraphValue]:
        """Outputs by name, as NumPy arrays (tuples of them for sequences), in the file's layout and dtypes.

        Args:
            inputs: every graph input by name; arrays, or lists of arrays for sequences. An input with a
                default may be left out.
            seed: seed of the key from which random operators draw.

        Raises:
            InputError: an input is missing, unknown, or of the wrong shape or dtype.
            IndexRangeError: with `checked`, data gives an index out of range.
            TripCountError: loops whose end depends on data need more than `max_trip_count` trips.
        """
        given = tuple(name for name in self.graph.defaults if name in inputs)
        if given not in self._programs:
            self._programs[given] = self._program(with_inputs(self.graph, given))
        return self._programs[given](inputs, seed)

    def _program(self, graph: Graph) -> _Program:
        return _Program(graph, self._operators, self._part)

    @property
    def plans(self) -> int:
        """The number of executables."""
        return sum(program.plans for program in self._programs.values())


class _Program:
    """Runs the parts and host calls of a graph, in order."""

    def __init__(self, graph: Graph, operators: Operators, part: Callable[[Graph], _Compiled]):
        self._graph = graph
        self._steps = [
            step if isinstance(step, HostCall) else part(step.graph) for step in split(graph, operators)
        ]

    def __call__(self, inputs: Mapping[str, Any], seed: int) -> dict[str, GraphValue]:
        wanted, defaults = {value.name: value for value in self._graph.inputs}, self._graph.defaults
        optional = [name for name, value in wanted.items() if value.kind == "optional"]
        check_names([*wanted, *defaults], inputs, optional=[*optional, *defaults])
        env: dict[str, Any] = {name: _checked(value, inputs.get(name)) for name, value in wanted.items()}
        if len(self._steps) == 1 and isinstance(self._steps[0], _Compiled):
            return self._steps[0](env, seed)
        env.update(self._graph.initializers)
        for step in self._steps:
            env.update(
                step(env)
                if isinstance(step, HostCall)
                else step({name: env[name] for name in step.inputs}, seed)
            )
        return {value.name: env[value.name] for value in self._graph.outputs}

    @property
    def plans(self) -> int:
        return sum(len(step.plans) for step in self._steps if isinstance(step, _Compiled))


class _Compiled:
    """A graph without breaks: one executable for each set of input shapes and static values."""

    def __init__(
        self,
        graph: Graph,
        device: jax.Device,
        operators: Operators,
        max_trip_count: int | None,
        checked: bool,
    ):
        self.function = GraphFunction(graph, operators, masked=False)
        self._max_trip_count = max_trip_count
        self.inputs = [value.name for value in graph.inputs]
        self.plans: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
        self._device, self._checked = device, checked
        self._precision = None if device.platform == "cpu" else "highest"

    def __call__(self, inputs: Mapping[str, Any], seed: int) -> dict[str, GraphValue]:
        check_not_forked()
        by_value = (*self.function.static_inputs, *self.function.branch_inputs)
        fixed = {name: v for name, v in inputs.items() if name in by_value or not _is_traceable(v)}
        moving = {name: value for name, value in inputs.items() if name not in fixed}
        key = tuple((name, _signature(value, name in fixed)) for name, value in inputs.items())
        with own_settings(self._precision):
            if key not in self.plans:
                self.plans[key] = self._compile(fixed, moving)
            executable, static = self.plans[key]
            results = executable(moving, np.array([0, seed & 0xFFFFFFFF], np.uint32))
        leaves, structure = static
        results = iter(results)
        values, checks = jax.tree.unflatten(
            structure, [next(results) if leaf is _COMPUTED else leaf for leaf in leaves]
        )
        check_indices(self.function.graph, checks)
        *values, overrun = values
        if overrun:
            allowed = TRIPS.allowed if self._max_trip_count is None else self._max_trip_count
            raise TripCountError(
                f"a loop did not end within {allowed:,} trips: if you trust the file, give a larger "
                f"max_trip_count=, or set the environment variable {TRIPS.variable}"
            )
        named = zip((value.name for value in self.function.graph.outputs), values, strict=True)
        return with_strings(self.function.labels, dict(named)) if self.function.labels else dict(named)

    def _compile(self, fixed: dict[str, Any], moving: dict[str, Any]) -> tuple[Any, list[Any]]:
        # Outputs that are known while tracing (constants, strings) are kept here, not in the executable.
        static: list[Any] = []

        def traced(inputs: dict[str, Any], key_data: Any) -> list[Any]:
            key = jax.random.wrap_key_data(key_data, impl="threefry2x32") if self.function.random else None
            checks: IndexChecks = {}
            with inlined(), at_most(self._max_trip_count), for_one_executable():
                outputs, overrun = self.function.counted(
                    self.function.params, {**fixed, **inputs}, key, checks=checks if self._checked else None
                )
            # Outputs are a list, since a dict would be sorted by name.
            results = [*outputs.values(), False if overrun is None else overrun]
            leaves, structure = jax.tree.flatten((results, checks))
            static[:] = [[_COMPUTED if isinstance(leaf, jax.Array) else leaf for leaf in leaves], structure]
            return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

        place = SingleDeviceSharding(self._device)
        lowered = jax.jit(in_pieces(traced), in_shardings=place, out_shardings=place).lower(
            moving, np.zeros(2, np.uint32)
        )
        executable = _compile(lowered, self._device)
        check_memory(executable, self.function.rows({**fixed, **moving}))
        return lambda *args: [np.asarray(value) for value in executable(*args)], static


def run(
    source: Source,
    inputs: Mapping[str, Any],
    *,
    outputs: tuple[str, ...] | None = None,
    constants: Mapping[str, Any] | None = None,
    checked: bool = False,
    seed: int = 0,
    max_trip_count: int | None = None,
) -> dict[str, GraphValue]:
    """Load a model and run it once, in the file layout; any model, batched or not.

    See `OneShot` for the options.

    >>> acrobot = memojax.policies.bundled("acrobot_ppo")
    >>> memojax.run(acrobot, {"obs": np.zeros((2, 6), np.float32)})["logits"].shape
    (2, 3)

    Raises:
        ModelLoadError: `source` cannot be loaded.
        UnsupportedOpError: operators cannot be lowered; it lists all of them.
        InputError: an input is missing, unknown, or of the wrong shape or dtype.
        IndexRangeError: with `checked`, data gives an index out of range.
        TripCountError: loops whose end depends on data need more than `max_trip_count` trips.
    """
    model = OneShot(
        source, outputs=outputs, constants=constants, max_trip_count=max_trip_count, checked=checked
    )
    return model(inputs, seed=seed)


def _compile(lowered: Any, device: jax.Device) -> Any:
    try:
        return compiled(lowered, device)
    except Exception as cause:
        raise CompileError(f"XLA could not compile this graph for {device}: {cause}") from cause


_COMPUTED = object()


def _checked(value: Value, given: Any) -> Any:
    if given is None or (isinstance(given, (list, tuple)) and value.kind != "tensor"):
        return given if given is None else tuple(map(np.asarray, given))
    array = np.asarray(given)
    if value.dtype is not None:
        array = as_kind(value.name, array, value.dtype)
    if value.shape is not None and not fits_declared(array.shape, value.shape):
        raise InputShapeError(
            f"input {value.name!r} has shape {list(array.shape)}, the model takes {list(value.shape)}"
        )
    return array


def _is_traceable(value: Any) -> bool:
    return all(array.dtype != object for array in jax.tree.leaves(value)) and value is not None


def _signature(value: Any, by_value: bool) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_signature(item, by_value) for item in value)
    content = (tuple(value.ravel()) if value.dtype == object else value.tobytes()) if by_value else None
    return value.shape, value.dtype, content
