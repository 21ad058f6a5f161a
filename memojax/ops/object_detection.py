"""NonMaxSuppression and RoiAlign."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import inline as rolled
from ._common import cast, scalar
from .registry import op


@op("RoiAlign", since=10, until=16)
def roi_align_10(
    x,
    rois,
    batch_indices,
    *,
    mode="avg",
    output_height=1,
    output_width=1,
    sampling_ratio=0,
    spatial_scale=1.0,
):
    """Before opset 16 regions are not shifted by half a pixel.

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@op("RoiAlign", since=16)
def roi_align(
    x,
    rois,
    batch_indices,
    *,
    coordinate_transformation_mode="half_pixel",
    mode="avg",
    output_height=1,
    output_width=1,
    sampling_ratio=0,
    spatial_scale=1.0,
):
    """Mean or maximum of bilinear samples in each bin of each region `(x1, y1, x2, y2)`.

    As in ONNX Runtime, the maximum is over the four weighted neighbours of each sample, not over the samples.
    With `sampling_ratio` 0 the number of samples depends on the regions, and there is no reverse-mode
    gradient.

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    half_pixel = coordinate_transformation_mode == "half_pixel"
    corners = cast(rois, jnp.promote_types(x.dtype, np.float32)) * spatial_scale - (
        0.5 if half_pixel else 0.0
    )
    columns = _Axis(corners[:, 0], corners[:, 2], output_width, x.shape[3], sampling_ratio, half_pixel)
    rows = _Axis(corners[:, 1], corners[:, 3], output_height, x.shape[2], sampling_ratio, half_pixel)
    images = cast(jnp.take(x, batch_indices, axis=0, mode="clip"), corners.dtype)
    if mode == "avg":
        return cast(
            jnp.einsum("rph,rqw,rchw->rcpq", rows.mean_weights(), columns.mean_weights(), images), x.dtype
        )

    def larger(step: Any, y: Any) -> Any:
        row, column = rows.sample(step // columns.most), columns.sample(step % columns.most)
        best = jnp.full_like(y, -jnp.inf)
        for index_y, weight_y in row.neighbours:
            lines = jnp.take_along_axis(images, index_y[:, None, :, None], axis=2, mode="clip")
            for index_x, weight_x in column.neighbours:
                pixels = jnp.take_along_axis(lines, index_x[:, None, None, :], axis=3, mode="clip")
                best = jnp.maximum(best, pixels * (weight_y[:, :, None] * weight_x[:, None, :])[:, None])
        exists = row.exists[:, None, None, None] & column.exists[:, None, None, None]
        return jnp.where(exists, jnp.maximum(y, best), y)

    start = jnp.full((*images.shape[:2], output_height, output_width), -jnp.inf, corners.dtype)
    y = rolled.fori_loop(np.int32(0), rows.most * columns.most, larger, start)
    return cast(jnp.where(y == -jnp.inf, 0, y), x.dtype)


class _Sample(NamedTuple):
    """One sample of each bin along one axis of the image.

    Attributes:
        place: position in pixels, (regions, bins).
        inside: whether the position is in the image, (regions, bins).
        exists: whether the region has this sample, (regions).
        size: pixels of the axis.
    """

    place: jax.Array
    inside: jax.Array
    exists: jax.Array
    size: int

    @property
    def neighbours(self) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """The two pixels beside the sample, with their weights."""
        low = jnp.floor(self.place)
        index, share = cast(low, np.int32), self.place - low
        near, far = jnp.where(self.inside, 1 - share, 0), jnp.where(self.inside, share, 0)
        return (index, near), (jnp.minimum(index + 1, self.size - 1), far)

    def weights(self) -> jax.Array:
        """Weights of all pixels, (regions, bins, size)."""
        distance = jnp.abs(self.place[:, :, None] - cast(np.arange(self.size), self.place.dtype)[None, None])
        return jnp.where((self.inside & self.exists[:, None])[:, :, None], jnp.maximum(1 - distance, 0), 0)


class _Axis:
    """The bins of each region along one axis of the image."""

    def __init__(self, start: Any, end: Any, bins: int, size: int, sampling_ratio: int, half_pixel: bool):
        extent = end - start if half_pixel else jnp.maximum(end - start, 1)
        self.start, self.bin, self.bins, self.size = start, extent / bins, bins, size
        ceiling = cast(jnp.ceil(self.bin), np.int32)
        self.counts = jnp.full_like(ceiling, sampling_ratio) if sampling_ratio > 0 else ceiling
        self.most = np.int32(sampling_ratio) if sampling_ratio > 0 else jnp.max(ceiling, initial=0)

    def sample(self, index: Any) -> _Sample:
        step = (cast(index, self.bin.dtype) + 0.5) / cast(jnp.maximum(self.counts, 1), self.bin.dtype)
        bins = cast(np.arange(self.bins), self.bin.dtype)[None]
        place = self.start[:, None] + (bins + step[:, None]) * self.bin[:, None]
        inside = (place >= -1) & (place <= self.size)
        return _Sample(jnp.clip(place, 0, self.size - 1), inside, index < self.counts, self.size)

    def mean_weights(self) -> jax.Array:
        """Weight of each pixel of the axis in each bin's mean, (regions, bins, size)."""
        start = jnp.zeros((len(self.start), self.bins, self.size), self.bin.dtype)
        total = rolled.fori_loop(
            np.int32(0), self.most, lambda index, weights: weights + self.sample(index).weights(), start
        )
        return total / cast(jnp.maximum(self.counts, 1), total.dtype)[:, None, None]


@op(
    "NonMaxSuppression",
    since=10,
    host=("boxes", "scores", "max_output_boxes_per_class", "iou_threshold", "score_threshold"),
)
def non_max_suppression(
    boxes,
    scores,
    max_output_boxes_per_class=None,
    iou_threshold=None,
    score_threshold=None,
    *,
    center_point_box=0,
):
    """The best boxes of each class that do not overlap, as rows `(batch, class, box)`.

    The number of rows depends on the values, so this operator runs on the host.

    https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html
    """
    limit = 0 if max_output_boxes_per_class is None else scalar(max_output_boxes_per_class)
    overlap = 0.0 if iou_threshold is None else scalar(iou_threshold)
    low, high = _corners(boxes, bool(center_point_box))
    selected = []
    for batch, category in np.ndindex(*scores.shape[:2]):
        values, kept = scores[batch, category], []
        for box in np.argsort(-values, kind="stable"):
            if len(kept) >= limit:
                break
            if score_threshold is not None and not values[box] > scalar(score_threshold):
                break
            if not (_overlaps(low[batch], high[batch], box, kept) > overlap).any():
                kept.append(int(box))
        selected += [(batch, category, box) for box in kept]
    return np.array(selected, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    first, second = boxes[..., :2], boxes[..., 2:]
    if centered:
        return first - second / 2, first + second / 2
    return np.minimum(first, second), np.maximum(first, second)


def _overlaps(low: np.ndarray, high: np.ndarray, box: int, others: list[int]) -> np.ndarray:
    """Intersection over union of a box and each of `others`; 0 for boxes without area."""
    common = np.prod(
        np.maximum(np.minimum(high[box], high[others]) - np.maximum(low[box], low[others]), 0), axis=-1
    )
    areas = np.prod(high - low, axis=-1)
    union = areas[box] + areas[others] - common
    return np.where((areas[box] > 0) & (areas[others] > 0), common / np.where(union > 0, union, 1), 0)
