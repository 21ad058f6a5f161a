"""A progress bar with the running mean, in a terminal or a notebook."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

Report = Callable[[int, float, float, int], None]
"""Episodes done, mean return, its standard error, size of the last batch."""


@contextlib.contextmanager
def progress_bar(name: str, episodes: int) -> Iterator[Report]:
    """A bar on stderr that goes away when it is full; nothing where stderr is neither a terminal nor a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .result import plus_minus

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter))
    with bar:
        task = bar.add_task(name, total=episodes, note="")

        def report(done: int, mean: float, error: float, size: int) -> None:
            running = "" if math.isnan(mean) else f"return {plus_minus(mean, error)}  "
            bar.update(task, completed=done, note=f"{running}batch {size}")

        yield report
