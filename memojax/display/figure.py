"""A matplotlib figure that notebooks show without pyplot, whose state and backend are the user's."""

from __future__ import annotations

import io
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as _cause:
    from ..errors import MissingPackageError

    raise MissingPackageError("matplotlib", "a plot", "plot") from _cause


class NotebookFigure(Figure):
    """A `Figure` that a notebook shows as the value of a cell."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def tidy(axes: Any) -> None:
    """Remove the box around the axes and add a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
