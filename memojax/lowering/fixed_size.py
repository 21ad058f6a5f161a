"""Files that run for one batch size or its multiples: declared, or baked into a constant by the exporter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import DimensionError, LimitError, LoweringError
from .batch_axis import PROBE_SIZES, BatchedFunction, BatchRule, OutputRows, Traced, assemble

_MULTIPLES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_LARGEST_BAKED = 1 << 16
_MOST_TRIED = 64


def declared_size(traced: Traced) -> BatchedFunction | None:
    """The function of rows of a file that is declared for one batch size other than 1; None for other files.

    The caller checks that its rows are independent: otherwise the leading dimension is part of an element.
    """
    graph = traced.function.graph
    leading = {shape[0] if shape else 1 for shape in traced.layout.shapes.values()}
    if len(leading) != 1 or (size := int(leading.pop())) < 2 or traced.layout.strength != "absent":
        return None
    if traced.layout.reason == "batch_axis=False" or not any(
        len(s) > 1 for s in traced.layout.shapes.values()
    ):
        return None
    layout = replace(traced.layout, axes=dict.fromkeys(traced.layout.shapes, 0), symbols=(), strength="unit")
    outputs = [value.shape for value in graph.outputs if value.name in traced.outputs]
    if any(shape is None or not shape or shape[0] not in (size, None) for shape in outputs):
        return None
    return _at_only(replace(traced, layout=layout), size, f"the file is declared for {size} rows")


def baked_size(traced: Traced, single: BatchedFunction | None) -> BatchedFunction | None:
    """The function of rows of a file into which an exporter baked a batch size; None if there is none.

    `single` is the function of a single run, if the file runs for one row at all.
    """
    for size, holder in _sizes_in(traced):
        try:
            results = traced.at(size)
        except LimitError:
            raise
        except LoweringError:
            continue
        if not all(_holds(traced, name, result.shape, size) for name, result in results.items()):
            continue
        # A file that runs for one row is taken as fixed only if one row already gives `size` rows.
        if single is not None and not _grew_from_one(traced, results, size):
            continue
        return _at_only(traced, size, f"{holder} holds {size} rows")
    return None


def _holds(traced: Traced, name: str, shape: Sequence[int], size: int) -> bool:
    """Whether an output has `size` rows, on its declared batch axis, or on any axis if none is declared."""
    declared = next(value.shape for value in traced.function.graph.outputs if value.name == name)
    if declared and len(declared) == len(shape):
        axes = [axis for axis, dim in enumerate(declared) if dim in traced.layout.symbols]
        return all(shape[axis] == size for axis in axes) if axes else size in shape
    return size in shape


def _grew_from_one(traced: Traced, results: Mapping[str, Any], size: int) -> bool:
    """Whether one row gives `size` rows as well, because a constant of `size` rows is broadcast over it."""
    one = traced.at(1)
    return any(one[name].shape == result.shape and size in result.shape for name, result in results.items())


def _sizes_in(traced: Traced) -> Iterator[tuple[int, str]]:
    """Candidates for a baked batch size, each with the constant or output that holds it."""
    function = traced.function
    found: dict[int, str] = {}
    for name, array in {**function.constants, **function.params}.items():
        # The size may be a dimension of a constant (a zero state), or an entry (the shape of a Reshape).
        small = array.dtype.kind in "iu" and array.size <= 16
        for size in [*array.shape, *(map(int, array.ravel()) if small else ())]:
            found.setdefault(int(size), f"constant {name!r}")
    for value in function.graph.outputs:
        for dim in value.shape or ():
            if isinstance(dim, int):
                found.setdefault(dim, f"output {value.name!r}")
    possible = [(size, holder) for size, holder in found.items() if 1 < size <= _LARGEST_BAKED]
    yield from possible[:_MOST_TRIED]


def _at_only(traced: Traced, size: int, reason: str) -> BatchedFunction:
    """The function of exactly `size` rows."""
    results = traced.at(size)
    declared = {value.name: value.shape for value in traced.function.graph.outputs}
    rows, elements = {}, {}
    for name in traced.outputs:
        shape = results[name].shape
        axis = _axis_of(shape, size, declared[name], traced.layout.symbols)
        rows[name] = OutputRows(axis)
        elements[name] = tuple(dim for at, dim in enumerate(shape) if at != axis)
    inputs = {
        name: (traced.layout.axes[name], traced.layout.with_batch(name, 1)) for name in traced.layout.shapes
    }
    rule = BatchRule("axis", inputs, rows, reason, traced.layout.strength, size)
    return assemble(traced.function, rule, elements, results, traced.layout)


def _axis_of(
    shape: Sequence[int], size: int, declared: Sequence[Any] | None, symbols: Sequence[str]
) -> int | None:
    axes = [axis for axis, dim in enumerate(shape) if dim == size]
    if declared and len(declared) == len(shape):
        axes = [axis for axis in axes if declared[axis] in symbols] or axes
    return axes[0] if axes else None


def row_multiple(traced: Traced) -> int | None:
    """The number of which the batch size must be a multiple; None if no number that is tried makes it run."""
    for multiple in _MULTIPLES:
        try:
            first, second = (traced.at(multiple * size) for size in PROBE_SIZES)
        except LimitError:
            raise
        except LoweringError:
            continue
        if any(first[name].shape != second[name].shape for name in traced.outputs):
            return multiple
    return None


def in_multiples(traced: Traced, multiple: int) -> DimensionError:
    """The error for a file whose rows come in multiples, with the calls that can run it."""
    symbols = ", ".join(map(repr, traced.layout.symbols)) or "the batch"
    return DimensionError(
        f"the rows of this file come in multiples of {multiple}: it runs for {multiple} or {2 * multiple} "
        f"of {symbols}, but not for one. An inferer answers each agent alone, so it cannot serve this file. "
        "Use memojax.run or memojax.to_jax, which run it in the file layout, or batch_axis=False, which runs "
        "the whole file once for each agent"
    )
