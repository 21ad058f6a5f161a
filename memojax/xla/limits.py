"""How much a model file may ask for: each limit, its default, and the environment variable that raises it.

A policy is small, a hostile file asks for terabytes in a few bytes. What a file brings along byte by byte is
not limited here; what it makes out of little is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, LimitError


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        what: what is counted, in the plural.
        default: how many are allowed where the environment does not say otherwise.
        variable: the environment variable that does.
        rows: for how many rows of a batch the limit is doubled, where it grows with the batch.
    """

    what: str
    default: int
    variable: str
    rows: int = 0

    @property
    def allowed(self) -> int:
        """How many are allowed now.

        Raises:
            InputError: the environment variable holds no whole number.
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise InputError(f"{self.variable}={text!r} in the environment is not a whole number") from None

    def check(self, asked: int, where: str, allowed: int | None = None) -> None:
        """See that `asked` is allowed; `allowed` if it is not simply the limit.

        Raises:
            LimitError: it is not; the message names the limit, what was asked, and the variable.
        """
        allowed = self.allowed if allowed is None else allowed
        if asked > allowed:
            raise self.exceeded(asked, where, allowed)

    def exceeded(self, asked: int, where: str, allowed: int) -> LimitError:
        """The error that says so."""
        return LimitError(
            f"{where} asks for {_grouped(asked)} {self.what}, and {_grouped(allowed)} are allowed: "
            f"if the file is to be trusted, set {self.variable} in the environment to a number above "
            f"{self.default:,}"
        )


NODES = Limit("nodes, after functions are written out", 250_000, "MEMOJAX_MAX_NODES")
DEPTH = Limit("levels of subgraphs and functions in each other", 64, "MEMOJAX_MAX_DEPTH")
ELEMENTS = Limit("elements in one value", 1 << 26, "MEMOJAX_MAX_ELEMENTS", 4)
FOLDED = Limit("bytes of values that are computed while tracing", 256 << 20, "MEMOJAX_MAX_FOLDED_BYTES", 64)
EMBEDDED = Limit("bytes of computed constants in one function", 128 << 20, "MEMOJAX_MAX_EMBEDDED_BYTES", 64)
STEPS = Limit("steps while tracing, of loops that are written out", 1 << 17, "MEMOJAX_MAX_TRACED_STEPS")
CHAIN = Limit("nodes in a row without a product or a loop", 4096, "MEMOJAX_MAX_CHAIN")
TRIPS = Limit("trips of a loop whose end depends on data", 1 << 18, "MEMOJAX_MAX_TRIP_COUNT")
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
    DEPTH,
    ELEMENTS,
    FOLDED,
    EMBEDDED,
    STEPS,
    CHAIN,
    TRIPS,
    BREAKS,
    HOISTED,
    EXTERNAL,
    MEMORY,
    PATTERN,
)

rows: ContextVar[int] = ContextVar("memojax_rows", default=1)
"""How many rows the function is traced for: what grows with the batch is allowed to."""


in_one_piece: ContextVar[bool] = ContextVar("memojax_in_one_piece", default=False)
"""Whether XLA compiles as a whole what is traced; plans are cut where a chain is long."""


@contextlib.contextmanager
def compiled_in_one_piece() -> Iterator[None]:
    """Trace inside what is not cut, and whose chains therefore have a limit."""
    token = in_one_piece.set(True)
    try:
        yield
    finally:
        in_one_piece.reset(token)


@contextlib.contextmanager
def counting_rows(count: int) -> Iterator[None]:
    """Trace for `count` rows inside."""
    token = rows.set(count)
    try:
        yield
    finally:
        rows.reset(token)


def for_rows(limit: Limit) -> int:
    """What `limit` allows for what may grow with the batch.

    A value that is computed while tracing takes memory even where a batch size is only probed, so that it
    grows more slowly.
    """
    return limit.allowed + limit.allowed // limit.rows * rows.get()


@dataclass
class Budget:
    """What tracing a graph once has used up; one for each walk, handed on to subgraphs."""

    nodes: int
    folded: int = 0
    embedded: dict[int, Any] = field(default_factory=dict)
    embedded_bytes: int = 0
    steps: int = 0
    chains: dict[str, int] = field(default_factory=dict)
    """By name: after how many nodes in a row without a product or a loop a value comes."""
    parts: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """By identity: a value that Concat made, and of how many parts."""

    def __post_init__(self) -> None:
        self._folded, self._embedded = for_rows(FOLDED), for_rows(EMBEDDED)
        self._steps = STEPS.allowed + self.nodes * 8
        self._chain = CHAIN.allowed if in_one_piece.get() else None

    def step(self, cost: int) -> None:
        """A node is run; one that is traced costs eight times one that is computed."""
        self.steps += cost
        if self.steps > self._steps:
            raise STEPS.exceeded(self.steps, "this graph", self._steps)

    def follow(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """A node that is traced comes after those that make its inputs: XLA's time grows with the square of
        the length of such a chain, and its stack with the length."""
        if self._chain is None:
            return
        length = 1 + max((self.chains.get(name, 0) for name in inputs), default=0)
        if length > self._chain:
            raise CHAIN.exceeded(length, "this graph", self._chain)
        self.chains.update(dict.fromkeys(outputs, length))

    def fold(self, size: int) -> None:
        """`size` bytes are computed while tracing."""
        self.folded += size
        if self.folded > self._folded:
            raise FOLDED.exceeded(self.folded, "folding constants", self._folded)

    def check_room(self, size: int) -> None:
        """See that `size` more bytes could be computed."""
        if self.folded + size > self._folded:
            raise FOLDED.exceeded(self.folded + size, "folding constants", self._folded)

    def embed(self, value: Any) -> None:
        """An array becomes a constant of the function, if it is none already."""
        if id(value) in self.embedded:
            return
        self.embedded[id(value)] = value
        self.embedded_bytes += value.nbytes
        if self.embedded_bytes > self._embedded:
            raise EMBEDDED.exceeded(self.embedded_bytes, "folding constants", self._embedded)


def _grouped(count: int) -> str:
    """`count` with commas, or by its size where it has too many digits to read."""
    return f"{count:,}" if count < 1 << 80 else f"more than 2**{count.bit_length() - 1}"
