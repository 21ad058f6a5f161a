"""Windows of convolutions and pools, with pads resolved from `auto_pad` and `ceil_mode`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax

from ..._types import Shape

Ints = Sequence[int] | None
"""An attribute with integers that may be absent."""

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """The spatial geometry of one node; every field has one entry for each spatial axis.

    Attributes:
        spatial: lengths of the input.
        kernel: lengths of the kernel.
        strides: strides.
        dilations: dilations.
        declared: pads (before, after) of the node.
        pads: pads that give exactly the output; with `ceil_mode` the last window may reach beyond the
            declared ones.
    """

    spatial: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    declared: Pads
    pads: Pads

    @property
    def output(self) -> Shape:
        sizes = zip(self.spatial, self.pads, extents(self.kernel, self.dilations), self.strides, strict=True)
        return tuple((size + sum(pads) - extent) // stride + 1 for size, pads, extent, stride in sizes)

    def counts(self, include_pads: bool) -> np.ndarray:
        """Number of elements in each window, shape `output`; declared pads count only with `include_pads`."""
        total = np.ones((), np.int64)
        for axis, size in enumerate(self.spatial):
            before, after = self.declared[axis]
            starts = np.arange(self.output[axis])[:, None] * self.strides[axis] - before
            taps = starts + np.arange(self.kernel[axis]) * self.dilations[axis]
            low, high = (-before, size + after) if include_pads else (0, size)
            total = total[..., None] * ((taps >= low) & (taps < high)).sum(1)
        return total


def window(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Window:
    """The window of a node, from the attributes that Conv and the pools share.

    Raises:
        ValueError: an attribute has the wrong length, `auto_pad` is unknown, or the kernel is larger than the
            padded input.
    """
    rank = len(spatial)
    strides, dilations = per_axis("strides", strides, rank), per_axis("dilations", dilations, rank)
    if len(kernel) != rank:
        raise ValueError(
            f"kernel_shape {list(kernel)} has {len(kernel)} entries, expected one for each of {rank} spatial "
            "axes"
        )
    reach = extents(kernel, dilations)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(spatial, reach, strides, strict=True)
        totals = (
            max(0, (math.ceil(size / stride) - 1) * stride + extent - size) for size, extent, stride in sizes
        )
        declared = tuple(split(total, auto_pad) for total in totals)
    else:
        declared = explicit_pads(pads, auto_pad, rank)
    final = declared
    if ceil_mode:
        sizes = zip(spatial, declared, reach, strides, strict=True)
        final = tuple(
            (before, _after(size, before, after, extent, stride))
            for size, (before, after), extent, stride in sizes
        )
    result = Window(tuple(spatial), tuple(kernel), strides, dilations, declared, final)
    if min(result.output, default=1) < 1:
        raise ValueError(
            f"a window of {list(reach)} does not fit into spatial shape {list(spatial)} with pads "
            f"{list(declared)}"
        )
    return result


def taps(x: Any, frame: Window, fill: Any) -> Iterator[jax.Array]:
    """For each position in the kernel, the elements of `x` (N x C x ...) under it; pads hold `fill`."""
    padding = [(0, 0, 0), (0, 0, 0), *((*pads, 0) for pads in frame.pads)]
    padded = lax.pad(x, np.asarray(fill, x.dtype), padding)
    for place in np.ndindex(*frame.kernel):
        starts = [index * dilation for index, dilation in zip(place, frame.dilations, strict=True)]
        sizes = zip(starts, frame.output, frame.strides, strict=True)
        limits = [start + (size - 1) * stride + 1 for start, size, stride in sizes]
        yield lax.slice(padded, (0, 0, *starts), (*x.shape[:2], *limits), (1, 1, *frame.strides))


def extents(kernel: Sequence[int], dilations: Sequence[int]) -> Shape:
    """Sizes of dilated kernels."""
    return tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))


def split(total: int, auto_pad: str) -> tuple[int, int]:
    """Divide a padding over both ends; the odd element goes to the end for SAME_UPPER, else to the start."""
    smaller = total // 2
    return (smaller, total - smaller) if auto_pad == "SAME_UPPER" else (total - smaller, smaller)


def explicit_pads(pads: Ints, auto_pad: str, rank: int) -> Pads:
    """ONNX's `pads` (all starts, then all ends) as pairs; zeros for VALID.

    Raises:
        ValueError: `pads` has the wrong length, or `auto_pad` is unknown.
    """
    if auto_pad not in ("NOTSET", "VALID", ""):
        raise ValueError(f"auto_pad is {auto_pad!r}, expected NOTSET, SAME_UPPER, SAME_LOWER or VALID")
    if not pads or auto_pad == "VALID":
        return ((0, 0),) * rank
    if len(pads) != 2 * rank:
        raise ValueError(
            f"pads {list(pads)} has {len(pads)} entries, expected two for each of {rank} spatial axes"
        )
    return tuple(zip(pads[:rank], pads[rank:], strict=True))


def per_axis(name: str, values: Ints, rank: int, default: int = 1) -> Shape:
    """An attribute with one entry for each spatial axis; `default` everywhere if it is absent.

    Raises:
        ValueError: the attribute has the wrong length.
    """
    if not values:
        return (default,) * rank
    if len(values) != rank:
        raise ValueError(
            f"{name} {list(values)} has {len(values)} entries, expected one for each of {rank} spatial axes"
        )
    return tuple(values)


def _after(size: int, before: int, after: int, extent: int, stride: int) -> int:
    count = -(-(size + before + after - extent) // stride) + 1
    if (count - 1) * stride >= size + before:  # the last window would hold nothing but padding
        count -= 1
    return (count - 1) * stride + extent - size - before
