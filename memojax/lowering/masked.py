"""Lower NonZero, Compress and the operators after them without knowing how many entries a mask picks.

The number of entries depends on data, so no XLA array can hold them. Instead they stay at their places: an
array over the mask's shape, beside the mask (`Masked`). Gathers, arithmetic and products then work at every
place, and reductions leave out the places where the mask does not hold. A scatter by the mask's own
coordinates is a `where`.

So `x[mask] = v`, `x[mask].mean()` and the like compile, with exact results. An operator that needs the number
of entries is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import GraphValue, Shape
from ..model.graph import Node
from ..ops._common import ints, is_static, normalize_axes, normalize_axis, traced
from ..ops.static import PICKING
from .masked_reductions import REDUCTIONS
from .masked_value import ELEMENTWISE, Count, Masked, Masking


def applies(m: Masking, node: Node, inputs: Sequence[GraphValue]) -> bool:
    """Whether a node takes or returns masked values."""
    if any(isinstance(value, Masked) for value in inputs):
        return True
    if node.domain:
        return False
    if node.op_type in PICKING:
        return not is_static(inputs[-1])
    at = _LENGTHS.get(node.op_type)
    if at is None or len(inputs) <= at or is_static(inputs[at]):
        return False
    sizes = m.sizes(node.inputs[at])
    return sizes is not None and any(isinstance(size, Count) for size in sizes)


_LENGTHS = {"Expand": 1, "ConstantOfShape": 0, "Slice": 2, "Reshape": 1}
"""Operator -> the input that holds lengths; a count of a mask among them makes the result masked."""


def lowered(
    m: Masking,
    node: Node,
    inputs: list[GraphValue],
    lower: Callable[[Sequence[GraphValue]], tuple[GraphValue, ...]],
) -> tuple[GraphValue, ...]:
    """The outputs of a node for which `applies` holds; `lower` lowers the node for arrays.

    Raises:
        ValueError: the operator needs the number of entries.
    """
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is not None:
        return (rule(m, node, inputs),)
    if node.op_type in ELEMENTWISE and not node.domain:
        return (_elementwise(inputs, lambda dense: lower(dense)[0]),)
    raise ValueError(f"{node.op_type} cannot take entries that a mask picks: their number depends on data")


def _elementwise(inputs: Sequence[GraphValue], lower: Callable[[Sequence[GraphValue]], GraphValue]) -> Masked:
    first = _one_mask(inputs)
    # ONNX aligns shapes at their last axes: in a result of larger rank, the axis of entries comes later.
    rank = max(
        value.rank if isinstance(value, Masked) else np.ndim(value) for value in inputs if value is not None
    )
    axis = first.axis + rank - first.rank
    values = lower([value if value is None else _aligned(value, first, rank, axis) for value in inputs])
    shape = np.broadcast_shapes(values.shape, first.mask.shape + (1,) * (rank - 1))
    return first.with_values(jnp.broadcast_to(values, shape), axis)


def _one_mask(inputs: Sequence[GraphValue]) -> Masked:
    found = [value for value in inputs if isinstance(value, Masked)]
    if any(value.key != found[0].key for value in found):
        raise ValueError(
            "its inputs are entries of different masks, and whether these pick as many depends on data"
        )
    return found[0]


def _aligned(value: GraphValue, first: Masked, rank: int, axis: int) -> GraphValue:
    """A value as an operand over all places, without the axis of entries, `axis` of `rank` axes."""
    if isinstance(value, Masked):
        if value.axis + rank - value.rank != axis:
            raise ValueError("the entries of its inputs are along different axes")
        shape = value.mask.shape + (1,) * (rank - value.rank) + value.rest
        return jnp.reshape(value.values, shape)
    missing = rank - np.ndim(value)
    if axis < missing:
        return value
    if np.shape(value)[axis - missing] != 1:
        raise ValueError(
            f"an axis of length {np.shape(value)[axis - missing]} is broadcast to one whose length depends "
            "on data"
        )
    return jnp.squeeze(traced(value), axis - missing)


def _spread(masked: Masked, trailing: Shape) -> Masked:
    """`[n, *trailing]` as `[n * prod(trailing)]`: the mask spreads over `trailing` as well."""
    key, already = masked.key if isinstance(masked.key, tuple) else (masked.key, ())
    wide = jnp.broadcast_to(
        masked.mask.reshape(masked.mask.shape + (1,) * len(trailing)), masked.mask.shape + trailing
    )
    return Masked(wide, masked.values, 0, (key, (*already, *trailing)))


def _ranks(mask: jax.Array) -> jax.Array:
    """For each place where the mask holds, the position of its entry, in row-major order."""
    return jnp.reshape(jnp.cumsum(mask.ravel()) - 1, mask.shape)


def _nonzero(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    (x,) = inputs
    if isinstance(x, Masked) or x.ndim == 0:
        raise ValueError("NonZero of a scalar or of entries that a mask picks is not supported here")
    mask = x if x.dtype == np.bool_ else x != 0
    places = np.stack(np.indices(x.shape), axis=-1).astype(np.int64)
    return Masked(mask, places, 1, m.mask_key(node.inputs[0], x.shape), tuple(range(x.ndim)))


def _compress(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x, condition = inputs
    if isinstance(x, Masked) or isinstance(condition, Masked):
        raise ValueError("Compress of entries that a mask picks is not supported here")
    axis = node.attributes.get("axis")
    x, axis = (jnp.ravel(x), 0) if axis is None else (traced(x), normalize_axis(axis, np.ndim(x)))
    length = x.shape[axis]
    # ONNX lets the condition be shorter or longer than the axis; elements past its end are not picked.
    mask = traced(condition)[:length]
    mask = jnp.pad(mask, (0, length - mask.shape[0]))
    return Masked(mask, jnp.moveaxis(x, axis, 0), axis, m.mask_key(node.inputs[1], mask.shape))


def _same(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    return inputs[0]


def _transpose(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    order = node.attributes.get("perm") or tuple(range(x.rank))[::-1]
    places = [axis if axis < x.axis else axis - 1 for axis in order if axis != x.axis]
    lead = x.mask.ndim
    values = jnp.transpose(x.values, (*range(lead), *(lead + place for place in places)))
    keeps = places == sorted(places)  # the other axes stay in order: columns still are columns
    return x.with_values(values, order.index(x.axis), x.columns if keeps else None)


def _unsqueeze(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    axes = m.axes(node)
    if axes is None:
        raise ValueError("its axes depend on data")
    shape: list[Any] = list(x.sizes)
    for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return _in_shape(x, shape)


def _squeeze(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    axes = m.axes(node)
    if axes is None:
        raise ValueError("it has no axes, so the axes that it drops depend on data")
    dropped = normalize_axes(axes, x.rank)
    if x.axis in dropped:
        raise ValueError("it drops an axis whose length depends on data")
    return _in_shape(x, [size for axis, size in enumerate(x.sizes) if axis not in dropped])


def _reshape(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x = inputs[0]
    shape = m.sizes(node.inputs[1])
    if not isinstance(x, Masked) or shape is None:
        raise ValueError("its shape depends on data")
    shape = [
        x.sizes[axis] if size == 0 and not node.attributes.get("allowzero") else size
        for axis, size in enumerate(shape)
    ]
    return _in_shape(x, shape)


def _flatten(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    axis = node.attributes.get("axis", 1)
    return _in_shape(
        x,
        [math.prod(s for s in x.sizes[:axis] if isinstance(s, int)), -1]
        if x.axis >= axis
        else [-1, math.prod(s for s in x.sizes[axis:] if isinstance(s, int))],
    )


def _in_shape(x: Masked, shape: Sequence[Any]) -> Masked:
    """`x` reshaped: its other axes are regrouped, or all axes become one.

    Raises:
        ValueError: the shape would split or join entries in a way that depends on their number.
    """
    at = [axis for axis, size in enumerate(shape) if isinstance(size, Count) or size == -1]
    others = [size for size in shape if not isinstance(size, Count) and size != -1]
    own = math.prod(x.rest)
    # Entries stay whole: the axes before them, and those after them, keep their numbers of elements.
    if len(at) == 1 and math.prod(others) == own:
        before = math.prod(x.rest[: x.axis])
        if math.prod(others[: at[0]]) == before:
            kept = (
                x.columns if own == len(x.columns or ()) and len([d for d in others if d != 1]) <= 1 else None
            )
            return x.with_values(jnp.reshape(x.values, (*x.mask.shape, *others)), at[0], kept)
    # All of it in one axis, whose length is the number of entries times the size of one.
    if len(shape) == 1 and at == [0] and x.axis == 0 and not isinstance(shape[0], Count):
        return _spread(x, x.rest)
    raise ValueError(
        f"entries that a mask picks cannot take the shape {[s if isinstance(s, int) else '?' for s in shape]}"
    )


def _expand(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    x = inputs[0]
    wanted = m.sizes(node.inputs[1])
    if wanted is None:
        raise ValueError("its shape depends on data")
    return _broadcast(x, wanted)


def _broadcast(x: GraphValue, wanted: list[int | Count]) -> Masked:
    """`x` broadcast to a shape in which one length is the count of a mask."""
    counts = {axis: size for axis, size in enumerate(wanted) if isinstance(size, Count)}
    rest = tuple(size for size in wanted if isinstance(size, int))
    if len(counts) > 1:
        raise ValueError("more than one axis of its shape depends on data")
    at, count = next(iter(counts.items()), (None, None))
    if isinstance(x, Masked):
        own = x.rank - x.axis
        if count is not None and (at is None or len(wanted) - at != own or count.key != x.key):
            raise ValueError("it is broadcast to a shape that another mask decides")
        if count is None:  # the shape has a 1 for the axis of entries
            rest = tuple(size for place, size in enumerate(rest) if len(wanted) - place != own)
        shape = np.broadcast_shapes(x.rest, rest)
        if shape == x.rest:
            return x
        padded = jnp.reshape(x.values, x.mask.shape + (1,) * (len(shape) - len(x.rest)) + x.rest)
        values = jnp.broadcast_to(padded, x.mask.shape + shape)
        return x.with_values(values, x.axis + len(shape) - len(x.rest))
    if at is None or count is None or np.ndim(x) > len(wanted):
        raise ValueError("its input has more axes than its shape")
    # An array with an axis of entries must be a list of them; with length 1 there, it repeats for each.
    place = at - (len(wanted) - np.ndim(x))
    like = Masked(count.mask, count.mask, at, count.key)
    if place >= 0 and np.shape(x)[place] != 1:
        return _broadcast(_listed(like, jnp.moveaxis(traced(x), place, 0), place, exactly=True), wanted)
    dense = jnp.squeeze(traced(x), place) if place >= 0 else traced(x)
    return like.with_values(
        jnp.broadcast_to(dense, count.mask.shape + np.broadcast_shapes(dense.shape, rest))
    )


def _listed(like: Masked, source: jax.Array, axis: int, exactly: bool = False) -> Masked:
    """The elements of `source`, `[m, *rest]`, at the places where the mask of `like` holds, in order.

    Whether there are enough depends on data. Missing elements are NaN; with `exactly`, all are NaN unless
    the numbers are equal.
    """
    if not jnp.issubdtype(source.dtype, jnp.inexact):
        raise ValueError(
            "a list of whole numbers goes to the entries of a mask. Whether there are as many depends on "
            "data, and whole numbers have no NaN to say that there are not"
        )
    values = jnp.take(source, _ranks(like.mask), axis=0, mode="fill")
    if exactly:
        values = jnp.where(like.mask.sum() == source.shape[0], values, jnp.nan)
    return like.with_values(values, axis)


def _constant_of_shape(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    wanted = m.sizes(node.inputs[0])
    if wanted is None:
        raise ValueError("its shape depends on data")
    return _broadcast(np.reshape(value, ()), wanted)


def _slice(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x, starts = inputs[:2]
    first = ints(starts) if is_static(starts) else None
    last = m.sizes(node.inputs[2])
    given = inputs[3] if len(inputs) > 3 else None
    steps = inputs[4] if len(inputs) > 4 else None
    if (
        first is None
        or last is None
        or not is_static(given, steps)
        or (steps is not None and set(ints(steps)) != {1})
    ):
        raise ValueError("its bounds depend on data")
    rank = x.rank if isinstance(x, Masked) else np.ndim(x)
    axes = normalize_axes(ints(given) if given is not None else range(len(first)), rank)
    if isinstance(x, Masked):
        cut = {
            axis if axis < x.axis else axis - 1: slice(a, b)
            for axis, a, b in zip(axes, first, last, strict=True)
        }
        if x.axis in axes or any(isinstance(b, Count) for b in last):
            raise ValueError("it cuts the axis whose length depends on data")
        return _cut(x, cut)
    if len(axes) != 1 or first != (0,) or not isinstance(last[0], Count):
        raise ValueError("more than the end of one axis depends on data")
    like = Masked(last[0].mask, last[0].mask, axes[0], last[0].key)
    return _listed(like, jnp.moveaxis(traced(x), axes[0], 0), axes[0])


def _cut(x: Masked, cut: Mapping[int, slice]) -> Masked:
    parts = tuple(cut.get(axis, slice(None)) for axis in range(len(x.rest)))
    columns = x.columns[parts[0]] if x.columns is not None and len(x.rest) == 1 else None
    return x.with_values(x.values[(*[slice(None)] * x.mask.ndim, *parts)], columns=columns)


def _concat(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    first = _one_mask(inputs)
    if not all(isinstance(value, Masked) and value.axis == first.axis for value in inputs):
        raise ValueError("entries that a mask picks are joined with other values")
    axis = normalize_axis(node.attributes["axis"], first.rank)
    if axis == first.axis:
        raise ValueError("it joins along the axis whose length depends on data")
    dense = first.mask.ndim + (axis if axis < first.axis else axis - 1)
    columns = [value.columns for value in inputs]
    kept = (
        tuple(c for part in columns for c in part) if len(first.rest) == 1 and None not in columns else None
    )
    return first.with_values(jnp.concatenate([value.values for value in inputs], dense), columns=kept)


def _gather(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    data, indices = inputs
    if isinstance(data, Masked):
        axis = normalize_axis(node.attributes.get("axis", 0), data.rank)
        if isinstance(indices, Masked) or axis == data.axis:
            raise ValueError("its index picks entries of a mask, whose number depends on data")
        place = axis if axis < data.axis else axis - 1
        values = jnp.take(data.values, indices, axis=data.mask.ndim + place, mode="fill")
        shift = np.ndim(indices) - 1 if axis < data.axis else 0
        known = is_static(indices) and data.columns is not None and len(data.rest) == 1
        columns = tuple(np.ravel(np.array(data.columns)[indices]).tolist()) if known else None
        return data.with_values(values, data.axis + shift, columns)
    axis = normalize_axis(node.attributes.get("axis", 0), np.ndim(data))
    lead = indices.mask.ndim
    # `x[mask]` gathers at the mask's own coordinates: its values at all places are `x` itself.
    places = data.shape[axis] == indices.mask.shape[0]
    if lead == 1 and places and indices.columns == (0,) and indices.rest == ():
        return indices.with_values(jnp.moveaxis(traced(data), axis, 0), axis)
    values = jnp.take(traced(data), indices.values, axis=axis, mode="fill")
    values = jnp.moveaxis(values, range(axis, axis + lead), range(lead))
    return indices.with_values(values, axis + indices.axis)


def _gather_nd(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    data, indices = inputs
    if isinstance(data, Masked) or node.attributes.get("batch_dims", 0) or indices.axis == indices.rank - 1:
        raise ValueError("its data are entries that a mask picks, or its indices are along their axis")
    if indices.are_coordinates and data.shape[: indices.mask.ndim] == indices.mask.shape:
        return indices.with_values(traced(data))
    where = tuple(indices.values[..., column] for column in range(indices.rest[-1]))
    return indices.with_values(traced(data).at[where].get(mode="fill"))


def _scatter_nd(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    data, indices, updates = inputs
    reduction = node.attributes.get("reduction", "none")
    if isinstance(data, Masked) or not isinstance(indices, Masked) or indices.axis != 0 or indices.rank != 2:
        raise ValueError("its data are entries that a mask picks, or its indices are not one for each entry")
    data = traced(data)
    if not isinstance(updates, Masked):
        updates = _listed(indices, traced(updates), 0, exactly=True)
    _one_mask([indices, updates])
    if updates.axis != 0:
        raise ValueError("its updates are not one for each entry of the mask")
    rest = data.shape[indices.rest[0] :]
    dense = jnp.broadcast_to(updates.values, indices.mask.shape + rest)
    if indices.are_coordinates and data.shape[: indices.mask.ndim] == indices.mask.shape:
        mask = indices.mask.reshape(indices.mask.shape + (1,) * len(rest))
        return jnp.where(mask, _COMBINED[reduction](data, dense), data)
    columns = [indices.values[..., column] for column in range(indices.rest[0])]
    # Places where the mask does not hold get an index past the end, which mode="drop" ignores.
    columns[0] = jnp.where(indices.mask, columns[0], data.shape[0])
    at = data.at[tuple(columns)]
    return {"none": at.set, "add": at.add, "mul": at.multiply, "min": at.min, "max": at.max}[reduction](
        dense, mode="drop"
    )


_COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": jnp.minimum,
    "max": jnp.maximum,
}


def _shape(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    x: Masked = inputs[0]
    sizes = x.sizes[node.attributes.get("start", 0) : node.attributes.get("end")]
    return jnp.stack([_number(size) for size in sizes]) if sizes else np.zeros(0, np.int64)


def _size(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    x: Masked = inputs[0]
    return _number(Count(x.mask, x.key)) * math.prod(x.rest)


def _number(size: int | Count) -> GraphValue:
    whole = jax.dtypes.canonicalize_dtype(np.int64)
    return size.mask.sum(dtype=whole) if isinstance(size, Count) else jnp.asarray(size, whole)


def _matmul(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    a, b = inputs
    if (
        not isinstance(a, Masked)
        or isinstance(b, Masked)
        or np.ndim(b) != 2
        or a.rank < 2
        or a.axis == a.rank - 1
    ):
        raise ValueError("it sums over entries that a mask picks, or both its inputs have such entries")
    return a.with_values(jnp.matmul(a.values, traced(b)))


def _gemm(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    a, b = inputs[:2]
    c = inputs[2] if len(inputs) > 2 else None
    plain = isinstance(a, Masked) and a.rank == 2 and a.axis == 0 and not node.attributes.get("transA")
    if not plain or isinstance(b, Masked) or isinstance(c, Masked):
        raise ValueError("it sums over entries that a mask picks, or both its inputs have such entries")
    values = jnp.matmul(a.values, traced(b).T if node.attributes.get("transB") else traced(b))
    values = values * np.asarray(node.attributes.get("alpha", 1.0), values.dtype)
    if c is not None:
        scale = np.asarray(node.attributes.get("beta", 1.0), values.dtype)
        values = values + scale * _aligned(c, a, 2, 0)
    return a.with_values(values)


def _reduce(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    x: Masked = inputs[0]
    axes = m.axes(node)
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        raise ValueError("its axes depend on data")
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return x
    wanted = normalize_axes(axes, x.rank) if axes else tuple(range(x.rank))
    keep = bool(node.attributes.get("keepdims", 1))
    others = [axis if axis < x.axis else axis - 1 for axis in wanted if axis != x.axis]
    lead = x.mask.ndim
    dense = tuple(lead + place for place in others)
    reduction = REDUCTIONS[node.op_type]
    if x.axis not in wanted:
        values = reduction(x.values, jnp.ones((), bool), dense, keep)
        gone = 0 if keep else sum(axis < x.axis for axis in wanted)
        return x.with_values(values, x.axis - gone)
    mask = x.mask.reshape(x.mask.shape + (1,) * len(x.rest))
    result = reduction(x.values, mask, (*range(lead), *dense), False)
    shape = [1 if axis in wanted else size for axis, size in enumerate(x.sizes) if keep or axis not in wanted]
    return jnp.reshape(result, shape)


_RULES: dict[str, Callable[[Masking, Node, list[GraphValue]], Any]] = {
    "NonZero": _nonzero,
    "Compress": _compress,
    "Identity": _same,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Slice": _slice,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "MatMul": _matmul,
    "Gemm": _gemm,
    **dict.fromkeys(REDUCTIONS, _reduce),
}
