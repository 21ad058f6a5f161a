"""Symbolic dimensions: names, and expressions of names such as `past_seq + seq`."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import DimensionError

Element: TypeAlias = "int | str"
"""One dimension of an element shape: a number, a symbol, or an expression of symbols."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_LONGEST = 200
"""Characters of an expression; a longer dimension counts as one name."""


@functools.lru_cache(maxsize=1024)
def _parsed(dim: str) -> ast.expr | None:
    """The expression in `dim`; None if it is a plain name, however odd."""
    if len(dim) > _LONGEST:
        return None
    try:
        tree = ast.parse(dim.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if not isinstance(tree, ast.Name) and _is_arithmetic(tree) else None


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATORS and _is_arithmetic(node.left) and _is_arithmetic(node.right)
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return isinstance(node, ast.Name)


def fits_declared(shape: Sequence[int], declared: Sequence[Element | None]) -> bool:
    """Whether an array's shape has the declared rank and sizes.

    A symbol fits any size; so does 0, which some exporters write for a size that they do not know.
    """
    return len(shape) == len(declared) and all(
        not isinstance(want, int) or want <= 0 or want == got for want, got in zip(declared, shape)
    )


def is_expression(dim: Element | None) -> bool:
    """Whether `dim` is computed from symbols, as in `past_seq + seq`."""
    return isinstance(dim, str) and _parsed(dim) is not None


def symbols_of(dim: Element | None) -> tuple[str, ...]:
    """The symbols in `dim`, each once, in order."""
    if not isinstance(dim, str):
        return ()
    tree = _parsed(dim)
    if tree is None:
        return (dim,)
    return tuple(dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)))


def size_of(dim: Element, sizes: Mapping[str, int]) -> int:
    """The size of `dim` if its symbols have `sizes`.

    Raises:
        DimensionError: a symbol has no size, or the expression divides by zero.
    """
    if isinstance(dim, int):
        return dim
    tree = _parsed(dim)
    try:
        return sizes[dim] if tree is None else _value(tree, sizes)
    except KeyError as cause:
        raise DimensionError(f"dimension {dim!r} needs a size for {cause.args[0]!r}") from cause
    except ZeroDivisionError as cause:
        raise DimensionError(f"dimension {dim!r} divides by zero for {dict(sizes)}") from cause


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.Name):
        return sizes[node.id]
    return node.value  # pyright: ignore[reportAttributeAccessIssue]


def solve(
    places: Iterable[tuple[str, Element, int]], error: Callable[[str], Exception] = DimensionError
) -> dict[str, int]:
    """Sizes of symbols, from `places`: (name of the place for errors, declared dimension, given size).

    Raises:
        error: two places contradict each other, or an expression leaves a symbol without a size.
    """
    sizes: dict[str, int] = {}
    # Plain symbols come first: they give the sizes that expressions need.
    origin: dict[str, str] = {}
    expressions = []
    for what, dim, given in places:
        if isinstance(dim, int):
            if dim != given:
                raise error(f"{what} is {given}, the model takes {dim}")
        elif _parsed(dim) is not None:
            expressions.append((what, dim, given))
        elif sizes.setdefault(dim, given) != given:
            raise error(f"{what} is {given}, but {dim!r} is {sizes[dim]} by {origin[dim]}")
        else:
            origin.setdefault(dim, what)
    for what, dim, given in expressions:
        unknown = [name for name in symbols_of(dim) if name not in sizes]
        if len(unknown) == 1:
            sizes[unknown[0]] = _solved(dim, unknown[0], given, sizes, what, error)
            origin[unknown[0]] = what
        elif unknown:
            raise error(
                f"{what} is declared as {dim!r}, which does not tell the sizes of "
                f"{', '.join(map(repr, unknown))}: give them with dims="
            )
        elif (wanted := size_of(dim, sizes)) != given:
            known = ", ".join(f"{name}={sizes[name]}" for name in symbols_of(dim))
            raise error(f"{what} is {given}, but {dim!r} is {wanted} for {known}")
    return sizes


def _solved(
    dim: str, name: str, given: int, sizes: Mapping[str, int], what: str, error: Callable[[str], Exception]
) -> int:
    """The size of the one unknown symbol of an expression that is linear in it."""
    at_zero, at_one = (size_of(dim, {**sizes, name: size}) for size in (0, 1))
    slope = at_one - at_zero
    size = (given - at_zero) // slope if slope else -1
    if size < 0 or size_of(dim, {**sizes, name: size}) != given:
        raise error(f"{what} is {given}, but {dim!r} is not {given} for any size of {name!r}")
    return size


def is_fixed(shape: Sequence[Any]) -> bool:
    """Whether every dimension of `shape` is a number."""
    return not any(isinstance(dim, str) for dim in shape)


def bound_shape(shape: Sequence[Element], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """`shape` with numbers in place of symbols.

    Raises:
        DimensionError: a symbol has no size.
    """
    return tuple(size_of(dim, sizes) for dim in shape)
