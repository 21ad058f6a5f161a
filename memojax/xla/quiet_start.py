"""Ctrl-C while the command line is imported ends the process at once and without a traceback, as it ends
programs in C."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from pathlib import PurePath


def _is_command_line() -> bool:
    """Whether this process was started as `memojax` or as `python -m memojax`."""
    (program, *_) = getattr(sys, "argv", None) or [""]
    if program == "-m":  # what it is while the module's package is imported
        given = sys.orig_argv
        return "memojax" in (after for dash, after in itertools.pairwise(given) if dash == "-m")
    return PurePath(program).stem == "memojax"


def _hush() -> bool:
    """Give SIGINT its default effect; whether that was done."""
    if threading.current_thread() is not threading.main_thread() or not _is_command_line():
        return False
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def restore() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt` again."""
    if hushed:
        signal.signal(signal.SIGINT, signal.default_int_handler)


hushed: bool = _hush()
