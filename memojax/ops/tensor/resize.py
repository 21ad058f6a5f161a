"""Pad, CenterCropPad, Resize, Upsample, AffineGrid and GridSample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._types import GraphValue, Shape
from .._common import cast, checked_shape, ints, is_static, normalize_axes, nx, traced
from ..registry import op
from .index import take_ranges, take_static


@op("Pad", since=2, until=11)
def pad_attribute(
    data: GraphValue, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0
) -> GraphValue:
    """Before opset 11 pads and value are attributes. https://onnx.ai/onnx/operators/onnx__Pad.html"""
    return _pad(data, pads, np.array(value, data.dtype), tuple(range(data.ndim)), mode)


@op("Pad", since=11, static=("pads", "axes"))
def pad(
    data: GraphValue,
    pads: GraphValue,
    constant_value: GraphValue = None,
    axes: GraphValue = None,
    *,
    mode: str = "constant",
) -> GraphValue:
    """Pad the input; a negative pad crops. https://onnx.ai/onnx/operators/onnx__Pad.html"""
    fill = np.zeros((), data.dtype) if constant_value is None else constant_value.reshape(())
    return _pad(data, ints(pads), fill, range(data.ndim) if axes is None else ints(axes), mode)


def _pad(data: GraphValue, pads: Shape, fill: GraphValue, axes: Any, mode: str) -> GraphValue:
    axes = normalize_axes(axes, data.ndim)
    if len(pads) != 2 * len(axes):
        raise ValueError(f"pads has {len(pads)} entries, expected two for each of {len(axes)} axes")
    widths = [(0, 0)] * data.ndim
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        widths[axis] = (before, after)
    checked_shape(
        [dim + max(low, 0) + max(high, 0) for dim, (low, high) in zip(data.shape, widths, strict=True)],
        2 * data.dtype.itemsize if is_static(data, fill) else 0,
    )
    if mode == "constant" and not is_static(data, fill):
        return lax.pad(traced(data), traced(fill), [(low, high, 0) for low, high in widths])
    kept = [
        range(max(-low, 0), dim - max(-high, 0)) for dim, (low, high) in zip(data.shape, widths, strict=True)
    ]
    data = (
        data[tuple(slice(part.start, part.stop) for part in kept)]
        if is_static(data)
        else take_ranges(data, kept)
    )
    widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    return (
        nx.pad(data, widths, constant_values=fill) if mode == "constant" else nx.pad(data, widths, mode=mode)
    )


@op("CenterCropPad", since=18, static=("shape",))
def center_crop_pad(
    input_data: GraphValue, shape: GraphValue, *, axes: tuple[int, ...] | None = None
) -> GraphValue:
    """Crop to the centre of the input, or pad it with zeros on both sides.

    https://onnx.ai/onnx/operators/onnx__CenterCropPad.html
    """
    axes = normalize_axes(range(input_data.ndim) if axes is None else axes, input_data.ndim)
    extra = [size - input_data.shape[axis] for size, axis in zip(ints(shape), axes, strict=True)]
    # Rounded towards zero: of an odd crop or pad, the larger part is at the end.
    before = [int(width / 2) for width in extra]
    after = [width - low for width, low in zip(extra, before, strict=True)]
    return _pad(input_data, (*before, *after), np.zeros((), input_data.dtype), axes, "constant")


@op("Upsample", until=7)
def upsample_first_version(
    x: GraphValue, *, height_scale: float, width_scale: float, mode: str = "nearest"
) -> GraphValue:
    """Before opset 7 the scales are two attributes. https://onnx.ai/onnx/operators/onnx__Upsample.html"""
    return upsample_attribute(x, scales=(1.0, 1.0, height_scale, width_scale), mode=mode)


@op("Upsample", since=7, until=9)
def upsample_attribute(x: GraphValue, *, scales: tuple[float, ...], mode: str = "nearest") -> GraphValue:
    """Before opset 9 the scales are an attribute. https://onnx.ai/onnx/operators/onnx__Upsample.html"""
    return resize_first_version(x, np.array(scales, np.float32), mode=mode)


