"""Finds the rows that a call belongs to: one set for each binding of free symbols and static inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..lowering.free_function import Binding, binding_of
from ..plans.engine import Engine
from ..plans.family import Family
from ..rows.checks import check_names, check_shapes, shared_value
from ..rows.input_checks import as_dtype
from .compiled_rows import CompiledRows


class RowsByBinding:
    """`CompiledRows` for each binding in use.

    Attributes:
        family: the engines behind them.
        pinned: batch sizes given as numbers alone; the background compiles them for each new binding.
    """

    def __init__(self, family: Family, make: Callable[[Engine], CompiledRows]):
        """Rows of `family`, each made by `make(engine)`."""
        self.family = family
        self.pinned: dict[int, None] = {}
        self._make = make
        self._rows: dict[Binding, CompiledRows] = {}
        self._lock = threading.Lock()

    def all(self) -> list[CompiledRows]:
        """All rows in use, in the order in which their bindings appeared."""
        return list(self._rows.copy().values())

    def pin(self, sizes: Iterable[int]) -> None:
        """Compile `sizes` in the background, for the present bindings and for later ones."""
        sizes = list(sizes)
        self.pinned.update(dict.fromkeys(sizes))
        for rows in self.all():
            for size in rows.cache.pin(sizes):
                rows.cache.compile_later(size)

    def expect(self, sizes: Iterable[int]) -> None:
        """Compile `sizes` when a binding is first used; see `PlanCache.expect`."""
        sizes = list(sizes)
        self.pinned.update(dict.fromkeys(sizes))
        for rows in self.all():
            rows.cache.expect(sizes)

    def at(self, binding: Binding) -> CompiledRows:
        """The rows of a binding.

        Raises:
            DimensionError, LoweringError: the model does not run with this binding.
        """
        rows = self._rows.get(binding)
        if rows is not None and self.family.holds(rows.engine):
            return rows
        with self._lock:
            engine = self.family.at(binding)
            if (rows := self._rows.get(binding)) is None or rows.engine is not engine:
                rows = self._rows[binding] = self._make(engine)
                self._forget_dropped()
                for size in engine.cache.pin(self.pinned):
                    engine.cache.compile_later(size)
            return rows

    def _forget_dropped(self) -> None:
        """Forget rows whose engines the family has dropped."""
        for gone in [key for key, one in self._rows.items() if not self.family.holds(one.engine)]:
            del self._rows[gone]

    def of_inputs(self, inputs: Mapping[str, Any]) -> tuple[CompiledRows, dict[str, Any]]:
        """The rows that a whole batch belongs to, and its inputs without the static ones.

        Raises:
            InputError: an input is unknown, missing or misshapen, or sizes contradict each other.
        """
        specs = self.family.typed.api.inputs
        check_names(specs, inputs)
        named = {spec.name: inputs[spec.name] for spec in specs}
        arrays = [value if hasattr(value, "shape") else np.asarray(value) for value in named.values()]
        check_shapes(specs, arrays)
        rows, _ = self.of_arrays(arrays)
        given = zip(specs, named.values(), strict=True)
        return rows, {spec.name: value for spec, value in given if not spec.static}

    def of_arrays(self, arrays: Sequence[Any]) -> tuple[CompiledRows, list[Any]]:
        """Like `of_inputs`, for checked arrays in the order of the inputs."""
        api = self.family.typed.api
        each = list(zip(api.inputs, arrays, strict=True))
        elements = [tuple(array.shape)[len(array.shape) - len(spec.shape) :] for spec, array in each]
        static = [(spec, np.asarray(shared_value(spec, array))) for spec, array in each if spec.static]
        values = [as_dtype(spec, value) for spec, value in static]
        rows = self.at(binding_of(api, elements, values))
        return rows, [array for spec, array in each if not spec.static]
