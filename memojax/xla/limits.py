"""Limits on model files: each with its default and the environment variable that raises it.

A policy is small, but a few bytes of a hostile file can ask for terabytes. Data that a file stores are not
limited here, only the data that it makes out of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, LimitError


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        what: the things that it counts, in the plural.
        default: the number that is allowed by default.
        variable: the environment variable with another number.
        rows: the batch size at which the limit has doubled, if it grows with the batch; otherwise 0.
    """

    what: str
    default: int
    variable: str
    rows: int = 0

    @property
    def allowed(self) -> int:
        """The number that is allowed now.

        Raises:
            InputError: the environment variable does not hold a whole number.
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise InputError(
                f"the environment variable {self.variable} is {text!r}, expected a whole number"
            ) from None

    def check(self, asked: int, where: str, allowed: int | None = None) -> None:
        """Check that `asked` is at most `allowed`, by default the limit.

        Raises:
            LimitError: it is more; the message names the limit, both numbers, and the variable.
        """
        allowed = self.allowed if allowed is None else allowed
        if asked > allowed:
            raise self.exceeded(asked, where, allowed)

    def exceeded(self, asked: int, where: str, allowed: int) -> LimitError:
        """The error for exceeding the limit."""
        return LimitError(self.message(asked, where, allowed))

    def message(self, asked: int, where: str, allowed: int, option: str = "") -> str:
        """The text of that error; `option` names an argument of the call that raises the limit too."""
        either = f"give a larger {option}=, or " if option else ""
        return (
            f"{where} asks for {_grouped(asked)} {self.what}, but {_grouped(allowed)} are allowed: if you "
            f"trust the file, {either}set the environment variable {self.variable} to a number above "
            f"{self.allowed:,}"
        )


NODES = Limit("nodes, with functions inlined", 250_000, "MEMOJAX_MAX_NODES")
NAMES = Limit(
    "characters in the names of nodes and values, with functions inlined",
    100_000_000,
    "MEMOJAX_MAX_NAME_CHARACTERS",
)
DEPTH = Limit("levels of nested subgraphs and functions", 64, "MEMOJAX_MAX_DEPTH")
ELEMENTS = Limit("elements in one value", 1 << 26, "MEMOJAX_MAX_ELEMENTS", 4)
FOLDED = Limit("bytes of values that are computed while tracing", 256 << 20, "MEMOJAX_MAX_FOLDED_BYTES", 64)
EMBEDDED = Limit("bytes of computed constants in one function", 128 << 20, "MEMOJAX_MAX_EMBEDDED_BYTES", 64)
STEPS = Limit("steps while tracing, with loops unrolled", 1 << 17, "MEMOJAX_MAX_TRACED_STEPS")
COMPILED = Limit("steps in one executable", 8192, "MEMOJAX_MAX_COMPILED_STEPS")
TRIPS = Limit("trips of loops", 1 << 18, "MEMOJAX_MAX_TRIP_COUNT")
BREAKS = Limit("graph breaks", 100, "MEMOJAX_MAX_GRAPH_BREAKS")
HOISTED = Limit("bytes of values made of weights alone", 256 << 20, "MEMOJAX_MAX_HOISTED_BYTES")
EXTERNAL = Limit(
    "bytes of external data beyond twice what its files store", 256 << 20, "MEMOJAX_MAX_EXTERNAL_BYTES"
)
MEMORY = Limit(
    "bytes for the working memory and the outputs of one run", 768 << 20, "MEMOJAX_MAX_RUN_BYTES", 4
)
PATTERN = Limit("steps of a regular expression", 1 << 22, "MEMOJAX_MAX_REGEX_STEPS")

ALL = (
    NODES,
    NAMES,
    DEPTH,
    ELEMENTS,
    FOLDED,
    EMBEDDED,
    STEPS,
    COMPILED,
    TRIPS,
    BREAKS,
    HOISTED,
    EXTERNAL,
    MEMORY,
    PATTERN,
)

_DRAW = 10
"""Steps of the smallest draw."""

rows: ContextVar[int] = ContextVar("memojax_rows", default=1)
"""The number of rows for which a function is traced: some limits grow with the batch."""


in_one_executable: ContextVar[bool] = ContextVar("memojax_in_one_executable", default=False)
"""Whether all that is traced becomes one executable."""


@contextlib.contextmanager
def for_one_executable() -> Iterator[None]:
    """Trace code for one executable, whose number of steps has a limit."""
    token = in_one_executable.set(True)
    try:
        yield
    finally:
        in_one_executable.reset(token)


@contextlib.contextmanager
def counting_rows(count: int) -> Iterator[None]:
    """Trace for `count` rows inside."""
    token = rows.set(count)
    try:
        yield
    finally:
        rows.reset(token)


def for_rows(limit: Limit) -> int:
    """The number that `limit` allows for the current rows.

    A value that is computed while tracing takes memory even if a batch size is only probed. So the limits on
    such values grow more slowly.
    """
    return limit.allowed + limit.allowed // limit.rows * rows.get()


@dataclass
class Budget:
    """The steps and bytes that one walk over a graph has used so far; its subgraphs share it."""

    nodes: int
    folded: int = 0
    embedded: dict[int, Any] = field(default_factory=dict)
    embedded_bytes: int = 0
    steps: int = 0
    traced: int = 0
    drawn: int = 0
    parts: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """Identity of an output of Concat -> (the output, the number of its parts)."""

    def __post_init__(self) -> None:
        self._folded, self._embedded = for_rows(FOLDED), for_rows(EMBEDDED)
        self._steps = STEPS.allowed + self.nodes * 8
        self._compiled = COMPILED.allowed if in_one_executable.get() else None

    def step(self, cost: int) -> None:
        """Count a node of this cost.

        Raises:
            LimitError: there are too many.
        """
        self.steps += cost
        if self.steps > self._steps:
            raise STEPS.exceeded(self.steps, "this graph", self._steps)

    def trace(self) -> None:
        """Note that a node is traced, which takes at least one step of the executable.

        Raises:
            LimitError: there are too many nodes for one executable.
        """
        self.traced += 1
        if self._compiled is not None and self.traced > self._compiled:
            raise COMPILED.exceeded(max(self.traced, self.nodes), "this graph", self._compiled)

    def draw(self) -> None:
        """Note that a node draws numbers; tracing a draw takes long, too.

        Raises:
            LimitError: there are more draws than any executable may hold.
        """
        self.drawn += 1
        COMPILED.check(self.drawn * _DRAW, "this graph")

    def fold(self, size: int) -> None:
        """Count `size` bytes that were computed while tracing.

        Raises:
            LimitError: there are too many.
        """
        self.folded += size
        if self.folded > self._folded:
            raise FOLDED.exceeded(self.folded, "folding constants", self._folded)

    def check_room(self, size: int) -> None:
        """Check that `size` more bytes may be computed.

        Raises:
            LimitError: they may not.
        """
        if self.folded + size > self._folded:
            raise FOLDED.exceeded(self.folded + size, "folding constants", self._folded)

    def embed(self, value: Any) -> None:
        """Count an array that becomes a constant of the function, once.

        Raises:
            LimitError: the constants are too large.
        """
        if id(value) in self.embedded:
            return
        self.embedded[id(value)] = value
        self.embedded_bytes += value.nbytes
        if self.embedded_bytes > self._embedded:
            raise EMBEDDED.exceeded(self.embedded_bytes, "folding constants", self._embedded)


def _grouped(count: int) -> str:
    """`count` with commas; a power of two if it has too many digits to read."""
    return f"{count:,}" if count < 1 << 80 else f"more than 2**{count.bit_length() - 1}"


def limit_variables() -> list[str]:
    """The environment variables of all limits."""
    return [limit.variable for limit in globals().values() if isinstance(limit, Limit)]