@op("Upsample", since=9, until=10, static=("scales",))
@op("Resize", since=10, until=11, static=("scales",))
def resize_first_version(x: GraphValue, scales: GraphValue, *, mode: str = "nearest") -> GraphValue:
    """Before opset 11 coordinates are `x / scale`, and nearest means floor, or ceil where the image shrinks.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    y = _promoted(x, mode)
    for axis, scale in enumerate(scales.tolist()):
        kernel = _Kernel(mode, -0.75, "floor" if scale >= 1 else "ceil", "asymmetric", False, False)
        y = _resize_axis(y, axis, _scaled(x.shape[axis], scale), scale, kernel, (0.0, 1.0), 0.0)
    return _rounded(y, x.dtype)


@op("Resize", since=11, static=("roi", "scales", "sizes"))
def resize(
    x: GraphValue,
    roi: GraphValue = None,
    scales: GraphValue = None,
    sizes: GraphValue = None,
    *,
    mode: str = "nearest",
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    nearest_mode: str = "round_prefer_floor",
) -> GraphValue:
    """Interpolate along one axis after the other. https://onnx.ai/onnx/operators/onnx__Resize.html

    ONNX Runtime differs from ONNX's cases for `align_corners` with a fractional output length, and for `roi`
    on an axis that keeps its length. Here the results are those of the cases.
    """
    axes = normalize_axes(range(x.ndim) if axes is None else axes, x.ndim)
    lengths = [x.shape[axis] for axis in axes]
    if scales is not None and scales.size:
        factors = scales.tolist()
        targets = [_scaled(length, factor) for length, factor in zip(lengths, factors, strict=True)]
    else:
        targets = list(ints(sizes))
        factors = [target / length for target, length in zip(targets, lengths, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            factors = [min(factors) if keep_aspect_ratio_policy == "not_larger" else max(factors)] * len(axes)
            targets = [
                math.floor(factor * length + 0.5) for length, factor in zip(lengths, factors, strict=True)
            ]
    kernel = _Kernel(
        mode,
        cubic_coeff_a,
        nearest_mode,
        coordinate_transformation_mode,
        bool(antialias),
        bool(exclude_outside),
    )
    is_crop = coordinate_transformation_mode == "tf_crop_and_resize"
    regions = np.reshape(roi, (2, -1)).T.tolist() if is_crop else [(0.0, 1.0)] * len(axes)
    checked_shape([*(length for axis, length in enumerate(x.shape) if axis not in axes), *targets])
    y = _promoted(x, mode)
    for axis, target, factor, region in zip(axes, targets, factors, regions, strict=True):
        y = _resize_axis(y, axis, target, factor, kernel, region, extrapolation_value)
    return _rounded(y, x.dtype)


def _promoted(x: GraphValue, mode: str) -> jax.Array:
    return (
        traced(x) if mode == "nearest" or x.dtype in (np.float32, np.float64) else cast(traced(x), np.float32)
    )


def _rounded(y: jax.Array, dtype: np.dtype) -> jax.Array:
    if y.dtype == dtype or jnp.issubdtype(dtype, jnp.floating):
        return cast(y, dtype)
    # The cast truncates, as ONNX Runtime does.
    return cast(jnp.clip(y, float(jnp.iinfo(dtype).min), float(jnp.iinfo(dtype).max)), dtype)


def _scaled(length: int, scale: float) -> int:
    return int(np.float32(length) * np.float32(scale))


@dataclass(frozen=True)
class _Kernel:
    mode: str
    cubic_a: float
    rounding: str
    transform: str
    antialias: bool
    exclude_outside: bool


def _resize_axis(
    x: jax.Array,
    axis: int,
    target: int,
    scale: float,
    kernel: _Kernel,
    region: Sequence[float],
    outside: float,
) -> jax.Array:
    length = x.shape[axis]
    if target == length and scale == 1 and tuple(region) == (0.0, 1.0):
        return x
    position = _source_positions(kernel.transform, length, target, scale, region)
    if kernel.mode == "nearest":
        result = _take_repeated(
            x, np.clip(_ROUNDINGS[kernel.rounding](position), 0, length - 1).astype(np.int64), axis
        )
    else:
        result = _interpolate(x, axis, *_taps(kernel, position, scale, length))
    if kernel.transform == "tf_crop_and_resize":
        beyond = ((position < 0) | (position > length - 1)).reshape(
            [-1 if i == axis else 1 for i in range(x.ndim)]
        )
        result = jnp.where(beyond, np.array(outside, x.dtype), result) if beyond.any() else result
    return result


_ROUNDINGS = {
    "round_prefer_floor": lambda position: np.ceil(position - 0.5),
    "round_prefer_ceil": lambda position: np.floor(position + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _source_positions(
    transform: str, length: int, target: int, scale: float, region: Sequence[float]
) -> np.ndarray:
    """Position in the input of each output element.

    Each step rounds to float32, as in ONNX Runtime, so ties fall the same way.
    """
    one, half = np.float32(1), np.float32(0.5)
    i, n, m, s = (
        np.arange(target, dtype=np.float32),
        np.float32(length),
        np.float32(target),
        np.float32(scale),
    )
    match transform:
        case "half_pixel":
            position = (i + half) / s - half
        case "half_pixel_symmetric":
            offset = n * half * (one - m / (s * n))
            position = (np.float64(offset) + (i + half) / np.float64(s) - half).astype(np.float32)
        case "pytorch_half_pixel":
            position = (i + half) / s - half if target > 1 else i
        case "tf_half_pixel_for_nn":
            position = (i + half) / s
        case "asymmetric":
            position = i / s
        case "align_corners":
            # ONNX's cases use the output length before rounding; ONNX Runtime uses the rounded one.
            position = i * (n - one) / (s * n - one) if target > 1 else i
        case "tf_crop_and_resize":
            start, end = np.float32(region[0]), np.float32(region[1])
            position = (
                start * (n - one) + i * (end - start) * (n - one) / (m - one)
                if target > 1
                else half * (start + end) * (n - one) + i
            )
        case _:
            raise ValueError(f"coordinate_transformation_mode {transform!r} is not one that ONNX defines")
    return position.astype(np.float64)


def _taps(kernel: _Kernel, position: np.ndarray, scale: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the input elements behind each output element, and their weights: both (target, taps)."""
    stretch = min(scale, 1.0) if kernel.antialias else 1.0
    support = (1 if kernel.mode == "linear" else 2) / stretch
    first = np.floor(position - support) + 1
    index = first[:, None] + np.arange(math.ceil(2 * support))
    distance = np.abs(index - position[:, None]) * stretch
    weight = np.maximum(1 - distance, 0) if kernel.mode == "linear" else _cubic(distance, kernel.cubic_a, np)
    if kernel.exclude_outside:
        weight = np.where((index < 0) | (index >= length), 0, weight)
    if kernel.exclude_outside or kernel.antialias:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, length - 1).astype(np.int64), weight


