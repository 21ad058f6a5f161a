"""Whether an inferer is being unpickled: it then remembers its sizes instead of compiling them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_under_way: ContextVar[bool] = ContextVar("memojax_revival", default=False)


@contextlib.contextmanager
def revival() -> Iterator[None]:
    """A block in which new inferers defer their compiles and skip checks that ran before the pickling."""
    token = _under_way.set(True)
    try:
        yield
    finally:
        _under_way.reset(token)


def is_revived() -> bool:
    """Whether this thread is inside `revival`."""
    return _under_way.get()
