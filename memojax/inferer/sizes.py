"""Sizes that callers ask to compile: batch sizes, alone or with the sizes of free dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from .._argument_checks import as_count
from ..errors import BatchSizeError, DimensionError
from ..lowering.free_function import Binding, frozen_value
from ..model.signature import ModelApi
from ..plans.batch_sizes import checked_size
from ..rows.input_checks import as_dtype

Size: TypeAlias = "int | Mapping[str, Any]"
"""A batch size, or {"batch": 8, "seq": 16} for a model with free dimensions."""


def sizes_of(given: Iterable[Size] | Size, api: ModelApi) -> list[tuple[int, Binding | None]]:
    """Each size with its binding; the binding of a number alone is None.

    Raises:
        BatchSizeError: a size is not a positive whole number.
        DimensionError: a dimension is missing or unknown.
    """
    if isinstance(given, (int, Mapping)) or hasattr(given, "__index__"):
        given = [given]  # pyright: ignore[reportAssignmentType]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise BatchSizeError(f"preload= takes batch sizes, for example [1, 8], not {given!r}")
    return [
        (_batch(size), _binding(size, api))
        if isinstance(size, Mapping)
        else (checked_size(cast(int, size)), None)
        for size in given
    ]


def most_rows(preloaded: Any, bucketing: Any = (), limit: int | None = None) -> int:
    """The largest plan size in the options; 0 if they give none."""
    named = [
        size.get("batch", 0) if isinstance(size, Mapping) else size
        for given in (preloaded, bucketing)
        for size in (given if isinstance(given, (list, tuple, range)) else [given])
    ]
    rows = max((size for size in named if isinstance(size, (int, np.integer))), default=0)
    return int(rows) or (limit if isinstance(limit, int) else 0)


def _batch(size: Mapping[str, Any]) -> int:
    if "batch" not in size:
        raise BatchSizeError(f'{dict(size)} has no batch size: add "batch", for example {{"batch": 8}}')
    return checked_size(size["batch"])


def _binding(size: Mapping[str, Any], api: ModelApi) -> Binding | None:
    static = {spec.name: spec for spec in api.inputs if spec.static}
    names = [*api.free, *static]
    if unknown := [name for name in size if name != "batch" and name not in names]:
        raise DimensionError(
            f"{dict(size)} names {unknown[0]!r}, but a size of this model names "
            f"{', '.join(map(repr, ['batch', *names]))}"
        )
    if not names:
        return None
    if missing := [name for name in names if name not in size]:
        raise DimensionError(
            f"{dict(size)} lacks {', '.join(map(repr, missing))}: a plan needs a size for each dimension"
        )
    sizes = tuple(
        (name, as_count(f"the size of {name!r}", size[name], DimensionError, least=0)) for name in api.free
    )
    values = tuple(
        frozen_value(name, as_dtype(spec, np.asarray(size[name]))) for name, spec in static.items()
    )
    return Binding(sizes, values)


class BoundSize(NamedTuple):
    """A batch size with the sizes of free dimensions."""

    batch: int
    binding: Binding

    def __repr__(self) -> str:
        return f"{self.batch} ({self.binding})"


def bound_size(size: int, binding: Binding) -> Any:
    """The public form of a size: a number alone if the model has nothing else to bind."""
    return BoundSize(size, binding) if binding else size
