"""What exporters call a piece of hidden state where it comes in, and where it goes out."""

from __future__ import annotations

import re
from collections.abc import Iterator

EQUAL = (("(.*)", r"\1"),)
COMMON = (
    (r"(.+[\W_])in(s?)", r"\1out\2"),
    (r"in(s?[\W_].+)", r"out\1"),
    (r"(.+[\W_])in(s?[\W_].+)", r"\1out\2"),
    (r"(.*)", r"\1_out"),
    (r"(.*)", r"next_\1"),
    (r"(.*)", r"new_\1"),
    (r"(.*)0", r"\1n"),
    (r"(state)", r"\1N"),
)
TENSORFLOW = ((r"(.*)input(.+)", r"\1output\2"), (r"(.+)input(.*)", r"\1output\2"))
"""What an input's name becomes in the name of the output that continues it."""


def continuations(name: str, rules: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Names of outputs that may continue the input `name`, by `rules`."""
    for pattern, output in rules:
        if match := re.fullmatch(pattern, name):
            yield match.expand(output)


def continues(name: str, output: str) -> bool:
    """Whether an output's name says that it is the next value of the input `name`."""
    return any(output in continuations(name, rules) for rules in (EQUAL, COMMON, TENSORFLOW))
