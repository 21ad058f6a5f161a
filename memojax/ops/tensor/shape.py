"""Operators that move or describe elements and keep their values."""

from __future__ import annotations

import math

import numpy as np

from ..._types import GraphValue, Shape
from .._common import checked_shape, ints, is_static, normalize_axes, normalize_axis, nx
from ..registry import op


@op("Identity")
def identity(input: GraphValue) -> GraphValue:
    """The input itself, also a sequence or an optional. https://onnx.ai/onnx/operators/onnx__Identity.html"""
    return (input,)


@op("Shape", shape_only=True)
def shape(data: GraphValue, *, start: int = 0, end: int | None = None) -> GraphValue:
    """Dimensions from `start` up to `end`. https://onnx.ai/onnx/operators/onnx__Shape.html"""
    return np.array(data.shape[start:end], np.int64)


@op("Size", shape_only=True)
def size(data: GraphValue) -> GraphValue:
    """Number of elements. https://onnx.ai/onnx/operators/onnx__Size.html"""
    return np.array(data.size, np.int64)


@op("Reshape", until=5)
def reshape_attribute(
    data: GraphValue, *, shape: tuple[int, ...] = (), consumed_inputs: tuple[int, ...] = ()
) -> GraphValue:
    """Before opset 5 the shape is an attribute. https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    return _reshape(data, shape, copy_zeros=True)


@op("Reshape", since=5, static=("shape",))
def reshape(data: GraphValue, shape: GraphValue, *, allowzero: int = 0) -> GraphValue:
    """Another shape; -1 is inferred, 0 copies a dimension unless `allowzero`.
    https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    return _reshape(data, ints(shape), copy_zeros=not allowzero)


def _reshape(data: GraphValue, shape: Shape, copy_zeros: bool) -> GraphValue:
    dims = [
        data.shape[i] if dim == 0 and copy_zeros and i < data.ndim else dim for i, dim in enumerate(shape)
    ]
    if -1 in dims:
        known = math.prod(dim for dim in dims if dim != -1)
        dims[dims.index(-1)] = data.size // known if known else 0
    return nx.reshape(data, checked_shape(dims))


@op("Squeeze", until=13)
def squeeze_attribute(data: GraphValue, *, axes: tuple[int, ...] | None = None) -> GraphValue:
    """Before opset 13 the axes are an attribute. https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    return nx.squeeze(data, axis=None if axes is None else normalize_axes(axes, data.ndim))


@op("Squeeze", since=13, static=("axes",))
def squeeze(data: GraphValue, axes: GraphValue = None) -> GraphValue:
    """Without the given dimensions of size 1; without all such dimensions by default.
    https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    return squeeze_attribute(data, axes=None if axes is None else ints(axes))


@op("Unsqueeze", until=13)
def unsqueeze_attribute(data: GraphValue, *, axes: tuple[int, ...]) -> GraphValue:
    """Before opset 13 the axes are an attribute. https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    return nx.expand_dims(data, axes)


@op("Unsqueeze", since=13, static=("axes",))
def unsqueeze(data: GraphValue, axes: GraphValue) -> GraphValue:
    """With dimensions of size 1 at `axes` of the result.
    https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    return nx.expand_dims(data, ints(axes))


@op("Transpose")
def transpose(data: GraphValue, *, perm: tuple[int, ...] | None = None) -> GraphValue:
    """Axes in the order of `perm`, reversed by default.
    https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    return nx.transpose(data, perm)


@op("Concat", until=4)
def concat_first_version(*inputs: GraphValue, axis: int = 1) -> GraphValue:
    """Before opset 4 the axis is 1 by default. https://onnx.ai/onnx/operators/onnx__Concat.html"""
    return concat(*inputs, axis=axis)


@op("Concat", since=4)
def concat(*inputs: GraphValue, axis: int) -> GraphValue:
    """The inputs one after the other along `axis`. https://onnx.ai/onnx/operators/onnx__Concat.html"""
    return nx.concatenate(inputs, axis=axis)


@op("Split", until=13, static=("sizes",))
def split_attribute(
    input: GraphValue,
    sizes: GraphValue = None,
    *,
    axis: int = 0,
    split: tuple[int, ...] | None = None,
    n_outputs: int,
) -> GraphValue:
    """Before opset 13 the sizes are an attribute. https://onnx.ai/onnx/operators/onnx__Split.html"""
    return _split(input, ints(sizes) if split is None and sizes is not None else split, axis, n_outputs)


@op("Split", since=13, static=("split",))
def split(
    input: GraphValue,
    split: GraphValue = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int,
) -> GraphValue:
    """Parts of the sizes `split`, or equal ones with a smaller last.
    https://onnx.ai/onnx/operators/onnx__Split.html"""
    return _split(input, None if split is None else ints(split), axis, num_outputs or n_outputs)


def _split(x: GraphValue, sizes: Shape | None, axis: int, parts: int) -> tuple[GraphValue, ...]:
    axis = normalize_axis(axis, x.ndim)
    length = x.shape[axis]
    if sizes is None:
        chunk = -(-length // parts)
        sizes = tuple(min(chunk, max(length - i * chunk, 0)) for i in range(parts))
    if sum(sizes) != length or min(sizes, default=0) < 0:
        raise ValueError(f"sizes {list(sizes)} do not add up to the {length} elements of axis {axis}")
    return tuple(nx.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))


@op("Tile", since=6, static=("repeats",))
def tile(input: GraphValue, repeats: GraphValue) -> GraphValue:
    """The input repeated along each axis. https://onnx.ai/onnx/operators/onnx__Tile.html"""
    counts = ints(repeats)
    if len(counts) != input.ndim:
        raise ValueError(f"{len(counts)} repeats given for an input of rank {input.ndim}")
    made = [dim * count for dim, count in zip(input.shape, counts, strict=True)]
    checked_shape(made, input.dtype.itemsize if is_static(input) else 0)
    return nx.tile(input, counts)


@op("DepthToSpace")
def depth_to_space(input: GraphValue, *, blocksize: int, mode: str = "DCR") -> GraphValue:
    """Channels to blocks of pixels, depth-column-row or column-row-depth.
    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html"""
    n, c, h, w = input.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        blocks = nx.transpose(nx.reshape(input, (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        blocks = nx.transpose(nx.reshape(input, (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return nx.reshape(blocks, (n, depth, h * b, w * b))


@op("SpaceToDepth")
def space_to_depth(input: GraphValue, *, blocksize: int, mode: str = "DCR") -> GraphValue:
    """Blocks of pixels to channels; the inverse of DepthToSpace.
    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    n, c, h, w = input.shape
    b = blocksize
    blocks = nx.reshape(input, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return nx.reshape(nx.transpose(blocks, order), (n, c * b * b, h // b, w // b))
