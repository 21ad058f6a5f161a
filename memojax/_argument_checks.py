"""Check names, kinds and sizes of arguments before work begins; an error names the nearest right one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from .errors import MemojaxError, OptionError

P = ParamSpec("P")
R = TypeVar("R")


def named_options(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with an `OptionError` for an unknown keyword that names the nearest known one."""
    parameters = inspect.signature(function).parameters
    known = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = frozenset(known)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not names.issuperset(kwargs):
            unknown = next(name for name in kwargs if name not in names)
            raise OptionError(
                unknown_option(function.__qualname__, unknown, [n for n in known if n not in ("self", "cls")])
            )
        return function(*args, **kwargs)

    return checked


def unknown_option(what: str, name: str, known: Iterable[str]) -> str:
    """The message for an option that does not exist."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 2, 0.8) or difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? It" if near else "it"
    return f"{what.removesuffix('.__init__')} has no option {name!r}: {hint} takes {', '.join(known)}"


def one_of(name: str, given: Any, allowed: Iterable[Any]) -> None:
    """Check that an option is one of the allowed words.

    Raises:
        OptionError: it is not; the message names the nearest one.
    """
    allowed = list(allowed)
    if given in allowed:
        return
    near = difflib.get_close_matches(str(given), [str(one) for one in allowed], 1, 0.5)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{name}= takes {', '.join(map(repr, allowed))}, not {given!r}{hint}")


def of_kind(name: str, given: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Check that an option has the right type; a boolean does not count as a number.

    Raises:
        OptionError: it has another type.
    """
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(given, allowed) or (isinstance(given, bool) and bool not in allowed):
        raise OptionError(f"{name}= takes {wanted}, not {given!r}")


def as_count(what: str, given: Any, error: type[MemojaxError], least: int = 1) -> int:
    """`given` as an int; a boolean does not count as a number.

    Raises:
        MemojaxError: `given` is not a whole number, or is below `least`; the class is `error`.
    """
    if isinstance(given, bool) or not hasattr(given, "__index__") or (number := given.__index__()) < least:
        wanted = "a positive whole number" if least == 1 else f"a whole number, {least} or more"
        raise error(f"{what} is {wanted}, got {given!r}")
    return number
