"""The windows of a convolution as runs of adjacent floats, in which the kernel reads them in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .values import Refused


@dataclass(frozen=True)
class Windows:
    """The windows of a convolution over height and width; over one dimension, the height is 1.

    Attributes:
        groups: groups of channels.
        depth: channels that a group reads.
        columns: channels that a group makes.
        size: height and width of a window.
        strides: lines and pixels from window to window.
        dilation: lines and pixels from entry to entry of a window.
    """

    groups: int
    depth: int
    columns: int
    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, weights: Sequence[int], params: dict[str, Any]) -> Windows:
        """The windows of a convolution with weights of this shape and with JAX's `params`.

        Raises:
            Refused: the kernel has no such convolution, or XLA's is faster.
        """
        spatial = len(weights) - 2
        if spatial not in (1, 2) or params["batch_group_count"] != 1:
            raise Refused("a convolution of another kind")
        out, depth, *window = params["dimension_numbers"][1]
        groups = params["feature_group_count"]
        columns = weights[out] // groups
        if groups > 1 and columns < 8 and (columns, weights[depth]) != (1, 1):
            raise Refused("a convolution of few channels for each group")

        def two(sizes: Sequence[int]) -> tuple[int, int]:
            return (1, sizes[0]) if spatial == 1 else (sizes[0], sizes[1])

        size = two([weights[i] for i in window])
        strides, dilation = two(params["window_strides"]), two(params["rhs_dilation"])
        return cls(groups, weights[depth], columns, size, strides, dilation)

    @property
    def apart(self) -> bool:
        """Whether each channel has a window of its own."""
        return self.groups > 1 and self.depth == 1 and self.columns == 1

    @property
    def floats(self) -> int:
        """Floats of a window in one group."""
        return self.size[0] * self.size[1] * self.depth

    def runs(self, channel: int, line: int, pixel: int) -> tuple[bool, int, Sequence[tuple[int, int]]]:
        """How a window lies in memory: whether channels are innermost, the floats of a run, and its runs.

        Runs are pairs of a number and a step, the outermost first. The weights are packed in the same order.

        Args:
            channel: floats from a channel to the next.
            line: floats from a line of the image to the next.
            pixel: floats from a pixel of a line to the next.
        """
        (height, width), (down, right) = self.size, self.dilation
        lines, channels = (height, down * line), (self.depth, channel)
        if self.depth == 1 or channel == 1:
            # Channels innermost: a window's line is one run, if nothing lies between its pixels.
            if width == 1 or (right == 1 and pixel == self.depth):
                return True, width * self.depth, (lines,)
            return True, self.depth, (lines, (width, right * pixel))
        if right == 1 and pixel in (0, 1):
            # Pixels innermost: each channel's line of the window is a run.
            return False, width, (channels, lines)
        # Gaps between the pixels: each float of the window is a run of its own.
        return False, 1, (channels, lines, (width, right * pixel))
