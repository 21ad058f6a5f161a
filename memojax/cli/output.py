"""Output of commands: tables on stdout, errors on stderr, JSON on request."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import printable

_PIPE_WIDTH = 160
"""Columns if stdout is not a terminal, so tables in files are not squeezed."""

_LONGEST = 2000
"""Characters of one cell: a hostile file has names of megabytes."""


def console(stderr: bool = False) -> Console:
    """A console on the current stdout or stderr."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else max(_PIPE_WIDTH, shutil.get_terminal_size().columns)
    return Console(stderr=stderr, width=width, highlight=False)


def show(*items: Any) -> None:
    """Print tables and lines to stdout, a blank line between them."""
    out = console()
    with out.capture() as captured:
        for index, item in enumerate(items):
            if index:
                out.print()
            out.print(item, soft_wrap=isinstance(item, str))
    text = captured.get()
    sys.stdout.write(
        text if sys.stdout.isatty() else "".join(line.rstrip() + "\n" for line in text.splitlines())
    )
    sys.stdout.flush()


def show_error(failure: BaseException) -> None:
    """Print an error on stderr, with a red prefix."""
    text = (
        f"{failure.filename}: {failure.strerror}"
        if isinstance(failure, OSError) and failure.filename
        else str(failure)
    )
    console(stderr=True).print(f"[bold red]error:[/] {escape(printable(text))}", soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> Table:
    """A table whose first `left` columns are text, the others numbers."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        made.add_column(
            column, justify="left" if index < left else "right", overflow="fold", no_wrap=index >= left
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else escape(brief(str(cell))) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values without a frame."""
    made = Table.grid(padding=(0, 3))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(escape(brief(name)), escape(brief(value)))
    return made


def brief(text: str) -> str:
    """`text` as a terminal takes it: printable, and not longer than a screen."""
    shown = printable(text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def number(value: float | None, digits: int = 1) -> str:
    """`1,234.5`, or a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def write_json(target: str, data: Any) -> None:
    """Data as JSON into a file, or to stdout for "-"; NaN becomes null. What does something to a terminal is
    escaped."""
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if not text.replace("\n", "").isprintable():
        text = "".join(
            char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text
        )
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
