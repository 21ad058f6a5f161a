"""How often loops whose end depends on data go round: counted where they run, so that none goes on for ever.

An XLA executable cannot be interrupted. A loop therefore stops at the limit, and so do all that come after
it; whoever traced the graph is told, and makes sure that nobody takes what comes out for an answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..xla.limits import TRIPS

_given: ContextVar[int | None] = ContextVar("memojax_trips", default=None)
_around: ContextVar[int] = ContextVar("memojax_trips_around", default=1)


@contextlib.contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Trace loops inside with another limit than the environment's."""
    token = _given.set(count)
    try:
        yield
    finally:
        _given.reset(token)


def most() -> int:
    """Trips that all loops of a run may take together."""
    given = _given.get()
    return min(TRIPS.allowed if given is None else given, np.iinfo(np.int32).max - 1)


class Trips:
    """The trips of one run so far: `used` is None where no loop was met, else a traced int32.

    It is set within the bodies of XLA's loops too, where it has to be carried like any other state.
    """

    def __init__(self) -> None:
        self.used: Any = None

    def start(self) -> Any:
        """The count to carry into a loop."""
        return jnp.zeros((), jnp.int32) if self.used is None else self.used

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """The count as it was, if what is traced inside fails: it may hold a tracer of a loop that is given
        up."""
        before = self.used
        try:
            yield
        except BaseException:
            self.used = before
            raise

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Count anew inside, and forget it: what is traced there is never run, or is counted by the
        caller."""
        before, self.used = self.used, None
        try:
            yield
        finally:
            self.used = before


@contextlib.contextmanager
def nested(trips: int) -> Iterator[None]:
    """Trace the body of a loop of so many trips, which is known beforehand.

    Raises:
        LimitError: the trips of loops in loops multiply to more than the limit.
    """
    count = _around.get() * max(trips, 1)
    TRIPS.check(count, "this loop", most())
    token = _around.set(count)
    try:
        yield
    finally:
        _around.reset(token)
