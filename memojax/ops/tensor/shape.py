"""Operators that move or count elements, and keep their values."""

from __future__ import annotations

import math

import numpy as np

from ..._types import GraphValue, Shape
from .._common import checked_shape, ints, is_static, normalize_axes, normalize_axis, nx
from ..registry import op


@op("Identity")
def identity(input: GraphValue) -> GraphValue:
    """The input, also if a sequence or an optional. https://onnx.ai/onnx/operators/onnx__Identity.html"""
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
    """Change the shape: -1 is inferred, and 0 copies a dimension, unless `allowzero` is set.

    https://onnx.ai/onnx/operators/onnx__Reshape.html
    """
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
    """Remove the given dimensions of size 1, by default all of them.

    https://onnx.ai/onnx/operators/onnx__Squeeze.html
    """
    return squeeze_attribute(data, axes=None if axes is None else ints(axes))


@op("Unsqueeze", until=13)
def unsqueeze_attribute(data: GraphValue, *, axes: tuple[int, ...]) -> GraphValue:
    """Before opset 13 the axes are an attribute. https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    return nx.expand_dims(data, axes)


@op("Unsqueeze", since=13, static=("axes",))
def unsqueeze(data: GraphValue, axes: GraphValue) -> GraphValue:
    """Insert dimensions of size 1 at `axes` of the result.

    https://onnx.ai/onnx/operators/onnx__Unsqueeze.html
    """
    return nx.expand_dims(data, ints(axes))


@op("Transpose")
def transpose(data: GraphValue, *, perm: tuple[int, ...] | None = None) -> GraphValue:
    """Put axes in the order of `perm`, by default in reverse order.

    https://onnx.ai/onnx/operators/onnx__Transpose.html
    """
    return nx.transpose(data, perm)


@op("Concat", until=4)
def concat_first_version(*inputs: GraphValue, axis: int = 1) -> GraphValue:
    """Before opset 4 the axis is 1 by default. https://onnx.ai/onnx/operators/onnx__Concat.html"""
    return concat(*inputs, axis=axis)


@op("Concat", since=4)
def concat(*inputs: GraphValue, axis: int) -> GraphValue:
    """Join the inputs along `axis`. https://onnx.ai/onnx/operators/onnx__Concat.html"""
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
    """Split into parts of the sizes `split`, or into equal parts, of which the last may be smaller.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    return _split(input, None if split is None else ints(split), axis, num_outputs or n_outputs)


def _split(x: GraphValue, sizes: Shape | None, axis: int, parts: int) -> tuple[GraphValue, ...]:
    axis = normalize_axis(axis, x.ndim)
    length = x.shape[axis]
    if sizes is None:
        chunk = -(-length // parts)
        sizes = tuple(min(chunk, max(length - i * chunk, 0)) for i in range(parts))
    if sum(sizes) != length or min(sizes, default=0) < 0:
        raise ValueError(f"the sizes {list(sizes)} do not add up to the length of axis {axis}, {length}")
    return tuple(nx.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))


@op("Tile", since=6, static=("repeats",))
def tile(input: GraphValue, repeats: GraphValue) -> GraphValue:
    """The input repeated along each axis. https://onnx.ai/onnx/operators/onnx__Tile.html"""
    counts = ints(repeats)
    if len(counts) != input.ndim:
        raise ValueError(f"repeats has {len(counts)} entries, expected {input.ndim}, the rank of the input")
    made = [dim * count for dim, count in zip(input.shape, counts, strict=True)]
    checked_shape(made, input.dtype.itemsize if is_static(input) else 0)
    return nx.tile(input, counts)


@op("DepthToSpace")
def depth_to_space(input: GraphValue, *, blocksize: int, mode: str = "DCR") -> GraphValue:
    """Move channels to blocks of pixels, in the order depth-column-row (DCR) or column-row-depth (CRD).

    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html
    """
    n, c, h, w = input.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        blocks = nx.transpose(nx.reshape(input, (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        blocks = nx.transpose(nx.reshape(input, (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return nx.reshape(blocks, (n, depth, h * b, w * b))


@op("SpaceToDepth")
def space_to_depth(input: GraphValue, *, blocksize: int, mode: str = "DCR") -> GraphValue:
    """Move blocks of pixels to channels, the inverse of DepthToSpace.

    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html
    """
    n, c, h, w = input.shape
    b = blocksize
    blocks = nx.reshape(input, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return nx.reshape(nx.transpose(blocks, order), (n, c * b * b, h // b, w // b))