def _cubic(distance: Any, a: float, xp: Any) -> Any:
    """Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return xp.where(distance <= 1, near, xp.where(distance < 2, far, 0))


def _interpolate(x: jax.Array, axis: int, index: np.ndarray, weight: np.ndarray) -> jax.Array:
    weight, length, taps = weight.astype(x.dtype), x.shape[axis], index.shape[1]
    # Measured on XLA:CPU: up to this length a product with a dense matrix is faster than gathers.
    if length <= 16 * taps:
        matrix = np.zeros((len(index), length), x.dtype)
        np.add.at(matrix, (np.arange(len(index))[:, None], index), weight)
        return jnp.moveaxis(
            lax.dot_general(x, matrix, (((axis,), (1,)), ((), ())), precision="highest"), -1, axis
        )
    column = [-1 if i == axis else 1 for i in range(x.ndim)]
    return sum(
        (take_static(x, index[:, k], axis) * weight[:, k].reshape(column) for k in range(taps)),
        start=jnp.zeros((), x.dtype),
    )


def _take_repeated(x: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
    times, left = divmod(len(index), x.shape[axis])
    if times > 1 and not left and np.array_equal(index, np.repeat(np.arange(x.shape[axis]), times)):
        return jnp.repeat(x, times, axis=axis)
    return take_static(x, index, axis)


@op("AffineGrid", since=20, static=("size",))
def affine_grid(theta: GraphValue, size: GraphValue, *, align_corners: int = 0) -> GraphValue:
    """The sampling positions of affine maps, for GridSample.

    https://onnx.ai/onnx/operators/onnx__AffineGrid.html
    """
    lengths = checked_shape(ints(size)[2:])
    centers = [_centers(length, bool(align_corners)) for length in lengths]
    # The last axis of the image, x, is the first coordinate, and the constant is the last.
    grid = [*reversed(np.meshgrid(*centers, indexing="ij")), np.ones(lengths)]
    points = np.stack(grid, axis=-1).reshape(-1, len(grid)).astype(theta.dtype)
    mapped = jnp.einsum("mk,nik->nmi", points, traced(theta), precision="highest")
    return jnp.reshape(mapped, (theta.shape[0], *lengths, len(lengths)))


def _centers(length: int, align_corners: bool) -> np.ndarray:
    if align_corners:
        return np.linspace(-1, 1, length) if length > 1 else np.zeros(length)
    return (2 * np.arange(length) + 1) / length - 1


@op("GridSample", since=16)
def grid_sample(
    x: GraphValue,
    grid: GraphValue,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> GraphValue:
    """The input, interpolated at the positions in `grid`; before opset 20 linear is called bilinear.

    https://onnx.ai/onnx/operators/onnx__GridSample.html
    """
    x, grid = traced(x), traced(grid)
    kind = jnp.promote_types(
        jnp.promote_types(grid.dtype, np.float32),
        x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else np.float32,
    )
    n, c, *lengths = x.shape
    places = grid.shape[1:-1]
    index, weight = jnp.zeros((n, *places, 1), np.int32), jnp.ones((n, *places, 1), kind)
    for axis, length in enumerate(lengths):
        i, w = _grid_taps(
            grid[..., len(lengths) - 1 - axis].astype(kind), length, bool(align_corners), mode, padding_mode
        )
        index = jnp.reshape(index[..., None] * length + i[..., None, :], (n, *places, -1))
        weight = jnp.reshape(weight[..., None] * w[..., None, :], (n, *places, -1))
    flat = jnp.reshape(x, (n, c, -1))
    found = jnp.take_along_axis(flat, jnp.reshape(index, (n, 1, -1)), axis=2, mode="clip").reshape(
        n, c, *places, -1
    )
    if mode == "nearest":
        return jnp.where(weight[:, None] > 0, found, np.zeros((), x.dtype))[..., 0]
    return cast(jnp.sum(found.astype(kind) * weight[:, None], axis=-1), x.dtype)


def _grid_taps(
    at: jax.Array, length: int, align_corners: bool, mode: str, padding: str
) -> tuple[jax.Array, jax.Array]:
    """Indices of the elements around each position along one axis, and their weights: both (..., taps)."""
    low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
    at = (at + 1) / 2 * (high - low) + low
    at = jnp.rint(at) if mode == "nearest" else at
    taps = {"nearest": (0, 1), "linear": (0, 2), "bilinear": (0, 2), "cubic": (-1, 3), "bicubic": (-1, 3)}[
        mode
    ]
    index = jnp.floor(at)[..., None] + np.arange(*taps, dtype=at.dtype)
    distance = jnp.abs(index - at[..., None])
    if mode == "nearest":
        weight = jnp.ones_like(distance)
    else:
        weight = 1 - distance if "linear" in mode else _cubic(distance, -0.75, jnp)
    if padding == "zeros":
        weight = jnp.where((index >= 0) & (index < length), weight, 0)
    elif padding == "reflection":
        index = jnp.rint(_reflect(index, low, high))
    return jnp.clip(index, 0, length - 1).astype(np.int32), weight


def _reflect(at: jax.Array, low: float, high: float) -> jax.Array:
    span = high - low
    if not span:
        return jnp.full_like(at, low)
    distance = jnp.mod(at - low, 2 * span)
    return jnp.minimum(distance, 2 * span - distance) + low
