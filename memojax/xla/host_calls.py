"""Host callbacks of an executable: their exceptions reach the caller as they are, and not as XLA's text."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_MOST_KEPT = 64
_MARK = "memojax host failure"
_numbers = itertools.count()
_failures: OrderedDict[int, Exception] = OrderedDict()


def called_back(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for `jax.pure_callback`; its exceptions are kept for `failure_behind`."""

    def kept(*args: Any) -> Any:
        try:
            return call(*args)
        except Exception as cause:
            number = next(_numbers)
            _failures[number] = cause
            while len(_failures) > _MOST_KEPT:
                _failures.popitem(last=False)
            raise RuntimeError(f"{_MARK} {number}: {cause}") from cause

    return kept


def failure_behind(error: Exception) -> Exception:
    """The exception of the host callback behind `error`; `error` itself if no callback failed."""
    found = re.search(rf"{_MARK} (\d+)", str(error))
    return _failures.pop(int(found[1]), error) if found else error
