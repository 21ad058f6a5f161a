"""Whether this process was forked from one that had used memojax: XLA's threads are not in it, and what needs them would hang."""

from __future__ import annotations

import os

from ..errors import ForkError
from .cpu_client import client_exists

_forked = False


def was_forked() -> bool:
    """Whether nothing can be lowered, compiled or run here."""
    return _forked


def check_not_forked() -> None:
    """See that XLA can be used here.

    Raises:
        ForkError: it cannot.
    """
    if _forked:
        raise ForkError()


def _after_fork() -> None:
    global _forked
    _forked = _forked or client_exists()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
