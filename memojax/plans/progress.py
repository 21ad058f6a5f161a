"""Progress bars: rich's on a terminal, HTML in a notebook, none elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

Report = Callable[[int, str], None]
"""Called with the number of finished steps and a note to show beside it."""

_SECONDS_BETWEEN = 0.1


@contextlib.contextmanager
def progress_bar(name: str, total: int, *, transient: bool = False) -> Iterator[Report]:
    """A bar of `total` steps, on stderr or below the notebook's cell.

    With `transient`, a full bar on a terminal goes away.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        bar = _NotebookBar(name, total)
        try:
            yield bar.report
        finally:
            bar.show()
    elif console.is_terminal:
        with _terminal_bar(console, name, total, transient) as report:
            yield report
    else:
        yield _silent


def _silent(done: int, note: str) -> None:
    pass


@contextlib.contextmanager
def _terminal_bar(console: Any, name: str, total: int, transient: bool) -> Iterator[Report]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = (TimeRemainingColumn(),) if transient else (TimeElapsedColumn(),)
    texts = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*texts, *times, console=console, transient=transient) as bar:
        task = bar.add_task(name, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


class _NotebookBar:
    """A `<progress>` element; rich's bar needs ipywidgets, and is lost in a saved notebook."""

    def __init__(self, name: str, total: int):
        from IPython.display import display

        self._name, self._total = name, total
        self._done, self._note = 0, ""
        self._started = self._shown = time.monotonic()
        self._handle: Any = display(self._bundle(), raw=True, display_id=True)

    def report(self, done: int, note: str) -> None:
        """Record the state, and show it unless that happened a moment ago."""
        self._done, self._note = done, note
        if time.monotonic() - self._shown >= _SECONDS_BETWEEN:
            self.show()

    def show(self) -> None:
        """Show the present state."""
        self._shown = time.monotonic()
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        seconds = time.monotonic() - self._started
        text = f"{self._name} {self._done}/{self._total} {self._note} {seconds:.1f} s".replace("  ", " ")
        bar = f'<progress value="{self._done}" max="{max(self._total, 1)}"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {escape(text)}</div>"}
