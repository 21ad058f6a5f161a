"""Count the trips of loops whose end depends on data, so no loop runs for ever.

An XLA executable cannot be interrupted. So a loop stops at the limit, and so do all later loops. The code
that traced the graph then learns of it, and marks the outputs as invalid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import TripCountError
from ..xla.limits import TRIPS

OPTION = "max_trip_count"
"""The argument of `memojax.run` and `OneShot` that sets the limit."""

_has_option: ContextVar[bool] = ContextVar("memojax_has_max_trip_count", default=False)
_given: ContextVar[int | None] = ContextVar("memojax_trips", default=None)
_around: ContextVar[int] = ContextVar("memojax_trips_around", default=1)


@contextlib.contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Trace the loops inside for a call with `max_trip_count=count`; None leaves the environment's limit."""
    token, has = _given.set(count), _has_option.set(True)
    try:
        yield
    finally:
        _has_option.reset(has)
        _given.reset(token)


def most() -> int:
    """Trips that all loops of a run may take together."""
    given = _given.get()
    return min(TRIPS.allowed if given is None else given, np.iinfo(np.int32).max - 1)


def check(trips: int) -> None:
    """Check that a loop may take so many trips.

    Raises:
        TripCountError: it may not; the message names `max_trip_count=` if the call has it.
    """
    allowed = most()
    if trips > allowed:
        option = OPTION if _has_option.get() else ""
        raise TripCountError(TRIPS.message(trips, "this loop", allowed, option))


class Trips:
    """The trips of one run so far: `used` is None before the first loop, and then a traced int32.

    Bodies of XLA's loops set it too, so a loop must carry it like any other state.
    """

    def __init__(self) -> None:
        self.used: Any = None

    def start(self) -> Any:
        """The count to carry into a loop."""
        return jnp.zeros((), jnp.int32) if self.used is None else self.used

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the count if the trace inside fails: it may hold a tracer of a loop that is given up."""
        before = self.used
        try:
            yield
        except BaseException:
            self.used = before
            raise

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Count anew inside, and forget that count: the trace there never runs, or the caller counts it."""
        before, self.used = self.used, None
        try:
            yield
        finally:
            self.used = before


@contextlib.contextmanager
def nested(trips: int) -> Iterator[None]:
    """Trace the body of a loop whose number of trips is known, and therefore no matter of `max_trip_count`
    if that is below the environment's limit.

    Raises:
        TripCountError: the trips of nested loops multiply to more than the limit.
    """
    count = _around.get() * max(trips, 1)
    if count > TRIPS.allowed:
        check(count)
    token = _around.set(count)
    try:
        yield
    finally:
        _around.reset(token)
