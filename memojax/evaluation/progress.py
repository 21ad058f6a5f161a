"""A progress bar with the running mean, in a terminal or a notebook."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from ..plans.progress import progress_bar as bar_of
from .statistics import plus_minus

Report = Callable[[int, float, float, int], None]
"""Episodes done, mean return, its standard error, size of the last batch."""


@contextlib.contextmanager
def progress_bar(name: str, episodes: int) -> Iterator[Report]:
    """A bar on stderr that goes away when full, or below a notebook's cell; nothing if stderr is a file."""
    with bar_of(name, episodes, transient=True) as show:

        def report(done: int, mean: float, error: float, size: int) -> None:
            running = "" if math.isnan(mean) else f"return {plus_minus(mean, error)}  "
            show(done, f"{running}batch {size}")

        yield report
