"""Lists of batch sizes as they are written on a command line: `1-8,16`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

MAX_SIZES = 4096
"""Upper limit of a list; a longer one counts as a typing error."""


def parse_sizes(text: str) -> list[int]:
    """Parse numbers and ranges `first-last` or `first-last:step` into sizes, in order, without repeats.

    >>> parse_sizes("1-4,16")
    [1, 2, 3, 4, 16]
    >>> parse_sizes("8-32:8")
    [8, 16, 24, 32]

    Raises:
        ValueError: a part is malformed; the message names it.
    """
    sizes: list[int] = []
    for part in text.replace(" ", "").split(","):
        if not part:
            raise ValueError(f"{text!r} has an empty part: write sizes as 1-8,16")
        bounds, _, step = part.partition(":")
        first, dash, last = bounds.partition("-")
        numbers = [first, *([last] if dash else []), *([step] if ":" in part else [])]
        if not all(number.isascii() and number.isdigit() for number in numbers) or (":" in part and not dash):
            raise ValueError(f"{part!r} is neither a size (16) nor a range (1-8, or 8-64:8)")
        low, high, stride = int(first), int(last) if dash else int(first), int(step) if step else 1
        if low < 1 or stride < 1:
            raise ValueError(f"{part!r}: sizes and steps start at 1")
        if high < low:
            raise ValueError(f"{part!r} runs backwards: write {high}-{low}")
        if len(sizes) + (high - low) // stride >= MAX_SIZES:
            raise ValueError(
                f"{text!r} holds more than {MAX_SIZES} sizes: give a step, as in "
                f"1-{high}:{max(1, high // 64)}"
            )
        sizes.extend(range(low, high + 1, stride))
    return list(dict.fromkeys(sizes))


class SizeList(click.ParamType):
    """An option that takes a list of sizes."""

    name = "sizes"

    def convert(
        self, value: str | Sequence[int], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if not isinstance(value, str):
            return list(value)
        try:
            return parse_sizes(value)
        except ValueError as cause:
            self.fail(str(cause), param, ctx)


class BucketingRule(SizeList):
    """An option that takes "exact", "pow2" or a list of sizes."""

    name = "bucketing"

    def convert(
        self, value: str | Sequence[int], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        return value if value in ("exact", "pow2") else super().convert(value, param, ctx)


SIZES = SizeList()
BUCKETING = BucketingRule()
