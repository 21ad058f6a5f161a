"""Find the axis that holds the agents: the caller's option, else a dimension's name, else its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from ..errors import DimensionError
from ..model.dimension import Element, bound_shape, is_expression, size_of, symbols_of
from ..model.exporter_names import is_batch_dimension, is_made_up_dimension

BatchAxis: TypeAlias = "int | str | bool | Mapping[str, int | None] | None"
"""An axis for all inputs, the symbol of the batch, False (the file has no batch), or input -> axis."""

Strength: TypeAlias = Literal["said", "named", "leading", "unit", "absent"]
"""The evidence for the batch, strongest first.

said: the caller gave `batch_axis`; named: a dimension is called like a batch; leading: a symbol leads the
inputs, and an output has it as well; unit: the file is fixed to one row; absent: the file has no batch.
"""


@dataclass(frozen=True)
class Layout:
    """The batch axis of each input, and the shape of one run, which may have free symbols.

    Attributes:
        axes: input -> batch axis in the file; None for an input without a batch.
        shapes: input -> declared shape of one run: the batch is 1, other symbols stay.
        strength: how the batch is known.
        symbols: the file's names for the batch, if it has any.
        reason: the evidence, in a few words.
    """

    axes: Mapping[str, int | None]
    shapes: Mapping[str, tuple[Element, ...]]
    strength: Strength
    symbols: tuple[str, ...]
    reason: str

    @property
    def free(self) -> tuple[str, ...]:
        """Symbols other than the batch that no option binds, in the order of the inputs."""
        dims = (dim for shape in self.shapes.values() for dim in shape)
        return tuple(dict.fromkeys(symbol for dim in dims for symbol in symbols_of(dim)))

    @property
    def native(self) -> bool:
        """Whether the file itself may run a whole batch."""
        return self.strength in ("said", "named", "leading")

    def bound(self, sizes: Mapping[str, int]) -> Layout:
        """This layout with a number for each free symbol."""
        return replace(self, shapes={name: bound_shape(shape, sizes) for name, shape in self.shapes.items()})

    def with_batch(self, name: str, n: int) -> tuple[int, ...]:
        """The shape of an input for `n` rows in the file layout, once no symbol is free."""
        shape = [n if axis == self.axes[name] else dim for axis, dim in enumerate(self.shapes[name])]
        return bound_shape(shape, {})


def find_layout(declared: Mapping[str, Sequence[Element]], batch_axis: BatchAxis = None) -> Layout:
    """The layout of the declared inputs; for a leading symbol, the caller must check that an output has it.

    Args:
        declared: input -> dimensions; a dimension without a name is called "input.axis".
        batch_axis: the option of this name, see `BatchAxis`.

    Raises:
        DimensionError: `batch_axis` does not fit the inputs, or symbols contradict each other.
    """
    if batch_axis is False:
        return _layout(declared, dict.fromkeys(declared), "absent", (), "batch_axis=False")
    # The order of the checks is the order of trust, see `Strength`.
    if batch_axis is not None:
        axes, symbols = _said(declared, batch_axis)
        return _layout(declared, axes, "said", symbols, "batch_axis= says so")
    if named := _named(declared):
        axes = _axes_of(declared, named)
        return _layout(declared, axes, "named", _used(declared, axes), "the file's own batch axis")
    leading = _leading(declared)
    # Some exporters number each input's batch anew: made-up names that differ may be one batch.
    if leading and (len(leading) == 1 or all(map(is_made_up_dimension, leading))):
        axes = _axes_of(declared, leading)
        return _layout(declared, axes, "leading", _used(declared, axes), "the file's own batch axis")
    if leading:
        raise ambiguous(declared, f"{', '.join(map(repr, leading))} each lead an input")
    return without_batch(declared)


def without_batch(declared: Mapping[str, Sequence[Element]]) -> Layout:
    """The layout of a file that runs one agent at a time: its batch is 1, or absent."""
    axes = {name: _unit_axis(shape) for name, shape in declared.items()}
    if any(axis is not None for axis in axes.values()):
        return _layout(declared, axes, "unit", (), "the batch is fixed in the file")
    return _layout(declared, axes, "absent", (), "the file has no batch")


def contradiction(
    declared: Mapping[str, Sequence[Element]], layout: Layout, outputs: Mapping[str, Sequence[Any]]
) -> str:
    """The evidence against a batch of strength "leading"; empty if there is none.

    Args:
        declared: input -> dimensions.
        layout: the layout with this batch.
        outputs: output -> declared dimensions, empty if there are none.
    """
    for name, shape in declared.items():
        if layout.axes[name] is None and (others := [s for dim in shape for s in symbols_of(dim)]):
            leading = layout.symbols[0]
            return f"{leading!r} leads an input, but input {name!r} has {others[0]!r} and not {leading!r}"
    # Neither says much alone: a state may be `[1, batch, H]`, and all agents may share a bias `[1, D]`.
    single = next((n for n, s in declared.items() if s and s[0] == 1 and layout.axes[n] is None), None)
    behind = [n for n, s in outputs.items() if s and s[0] == 1 and set(layout.symbols) & set(s[1:])]
    leads = any(s and s[0] in layout.symbols for s in outputs.values())
    if single is not None and behind and not leads:
        leading = layout.symbols[0]
        return f"{leading!r} leads an input, but input {single!r} and output {behind[0]!r} have one row"
    return ""


def by_count(layout: Layout) -> bool:
    """Whether the batch is named by a letter or a count alone: N points of one agent have the same name."""
    return layout.strength == "named" and not any("batch" in symbol.lower() for symbol in layout.symbols)


def ambiguous(declared: Mapping[str, Sequence[Element]], why: str) -> DimensionError:
    """The error for too little evidence: all symbols with their places, and the calls that settle it."""
    return DimensionError(f"the axis of the agents is not clear: {why}. {_settling(declared)}")


def settled_by(layout: Layout) -> str:
    """All symbols of the inputs with their places, and the calls that settle which one is the batch."""
    batch = layout.symbols[0] if layout.symbols else "n"
    return _settling(
        {
            n: [batch if at == layout.axes[n] else dim for at, dim in enumerate(s)]
            for n, s in layout.shapes.items()
        }
    )


def _settling(declared: Mapping[str, Sequence[Element]]) -> str:
    places: dict[str, list[str]] = {}
    for name, shape in declared.items():
        for axis, dim in enumerate(shape):
            for symbol in symbols_of(dim):
                places.setdefault(symbol, []).append(f"axis {axis} of input {name!r} {list(shape)}")
    listing = "; ".join(f"{symbol!r}: {', '.join(where)}" for symbol, where in places.items())
    first = next(iter(places), "")
    axes = {
        name: next((axis for axis, dim in enumerate(shape) if symbols_of(dim)), None)
        for name, shape in declared.items()
    }
    each = f"batch_axis={axes} (an axis of each input, None for a shared one), " if len(places) > 1 else ""
    return (
        f"Symbols: {listing}. Say it when loading: batch_axis={first!r} (that symbol counts the agents), "
        f"{each}batch_axis=False (the file runs once for each agent), and dims={{{first!r}: 16}} fixes a "
        "symbol"
    )


def _named(declared: Mapping[str, Sequence[Element]]) -> list[str]:
    """The symbols that are the batch by name."""
    found: dict[str, bool] = {}
    for shape in declared.values():
        names = [
            (axis, dim) for axis, dim in enumerate(shape) if isinstance(dim, str) and not is_expression(dim)
        ]
        batch = [dim for axis, dim in names if is_batch_dimension(dim, axis == 0)]
        if batch:
            # An input has one batch: "batch" itself wins over the leading name, which wins over other names.
            best = min(
                batch,
                key=lambda dim: (
                    dim.lower() not in ("batch", "batch_size"),
                    dim != shape[0],
                    "batch" not in dim.lower(),
                ),
            )
            found[best] = True
    return list(found)


def _leading(declared: Mapping[str, Sequence[Element]]) -> list[str]:
    leads = [shape[0] for shape in declared.values() if shape]
    return list(dict.fromkeys(dim for dim in leads if isinstance(dim, str) and not is_expression(dim)))


def _axes_of(declared: Mapping[str, Sequence[Element]], symbols: Sequence[str]) -> dict[str, int | None]:
    """The axis of each input that has one of `symbols`, or a made-up name that may stand for them."""
    axes: dict[str, int | None] = {}
    for name, shape in declared.items():
        held = [symbol for symbol in symbols if symbol in shape]
        axes[name] = list(shape).index(held[0]) if held else _own_axis(shape)
    return axes


def _own_axis(shape: Sequence[Element]) -> int | None:
    """Axis 0 or the only symbolic axis, if its name is made up and so may stand for the batch."""
    symbolic = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
    if not symbolic or (symbolic[0] != 0 and len(symbolic) > 1):
        return None
    return symbolic[0] if is_made_up_dimension(str(shape[symbolic[0]])) else None


def _used(declared: Mapping[str, Sequence[Element]], axes: Mapping[str, int | None]) -> tuple[str, ...]:
    found = (declared[name][axis] for name, axis in axes.items() if axis is not None)
    return tuple(dict.fromkeys(dim for dim in found if isinstance(dim, str)))


def _unit_axis(shape: Sequence[Element]) -> int | None:
    return next((axis for axis, dim in enumerate(shape) if dim == 1), None)


def _layout(
    declared: Mapping[str, Sequence[Element]],
    axes: Mapping[str, int | None],
    strength: Strength,
    symbols: tuple[str, ...],
    reason: str,
) -> Layout:
    # The batch may also be part of an expression on another axis, as in `batch * heads`.
    gone = dict.fromkeys(symbols, 1)

    def run_of(name: str, shape: Sequence[Element]) -> tuple[Element, ...]:
        one = [1 if axis == axes[name] else dim for axis, dim in enumerate(shape)]
        return tuple(_without_batch(dim, gone) for dim in one)

    return Layout(dict(axes), {n: run_of(n, s) for n, s in declared.items()}, strength, symbols, reason)


def _without_batch(dim: Element, batch: Mapping[str, int]) -> Element:
    """`dim` for one run; an expression of the batch alone becomes a number."""
    used = symbols_of(dim)
    return size_of(dim, batch) if used and set(used) <= batch.keys() else dim


def _said(
    declared: Mapping[str, Sequence[Element]], batch_axis: int | str | Mapping[str, int | None]
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    if isinstance(batch_axis, str):
        if not any(batch_axis in shape for shape in declared.values()):
            known = dict.fromkeys(s for shape in declared.values() for dim in shape for s in symbols_of(dim))
            raise DimensionError(
                f"batch_axis= names {batch_axis!r}, which no input declares; the symbols are "
                f"{_list(known) or 'none'}"
            )
        axes = {n: list(s).index(batch_axis) if batch_axis in s else None for n, s in declared.items()}
        return axes, (batch_axis,)
    if isinstance(batch_axis, Mapping):
        if unknown := [name for name in batch_axis if name not in declared]:
            raise DimensionError(
                f"batch_axis= names {unknown[0]!r}, which is not an input; the inputs are {_list(declared)}"
            )
        given: dict[str, int | None] = dict(batch_axis)
    elif isinstance(batch_axis, int) and not isinstance(batch_axis, bool):
        given = dict.fromkeys(declared, batch_axis)
    else:
        raise DimensionError(
            f"batch_axis= takes an axis, a symbol, False, or a mapping of inputs to axes, got {batch_axis!r}"
        )
    for name, axis in given.items():
        if axis is None:
            continue
        rank = len(declared[name])
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise DimensionError(
                f"batch_axis={axis!r} is out of range for input {name!r} of shape {list(declared[name])}: "
                f"give an axis from {-rank} to {rank - 1}, or None if all agents share this input"
            )
        given[name] = axis % rank
    symbols = _used(declared, given)
    # Inputs that the option leaves out follow its symbols; without a symbol, the file is asked.
    others = {name: shape for name, shape in declared.items() if name not in given}
    if not symbols and others:
        found = find_layout(others)
        return {**found.axes, **given}, found.symbols
    rest = {
        n: list(s).index(held[0]) if (held := [d for d in symbols if d in s]) else None
        for n, s in others.items()
    }
    return {**rest, **given}, symbols


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
