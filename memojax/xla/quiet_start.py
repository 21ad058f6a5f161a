"""Let Ctrl-C end the process at once and without a traceback while the command line is imported."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from pathlib import PurePath


def _is_command_line() -> bool:
    """Whether this process was started as `memojax` or as `python -m memojax`."""
    (program, *_) = getattr(sys, "argv", None) or [""]
    if program == "-m":  # Python's placeholder while it imports the package of the module
        given = sys.orig_argv
        return "memojax" in (after for dash, after in itertools.pairwise(given) if dash == "-m")
    return PurePath(program).stem == "memojax"


def _hush() -> bool:
    """Give SIGINT its default effect, and return whether that was done."""
    if threading.current_thread() is not threading.main_thread() or not _is_command_line():
        return False
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def restore() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again."""
    if hushed:
        signal.signal(signal.SIGINT, signal.default_int_handler)


hushed: bool = _hush()
