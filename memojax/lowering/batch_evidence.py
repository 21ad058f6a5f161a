"""Which axis holds the agents: what the caller says, what a dimension is called, and where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..errors import DimensionError
from ..model.dimension import Element, bound_shape, is_expression, size_of, symbols_of
from ..model.exporter_names import is_batch_dimension, is_made_up_dimension

BatchAxis: TypeAlias = "int | str | bool | Mapping[str, int | None] | None"
"""An axis for all inputs, the symbol of the batch, False (the file has no batch), or input -> axis."""

Strength: TypeAlias = Literal["said", "named", "leading", "unit", "absent"]
"""How the batch is known: the caller said it; it has a batch's name; a symbol leads the inputs and an output
carries it; the file is fixed to one row; the file has no batch at all."""


@dataclass(frozen=True)
class Layout:
    """Where each input keeps the batch, and what is open in the shape of one run.

    Attributes:
        axes: input -> batch axis in the file; None for an input without a batch.
        shapes: input -> declared shape of one run: the batch is 1, other symbols stay.
        strength: how the batch is known.
        symbols: what the file calls the batch, where it has a name for it.
        reason: the evidence, in a few words.
    """

    axes: Mapping[str, int | None]
    shapes: Mapping[str, tuple[Element, ...]]
    strength: Strength
    symbols: tuple[str, ...]
    reason: str

    @property
    def free(self) -> tuple[str, ...]:
        """Symbols that no option binds and that are not the batch, in the order of the inputs."""
        dims = (dim for shape in self.shapes.values() for dim in shape)
        return tuple(dict.fromkeys(symbol for dim in dims for symbol in symbols_of(dim)))

    @property
    def native(self) -> bool:
        """Whether the file itself may run a whole batch."""
        return self.strength in ("said", "named", "leading")

    def bound(self, sizes: Mapping[str, int]) -> Layout:
        """The same with a number for each free symbol."""
        return replace(self, shapes={name: bound_shape(shape, sizes) for name, shape in self.shapes.items()})

    def with_batch(self, name: str, n: int) -> tuple[int, ...]:
        """The shape of an input for `n` rows in the file's own layout, once it is bound."""
        shape = [n if axis == self.axes[name] else dim for axis, dim in enumerate(self.shapes[name])]
        return bound_shape(shape, {})


def find_layout(declared: Mapping[str, Sequence[Element]], batch_axis: BatchAxis = None) -> Layout:
    """The layout of inputs as declared; whether outputs carry a leading symbol is for the caller to see.

    Args:
        declared: input -> dimensions; a dimension without a name is called "input.axis".
        batch_axis: what the caller says.

    Raises:
        DimensionError: `batch_axis` does not fit the inputs, or symbols contradict each other.
    """
    if batch_axis is False:
        return _layout(declared, dict.fromkeys(declared), "absent", (), "batch_axis=False")
    if batch_axis is not None:
        axes, symbols = _said(declared, batch_axis)
        return _layout(declared, axes, "said", symbols, "batch_axis= says so")
    if named := _named(declared):
        axes = _axes_of(declared, named)
        return _layout(declared, axes, "named", _used(declared, axes), "the file's own batch axis")
    leading = _leading(declared)
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


def contradiction(declared: Mapping[str, Sequence[Element]], layout: Layout) -> str:
    """Why a symbol that only its place speaks for may be no batch; empty where nothing speaks against it."""
    for name, shape in declared.items():
        if layout.axes[name] is None and (others := [s for dim in shape for s in symbols_of(dim)]):
            return f"{layout.symbols[0]!r} leads an input, but input {name!r} has {others[0]!r} and not {layout.symbols[0]!r}"
    return ""


def ambiguous(declared: Mapping[str, Sequence[Element]], why: str) -> DimensionError:
    """The error for evidence that is not enough: every symbol with its places, and the calls that would
    settle it."""
    return DimensionError(f"the axis of the agents is not clear: {why}. {_settling(declared)}")


def settled_by(layout: Layout) -> str:
    """Every symbol of the inputs with its places, and the calls that would settle which is the batch."""
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
    calls = f"batch_axis={first!r} (that symbol counts the agents), batch_axis=False (the file runs once for each agent)"
    return f"Symbols: {listing}. Say it when loading: {calls}, and dims={{{first!r}: 16}} fixes a symbol"


def _named(declared: Mapping[str, Sequence[Element]]) -> list[str]:
    """The symbols that are the batch by name."""
    found: dict[str, bool] = {}
    for shape in declared.values():
        names = [
            (axis, dim) for axis, dim in enumerate(shape) if isinstance(dim, str) and not is_expression(dim)
        ]
        batch = [dim for axis, dim in names if is_batch_dimension(dim, axis == 0)]
        if batch:
            # One input has one batch: the plain word before other names, then what leads.
            best = min(
                batch,
                key=lambda dim: (dim.lower() not in ("batch", "batch_size"), "batch" not in dim.lower()),
            )
            found[best] = True
    return list(found)


def _leading(declared: Mapping[str, Sequence[Element]]) -> list[str]:
    leads = [shape[0] for shape in declared.values() if shape]
    return list(dict.fromkeys(dim for dim in leads if isinstance(dim, str) and not is_expression(dim)))


def _axes_of(declared: Mapping[str, Sequence[Element]], symbols: Sequence[str]) -> dict[str, int | None]:
    """The axis of each input that holds one of `symbols`, or its own made-up name for them."""
    axes: dict[str, int | None] = {}
    for name, shape in declared.items():
        held = [symbol for symbol in symbols if symbol in shape]
        axes[name] = list(shape).index(held[0]) if held else _own_axis(shape)
    return axes


def _own_axis(shape: Sequence[Element]) -> int | None:
    """Axis 0, or the only symbolic one, where its name is made up and may stand for the batch."""
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
    gone = dict.fromkeys(symbols, 1)

    def run_of(name: str, shape: Sequence[Element]) -> tuple[Element, ...]:
        one = [1 if axis == axes[name] else dim for axis, dim in enumerate(shape)]
        return tuple(_without_batch(dim, gone) for dim in one)

    return Layout(dict(axes), {n: run_of(n, s) for n, s in declared.items()}, strength, symbols, reason)


def _without_batch(dim: Element, batch: Mapping[str, int]) -> Element:
    """`dim` for one run; an expression of the batch alone is a number then."""
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
                f"batch_axis= names {unknown[0]!r}, which is no input; the inputs are {_list(declared)}"
            )
        given: dict[str, int | None] = dict(batch_axis)
    elif isinstance(batch_axis, int) and not isinstance(batch_axis, bool):
        given = dict.fromkeys(declared, batch_axis)
    else:
        raise DimensionError(
            f"batch_axis= takes an axis, a symbol, False, or input -> axis, got {batch_axis!r}"
        )
    for name, axis in given.items():
        if axis is None:
            continue
        rank = len(declared[name])
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise DimensionError(
                f"batch_axis {axis} is out of range for input {name!r} of shape {list(declared[name])}"
            )
        given[name] = axis % rank
    symbols = _used(declared, given)
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
