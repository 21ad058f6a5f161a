"""Rows in the file layout, by the file's declaration and not by memojax's batch axis, which is under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._types import Dim, Shape
from ..model.graph import Graph
from ..model.signature import ModelApi, plain_names

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FileLayout:
    """The inputs of a file, and rows in their declared shapes.

    Attributes:
        graph: the graph of the file.
        api: inputs and outputs of an inferer.
        bound: inputs that are the same for all rows, by their names in the file.
        hints: name in the file -> memojax's batch axis; it decides only if the declaration fits several axes.
    """

    graph: Graph
    api: ModelApi
    bound: Mapping[str, Any]
    hints: Mapping[str, int | None]

    @property
    def _shared(self) -> set[str]:
        """Names in the file of inputs that all agents share."""
        names = _in_file([value for value in self.graph.inputs if value.name not in self.bound])
        return {names[spec.name] for spec in self.api.inputs if spec.shared and spec.name in names}

    def alone(self, inputs: Rows, row: int) -> dict[str, Any]:
        """The file's inputs for one row alone: its dimensions are the row's own, and a batch axis is 1."""
        feeds = dict(self.bound)
        for name, declared, rows in self._each(inputs):
            if name in self._shared:
                feeds[name] = rows
                continue
            axis = _axis(declared, rows.shape[1:], self.hints.get(name))
            feeds[name] = rows[row] if axis is None else np.expand_dims(rows[row], axis)
        return feeds

    def whole(self, inputs: Rows) -> dict[str, Any] | None:
        """The file's inputs for all rows at once; None if it declares no batch axis that all inputs share."""
        feeds = dict(self.bound)
        symbols: set[Dim] = set()
        for name, declared, rows in self._each(inputs):
            if name in self._shared:
                feeds[name] = rows
                continue
            axis = _axis(declared, rows.shape[1:], self.hints.get(name))
            if axis is None or (isinstance(declared[axis], int) and declared[axis] != 0):
                return None
            symbols.add(declared[axis])
            feeds[name] = np.ascontiguousarray(np.moveaxis(rows, 0, axis))
        return feeds if len(symbols) == 1 else None

    def contradictions(self, feeds: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Output -> the fault, for outputs with another size than the file declares by an input's symbol."""
        sizes: dict[Dim, int] = {}
        for value in self.graph.inputs:
            if value.name in feeds and value.shape is not None:
                sizes.update(zip(value.shape, np.shape(feeds[value.name]), strict=False))
        found = {}
        for value in self.graph.outputs:
            got = np.shape(outputs.get(value.name, ()))
            if value.name not in outputs or value.shape is None:
                continue
            if len(got) == len(value.shape) and any(
                isinstance(want, str) and sizes.get(want, size) != size
                for want, size in zip(value.shape, got, strict=True)
            ):
                found[value.name] = f"the file declares {list(value.shape)}, but one row gives {list(got)}"
        return found

    def _each(self, inputs: Rows) -> Iterator[tuple[str, tuple[Dim, ...], np.ndarray]]:
        names = _in_file([value for value in self.graph.inputs if value.name not in self.bound])
        declared = {value.name: value.shape or () for value in self.graph.inputs}
        for shown, rows in inputs.items():
            yield names[shown], declared[names[shown]], rows


def same_up_to_ones(one: Shape, other: Shape) -> bool:
    """Whether two shapes are the same apart from axes of 1."""
    return [dim for dim in one if dim != 1] == [dim for dim in other if dim != 1]


def _in_file(values: Any) -> dict[str, str]:
    return {shown: name for name, shown in plain_names([value.name for value in values]).items()}


def _axis(declared: tuple[Dim, ...], element: Shape, hint: int | None) -> int | None:
    """The axis of the declared shape that one row, of shape `element`, lacks; None if it lacks none."""
    if len(declared) != len(element) + 1:
        return None
    fitting = [
        axis
        for axis, dim in enumerate(declared)
        if (not isinstance(dim, int) or dim in (0, 1))
        and all(
            not isinstance(want, int) or want in (0, got)
            for want, got in zip((*declared[:axis], *declared[axis + 1 :]), element, strict=True)
        )
    ]
    return hint if hint in fitting else next(iter(fitting), None)
