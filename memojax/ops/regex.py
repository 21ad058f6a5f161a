"""Match regular expressions of untrusted files in bounded time.

ONNX's patterns have RE2's syntax. With google-re2 installed (`pip install memojax[regex]`) every pattern runs
in linear time. Python's `re` backtracks, for some patterns without end, and reads some syntax otherwise. So
without google-re2, a pattern runs only if both read it alike. The number of its tries must be small, and
countable beforehand.
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
        return _linear(re2, pattern)
    if any(sign in pattern for sign in _READ_OTHERWISE):
        return lambda text: _refuse(pattern, "which only RE2 reads as ONNX does,")
    try:
        parsed, compiled = _parser.parse(pattern, re.ASCII), re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError) as cause:
        raise LoweringError(f"{pattern!r} is not a regular expression: {cause}") from cause
    strange, ends = _is_read_otherwise(parsed), (_constants.AT, _constants.AT_END) in _flat(parsed)
    folds = bool(parsed.state.flags & re.IGNORECASE)

    def match(text: str) -> bool:
        # In Python alone, `\s` has the vertical tab, and `$` comes before a last newline. In RE2 alone, case
        # folds beyond ASCII.
        if (
            strange
            or "\v" in text
            or (ends and "\n" in text)
            or (folds and not (pattern.isascii() and text.isascii()))
        ):
            _refuse(pattern, "which only RE2 reads as ONNX does,")
        if tries(parsed, len(text)) * (len(text) + 1) > PATTERN.allowed:
            _refuse(pattern, "which could take very long,")
        return compiled.fullmatch(text) is not None

    return match


_READ_OTHERWISE = ("[:", "[[", "--", "&&", "~~", "||", "{,", "(?#")
"""Signs that may mean other things in Python than in RE2."""


def _linear(re2: Any, pattern: str) -> Callable[[str], bool]:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as cause:
        why = cause.args[0].decode(errors="replace") if isinstance(cause, re2.error) else "it is not UTF-8"
        raise LoweringError(f"{pattern!r} is not a regular expression of RE2: {why}") from cause

    def match(text: str) -> bool:
        try:
            return compiled.fullmatch(text) is not None
        except UnicodeEncodeError:  # RE2 matches no byte that is not UTF-8.
            return False

    return match


def _refuse(pattern: str, why: str) -> bool:
    raise MissingPackageError("google-re2", f"the regular expression {pattern[:200]!r}, {why}", "regex")


def _is_read_otherwise(parsed: Any) -> bool:
    """Whether a pattern has flags or places that RE2 does not have, or has otherwise."""
    if parsed.state.flags & ~(re.ASCII | re.IGNORECASE | re.DOTALL):
        return True
    return any(
        (kind is _constants.SUBPATTERN and (argument[1] or argument[2]))
        or (kind is _constants.AT and argument is _constants.AT_END_STRING)
        for kind, argument in _flat(parsed)
    )


def _flat(parsed: Any) -> list[tuple[Any, Any]]:
    """All parts of a parsed pattern, also those of its groups, branches and repetitions."""
    found: list[tuple[Any, Any]] = []
    for kind, argument in parsed:
        found.append((kind, argument))
        match kind:
            case _constants.SUBPATTERN | _constants.MAX_REPEAT | _constants.MIN_REPEAT:
                found += _flat(argument[-1])
            case _constants.BRANCH:
                found += [part for branch in argument[1] for part in _flat(branch)]
    return found


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
