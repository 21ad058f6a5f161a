"""Detect that this process was forked from one that had used memojax: XLA, without threads, would hang."""

from __future__ import annotations

import os

from ..errors import ForkError
from .cpu_client import client_exists

_forked = False


def was_forked() -> bool:
    """Whether this process is a fork of one that had used memojax, so it must not call XLA."""
    return _forked


def check_not_forked() -> None:
    """Check that this process can use XLA.

    Raises:
        ForkError: this process is a fork of one that had used memojax.
    """
    if _forked:
        raise ForkError()


def _after_fork() -> None:
    global _forked
    _forked = _forked or client_exists()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
