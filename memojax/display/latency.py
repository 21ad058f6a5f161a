"""Draw the measured time of a call over the batch size, with a histogram of the batch sizes of calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plans.recommend import interpolator
from .figure import NotebookFigure, tidy

_WIDE = 32
"""From this ratio of the largest to the smallest size on, the axis is logarithmic."""
_FEW = 16
"""Up to this many sizes, the lines of the histogram are thick."""


def draw_latency(
    times: Mapping[str, Mapping[int, float | None]], seen: Mapping[int, int], ax: Any = None
) -> Any:
    """Draw medians as a line, sizes without a time as hollow points on it, and the histogram behind them.

    Args:
        times: label -> batch size -> median time in microseconds, or None if it was not timed.
        seen: batch size -> number of batches.
        ax: axes to draw into; None makes a new figure.

    Returns:
        The matplotlib figure.
    """
    axes = NotebookFigure(figsize=(7, 4), layout="constrained").add_subplot() if ax is None else ax
    for index, (label, line) in enumerate(times.items()):
        _line(axes, line, f"C{index}", label)
    axes.set(xlabel="batch size", ylabel="median microseconds per call")
    axes.set_ylim(bottom=0)
    sizes = [size for line in times.values() for size in line] + list(seen)
    if sizes and max(sizes) >= _WIDE * min(sizes):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    if seen:
        _histogram(axes, seen)
    tidy(axes)
    if len(times) > 1 or any(time is None for line in times.values() for time in line.values()):
        axes.legend(frameon=False, loc="upper left")
    if not sizes:
        axes.text(
            0.5,
            0.5,
            "no plans yet: call the inferer, or preload sizes",
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    return axes.figure


def _line(axes: Any, times: Mapping[int, float | None], color: str, label: str) -> None:
    timed = {size: time for size, time in times.items() if time is not None}
    idle = [size for size in times if size not in timed]
    if timed:
        axes.plot(list(timed), list(timed.values()), "o-", ms=5, color=color, label=label, zorder=3)
    if idle:
        guess = interpolator(timed) if timed else lambda size: 0.0
        hollow = {"marker": "o", "ms": 5, "mfc": "none", "mec": color, "linestyle": "none", "zorder": 3}
        axes.plot(idle, [guess(size) for size in idle], **hollow, label=f"{label}, not measured yet")


def _histogram(axes: Any, seen: Mapping[int, int]) -> None:
    """Draw the histogram on a second axis behind the times, with lines of equal width on any axis."""
    behind = axes.twinx()
    behind.vlines(
        list(seen), 0, list(seen.values()), color="gray", alpha=0.35, linewidth=5 if len(seen) <= _FEW else 2
    )
    behind.set_ylim(bottom=0)
    behind.set_ylabel("batches seen", color="gray")
    behind.tick_params(axis="y", colors="gray")
    behind.spines["top"].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
