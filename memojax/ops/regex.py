"""Match regular expressions of untrusted files in bounded time.

With google-re2 installed (`pip install memojax[regex]`) every pattern runs in linear time. Python's `re`
backtracks, for some patterns without end. So without google-re2, a pattern runs only if the number of its
tries can be counted beforehand, and is small.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _constants, _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from ..errors import LoweringError, MissingPackageError
from ..xla.limits import PATTERN

_LONGEST = 10_000
"""Characters that a pattern may have; parsing takes more than linear time for some patterns."""

_MANY = 1 << 62
"""The number of tries at which counting stops."""


def full_match(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a whole text matches `pattern`.

    Raises:
        LoweringError: `pattern` is not a regular expression, or is too long.
        MissingPackageError: (from the function) Python's `re` could take too long for a text.
    """
    if len(pattern) > _LONGEST:
        raise LoweringError(
            f"a regular expression of {len(pattern):,} characters is too long: it may have {_LONGEST:,}"
        )
    re2 = _re2()
    if re2 is not None:
        options = re2.Options()
        options.log_errors = False
        try:
            compiled = re2.compile(pattern, options)
        except re2.error as cause:
            raise LoweringError(f"{pattern!r} is not a regular expression of RE2: {cause}") from cause
        return lambda text: compiled.fullmatch(text) is not None
    try:
        parsed, compiled = _parser.parse(pattern), re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as cause:
        raise LoweringError(f"{pattern!r} is not a regular expression: {cause}") from cause

    def match(text: str) -> bool:
        steps = tries(parsed, len(text)) * (len(text) + 1)
        if steps > PATTERN.allowed:
            raise MissingPackageError(
                "google-re2",
                f"the regular expression {pattern[:200]!r}, which could take very long,",
                "regex",
            )
        return compiled.fullmatch(text) is not None

    return match


def tries(parsed: Any, length: int) -> int:
    """An upper bound of the ways to match a parsed pattern against a text of `length` characters."""
    ways = 1
    for kind, argument in parsed:
        ways = min(ways * _tries_of(kind, argument, length), _MANY)
    return ways


def _tries_of(kind: Any, argument: Any, length: int) -> int:
    match kind:
        case _constants.LITERAL | _constants.NOT_LITERAL | _constants.ANY | _constants.IN | _constants.AT:
            return 1
        case _constants.SUBPATTERN:
            return tries(argument[-1], length)
        case _constants.BRANCH:
            return min(sum(tries(branch, length) for branch in argument[1]), _MANY)
        case _constants.MAX_REPEAT | _constants.MIN_REPEAT:
            least, most, inner = argument
            return _repeated(tries(inner, length), least, min(most, max(length, least)))
        case _:
            return _MANY  # lookarounds and back references, which RE2 does not have either


def _repeated(ways: int, least: int, most: int) -> int:
    """Ways to match between `least` and `most` repetitions of a part that has `ways`."""
    if ways == 1:
        return most - least + 1
    if most.bit_length() > 6 or ways.bit_length() * most > 62:
        return _MANY
    return sum(ways**count for count in range(least, most + 1))


def _re2() -> Any:
    try:
        import re2  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return re2
