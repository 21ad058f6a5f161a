"""A matplotlib figure that notebooks show without pyplot, whose state and backend stay the user's own."""

from __future__ import annotations

import io
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as cause:
    from ..errors import MissingPackageError

    raise MissingPackageError("matplotlib", "a plot", "plot") from cause


class NotebookFigure(Figure):
    """A `Figure` that shows itself where it is the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def tidy(axes: Any) -> None:
    """Axes without a box, with a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
