"""Entries that a mask of data picks: as many as the mask has, so that no XLA array can hold them, and still computable in place.

What NonZero and Compress give is kept where it came from, over the mask's own shape, beside the mask (`Masked`). Gathering, arithmetic and
products work on every place, reductions leave out what the mask does, and a scatter by the mask's own coordinates is a `where`: that is how
exporters write `x[mask] = v`, `x[mask].mean()` and their kin. Nothing of it is an approximation; an operator that needs to know how many
entries there are is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import GraphValue, Shape
from ..model.graph import Node
from ..ops import lookup
from ..ops._common import ints, is_static, normalize_axes, normalize_axis, traced
from ..ops.static import PICKING, mask_of_count


@dataclass(frozen=True, eq=False)
class Masked:
    """A value with an axis of unknown length: one entry for each place where `mask` holds, in row-major order.

    Attributes:
        mask: bool[*places].
        values: [*places, *rest], the entries at every place; those where the mask does not hold mean nothing.
        axis: where in the value's own shape the axis of entries stands, among `rest`.
        key: what the mask is told apart by.
        columns: for coordinates, which axes of the mask they are, in order along the last axis (of a vector: the one).
    """

    mask: jax.Array
    values: GraphValue
    axis: int
    key: Hashable
    columns: tuple[int, ...] | None = None

    @property
    def rest(self) -> Shape:
        """The other axes' lengths."""
        return tuple(np.shape(self.values)[self.mask.ndim :])

    @property
    def rank(self) -> int:
        return len(self.rest) + 1

    @property
    def sizes(self) -> list[int | Count]:
        """The value's own shape."""
        rest: list[int | Count] = list(self.rest)
        return [*rest[: self.axis], Count(self.mask, self.key), *rest[self.axis :]]

    @property
    def are_coordinates(self) -> bool:
        """Whether each entry is its own place, `[n, rank of the mask]`."""
        return self.columns == tuple(range(self.mask.ndim)) and self.axis == 0 and self.rank == 2

    def with_values(self, values: GraphValue, axis: int | None = None, columns: Any = None) -> Masked:
        return replace(self, values=values, axis=self.axis if axis is None else axis, columns=columns)


@dataclass(frozen=True, eq=False)
class Count:
    """How many places a mask has, as the length of an axis."""

    mask: jax.Array
    key: Hashable


@dataclass(frozen=True)
class Masking:
    """One node among masked values: `makers` is name -> node, `env` what the names hold."""

    makers: Mapping[str, Node]
    env: Mapping[str, GraphValue]

    def applies(self, node: Node, inputs: Sequence[GraphValue]) -> bool:
        """Whether a node works on masked values, or makes them."""
        if node.domain:
            return any(isinstance(value, Masked) for value in inputs)
        if node.op_type in PICKING:
            return not is_static(inputs[-1]) or isinstance(inputs[0], Masked)
        if any(isinstance(value, Masked) for value in inputs):
            return True
        lengths = {"Expand": 1, "ConstantOfShape": 0, "Slice": 2, "Reshape": 1}.get(node.op_type)
        if lengths is None or len(inputs) <= lengths or is_static(inputs[lengths]):
            return False
        sizes = self.sizes(node.inputs[lengths])
        return sizes is not None and any(isinstance(size, Count) for size in sizes)

    def call(
        self,
        node: Node,
        inputs: list[GraphValue],
        call: Callable[[Sequence[GraphValue]], tuple[GraphValue, ...]],
    ) -> tuple[GraphValue, ...]:
        """The outputs of `node`; `call` lowers it for arrays.

        Raises:
            ValueError: the operator needs to know how many entries there are.
        """
        rule = _RULES.get(node.op_type) if not node.domain else None
        if rule is not None:
            result = rule(self, node, inputs)
            return result if isinstance(result, tuple) else (result,)
        if node.op_type in _ELEMENTWISE and not node.domain:
            return (self._elementwise(inputs, lambda dense: call(dense)[0]),)
        raise ValueError(
            f"{node.op_type} cannot take entries whose number depends on data (a mask picks them)"
        )

    def _elementwise(
        self, inputs: Sequence[GraphValue], call: Callable[[Sequence[GraphValue]], GraphValue]
    ) -> Masked:
        first = _one_mask(inputs)
        rank = max(
            value.rank if isinstance(value, Masked) else np.ndim(value)
            for value in inputs
            if value is not None
        )
        axis = first.axis + rank - first.rank
        dense = [value if value is None else _aligned(value, first, rank, axis) for value in inputs]
        values = call(dense)
        values = jnp.broadcast_to(
            values, np.broadcast_shapes(values.shape, first.mask.shape + (1,) * (rank - 1))
        )
        return first.with_values(values, axis)

    def sizes(self, name: str) -> list[int | Count] | None:
        """What a tensor of whole numbers holds, numbers or counts of masks; None where that is not known."""
        value = self.env.get(name)
        if value is None or isinstance(value, Masked):
            return None
        if is_static(value):
            return [int(size) for size in np.ravel(value)]
        node = self.makers.get(name)
        rule = _SIZES.get(node.op_type) if node is not None and not node.domain else None
        return rule(self, node) if rule is not None and node is not None else None

    def key(self, name: str) -> Hashable:
        """What a value is computed from and how: values that are computed alike have equal keys."""
        node = self.makers.get(name)
        definition = lookup(node.domain, node.op_type, node.opset) if node is not None else None
        if node is None or definition is None or definition.draws(node) or any(node.bodies):
            return name
        if node.op_type in _SHAPING and np.shape(self.env[name]) == np.shape(self.env[node.inputs[0]]):
            return self.key(node.inputs[0])
        plain = tuple(sorted((k, _plain(v)) for k, v in node.attributes.items()))
        place = node.outputs.index(name)
        return (
            node.domain,
            node.op_type,
            plain,
            place,
            tuple(self.key(given) if given else "" for given in node.inputs),
        )

    def mask_key(self, name: str, shape: Shape) -> tuple[Hashable, Shape]:
        """The key of a mask, and how it was spread along new last axes: (key of what was spread, their lengths)."""
        root = name
        while (node := self.makers.get(root)) is not None and not node.domain:
            if node.op_type not in ("Expand", "Unsqueeze", "Identity"):
                break
            root = node.inputs[0]
            own = np.shape(self.env[root])
            if own == shape[: len(own)] and self._spread_last(name, root):
                key, spread = self.mask_key(root, own)
                return key, (*spread, *shape[len(own) :])
        return self.key(name), ()

    def _spread_last(self, name: str, root: str) -> bool:
        """Whether the axes that were added between `root` and `name` are the last ones."""
        rank = np.ndim(self.env[root])
        while name != root:
            node = self.makers[name]
            if node.op_type == "Unsqueeze":
                axes = self._axes(node)
                if axes is None:
                    return False
                total = np.ndim(self.env[name])
                if any(axis % total < rank for axis in axes):
                    return False
            elif node.op_type == "Expand" and np.ndim(self.env[name]) != np.ndim(self.env[node.inputs[0]]):
                return False
            name = node.inputs[0]
        return True

    def _axes(self, node: Node) -> Shape | None:
        if "axes" in node.attributes:
            return tuple(node.attributes["axes"])
        if len(node.inputs) < 2 or not node.inputs[1]:
            return None
        given = self.env[node.inputs[1]]
        return ints(given) if is_static(given) else None


_SHAPING = ("Identity", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


def _plain(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (
            value.dtype.str,
            value.shape,
            value.tobytes() if value.dtype.kind != "O" else tuple(value.ravel()),
        )
    return tuple(value) if isinstance(value, list) else value


def _one_mask(inputs: Sequence[GraphValue]) -> Masked:
    found = [value for value in inputs if isinstance(value, Masked)]
    if any(value.key != found[0].key for value in found):
        raise ValueError(
            "entries that different masks pick meet, and whether these pick as many depends on data"
        )
    return found[0]


def _aligned(value: GraphValue, first: Masked, rank: int, axis: int) -> GraphValue:
    """A value as an operand over all places: `rank` axes, of which that of the entries is left out."""
    if isinstance(value, Masked):
        if value.axis + rank - value.rank != axis:
            raise ValueError("entries of a mask meet along another axis")
        shape = value.mask.shape + (1,) * (rank - value.rank) + value.rest
        return jnp.reshape(value.values, shape)
    missing = rank - np.ndim(value)
    if axis < missing:
        return value
    if np.shape(value)[axis - missing] != 1:
        raise ValueError(
            f"an axis of {np.shape(value)[axis - missing]} meets one whose length depends on data"
        )
    return jnp.squeeze(traced(value), axis - missing)


def _spread(masked: Masked, trailing: Shape) -> Masked:
    """Each entry of `[n, *trailing]` as its own: the mask over `trailing`, too."""
    key, already = masked.key if isinstance(masked.key, tuple) else (masked.key, ())
    wide = jnp.broadcast_to(
        masked.mask.reshape(masked.mask.shape + (1,) * len(trailing)), masked.mask.shape + trailing
    )
    return Masked(wide, masked.values, 0, (key, (*already, *trailing)))


def _ranks(mask: jax.Array) -> jax.Array:
    """Of each place, how many before it the mask picks."""
    return jnp.reshape(jnp.cumsum(mask.ravel()) - 1, mask.shape)


def _nonzero(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    (x,) = inputs
    if isinstance(x, Masked) or x.ndim == 0:
        raise ValueError("NonZero of a scalar, or of entries that a mask picks, cannot be kept in place")
    mask = x if x.dtype == np.bool_ else x != 0
    places = np.stack(np.indices(x.shape), axis=-1).astype(np.int64)
    return Masked(mask, places, 1, m.mask_key(node.inputs[0], x.shape), tuple(range(x.ndim)))


def _compress(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x, condition = inputs
    if isinstance(x, Masked) or isinstance(condition, Masked):
        raise ValueError("Compress of entries that a mask picks cannot be kept in place")
    axis = node.attributes.get("axis")
    x, axis = (jnp.ravel(x), 0) if axis is None else (traced(x), normalize_axis(axis, np.ndim(x)))
    length = x.shape[axis]
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
    keeps = places == sorted(places)
    return x.with_values(values, order.index(x.axis), x.columns if keeps else None)


def _unsqueeze(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    axes = m._axes(node)
    if axes is None:
        raise ValueError("its axes depend on data")
    shape: list[Any] = list(x.sizes)
    for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return _in_shape(x, shape)


def _squeeze(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    x: Masked = inputs[0]
    axes = m._axes(node)
    if axes is None:
        raise ValueError("without axes, which ones it drops depends on data")
    dropped = normalize_axes(axes, x.rank)
    if x.axis in dropped:
        raise ValueError("it drops the axis whose length depends on data")
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
    """`x` with axes of one added or dropped, others regrouped, or all of them made one; the entries stay together or come apart."""
    at = [axis for axis, size in enumerate(shape) if isinstance(size, Count) or size == -1]
    others = [size for size in shape if not isinstance(size, Count) and size != -1]
    own = math.prod(x.rest)
    if len(at) == 1 and math.prod(others) == own:
        before = math.prod(x.rest[: x.axis])
        if math.prod(others[: at[0]]) == before:
            kept = (
                x.columns if own == len(x.columns or ()) and len([d for d in others if d != 1]) <= 1 else None
            )
            return x.with_values(jnp.reshape(x.values, (*x.mask.shape, *others)), at[0], kept)
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
    counts = {axis: size for axis, size in enumerate(wanted) if isinstance(size, Count)}
    rest = tuple(size for size in wanted if isinstance(size, int))
    if len(counts) > 1:
        raise ValueError("more than one axis of its shape depends on data")
    at, count = next(iter(counts.items()), (None, None))
    if isinstance(x, Masked):
        own = x.rank - x.axis
        if count is not None and (at is None or len(wanted) - at != own or count.key != x.key):
            raise ValueError("it is broadcast to a shape that another mask decides")
        if count is None:  # all ones along the entries
            rest = tuple(size for place, size in enumerate(rest) if len(wanted) - place != own)
        shape = np.broadcast_shapes(x.rest, rest)
        if shape == x.rest:
            return x
        padded = jnp.reshape(x.values, x.mask.shape + (1,) * (len(shape) - len(x.rest)) + x.rest)
        values = jnp.broadcast_to(padded, x.mask.shape + shape)
        return x.with_values(values, x.axis + len(shape) - len(x.rest))
    if at is None or count is None or np.ndim(x) > len(wanted):
        raise ValueError("its input has more axes than its shape")
    place = at - (len(wanted) - np.ndim(x))
    like = Masked(count.mask, count.mask, at, count.key)
    if place >= 0 and np.shape(x)[place] != 1:
        return _broadcast(_listed(like, jnp.moveaxis(traced(x), place, 0), place, exactly=True), wanted)
    dense = jnp.squeeze(traced(x), place) if place >= 0 else traced(x)
    return like.with_values(
        jnp.broadcast_to(dense, count.mask.shape + np.broadcast_shapes(dense.shape, rest))
    )


def _listed(like: Masked, source: jax.Array, axis: int, exactly: bool = False) -> Masked:
    """The first entries of `source`, `[m, *rest]`, one for each place; where there are too few (or, `exactly`, too many), NaN."""
    if not jnp.issubdtype(source.dtype, jnp.inexact):
        raise ValueError(
            "a list of whole numbers goes to places that a mask picks: whether there are as many depends on data"
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
            raise ValueError("which entry of a mask it takes depends on data")
        place = axis if axis < data.axis else axis - 1
        values = jnp.take(data.values, indices, axis=data.mask.ndim + place, mode="fill")
        shift = np.ndim(indices) - 1 if axis < data.axis else 0
        known = is_static(indices) and data.columns is not None and len(data.rest) == 1
        columns = tuple(np.ravel(np.array(data.columns)[indices]).tolist()) if known else None
        return data.with_values(values, data.axis + shift, columns)
    axis = normalize_axis(node.attributes.get("axis", 0), np.ndim(data))
    lead = indices.mask.ndim
    places = data.shape[axis] == indices.mask.shape[0]
    if lead == 1 and places and indices.columns == (0,) and indices.rest == ():
        return indices.with_values(jnp.moveaxis(traced(data), axis, 0), axis)
    values = jnp.take(traced(data), indices.values, axis=axis, mode="fill")
    values = jnp.moveaxis(values, range(axis, axis + lead), range(lead))
    return indices.with_values(values, axis + indices.axis)


def _gather_nd(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    data, indices = inputs
    if isinstance(data, Masked) or node.attributes.get("batch_dims", 0) or indices.axis == indices.rank - 1:
        raise ValueError("it gathers from, or row by row along, entries that a mask picks")
    if indices.are_coordinates and data.shape[: indices.mask.ndim] == indices.mask.shape:
        return indices.with_values(traced(data))
    where = tuple(indices.values[..., column] for column in range(indices.rest[-1]))
    return indices.with_values(traced(data).at[where].get(mode="fill"))


def _scatter_nd(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    data, indices, updates = inputs
    reduction = node.attributes.get("reduction", "none")
    if isinstance(data, Masked) or not isinstance(indices, Masked) or indices.axis != 0 or indices.rank != 2:
        raise ValueError("it scatters to, or by other places than, entries that a mask picks")
    data = traced(data)
    if not isinstance(updates, Masked):
        updates = _listed(indices, traced(updates), 0, exactly=True)
    _one_mask([indices, updates])
    if updates.axis != 0:
        raise ValueError("its updates are not one for each entry")
    rest = data.shape[indices.rest[0] :]
    dense = jnp.broadcast_to(updates.values, indices.mask.shape + rest)
    if indices.are_coordinates and data.shape[: indices.mask.ndim] == indices.mask.shape:
        mask = indices.mask.reshape(indices.mask.shape + (1,) * len(rest))
        return jnp.where(mask, _COMBINED[reduction](data, dense), data)
    columns = [indices.values[..., column] for column in range(indices.rest[0])]
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
        raise ValueError("it sums over, or pairs, entries that a mask picks")
    return a.with_values(jnp.matmul(a.values, traced(b)))


def _gemm(m: Masking, node: Node, inputs: list[GraphValue]) -> Masked:
    a, b = inputs[:2]
    c = inputs[2] if len(inputs) > 2 else None
    plain = isinstance(a, Masked) and a.rank == 2 and a.axis == 0 and not node.attributes.get("transA")
    if not plain or isinstance(b, Masked) or isinstance(c, Masked):
        raise ValueError("it sums over, or pairs, entries that a mask picks")
    values = jnp.matmul(a.values, traced(b).T if node.attributes.get("transB") else traced(b))
    values = values * np.asarray(node.attributes.get("alpha", 1.0), values.dtype)
    if c is not None:
        scale = np.asarray(node.attributes.get("beta", 1.0), values.dtype)
        values = values + scale * _aligned(c, a, 2, 0)
    return a.with_values(values)


def _reduce(m: Masking, node: Node, inputs: list[GraphValue]) -> GraphValue:
    x: Masked = inputs[0]
    axes = m._axes(node)
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        raise ValueError("its axes depend on data")
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return x
    wanted = normalize_axes(axes, x.rank) if axes else tuple(range(x.rank))
    keep = bool(node.attributes.get("keepdims", 1))
    others = [axis if axis < x.axis else axis - 1 for axis in wanted if axis != x.axis]
    lead = x.mask.ndim
    dense = tuple(lead + place for place in others)
    reduction = _REDUCTIONS[node.op_type]
    if x.axis not in wanted:
        values = reduction(x.values, jnp.ones((), bool), dense, keep)
        gone = 0 if keep else sum(axis < x.axis for axis in wanted)
        return x.with_values(values, x.axis - gone)
    mask = x.mask.reshape(x.mask.shape + (1,) * len(x.rest))
    result = reduction(x.values, mask, (*range(lead), *dense), False)
    shape = [1 if axis in wanted else size for axis, size in enumerate(x.sizes) if keep or axis not in wanted]
    return jnp.reshape(result, shape)


Reduction = Callable[[Any, Any, Shape, bool], Any]
"""(values, which of them count, axes, whether these stay as ones) -> the reduced values."""


def _sum_of(before: Callable[[Any], Any], after: Callable[[Any], Any] = lambda total: total) -> Reduction:
    def reduce(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
        picked = jnp.where(mask, before(values), jnp.zeros((), values.dtype))
        return after(jnp.sum(picked, axes, dtype=values.dtype, keepdims=keep))

    return reduce


def _mean(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError("the mean of whole numbers that a mask picks")
    count = jnp.sum(jnp.broadcast_to(mask, values.shape), axes, dtype=values.dtype, keepdims=keep)
    return _sum_of(lambda x: x)(values, mask, axes, keep) / count


def _product(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    return jnp.prod(
        jnp.where(mask, values, jnp.ones((), values.dtype)), axes, dtype=values.dtype, keepdims=keep
    )


def _extreme(function: Any, largest: bool) -> Reduction:
    def reduce(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
        if jnp.issubdtype(values.dtype, jnp.floating):
            neutral: Any = -jnp.inf if largest else jnp.inf
        else:
            limits = jnp.iinfo(values.dtype)
            neutral = limits.min if largest else limits.max
        return function(jnp.where(mask, values, jnp.asarray(neutral, values.dtype)), axes, keepdims=keep)

    return reduce


def _log_sum_exp(values: Any, mask: Any, axes: Shape, keep: bool) -> Any:
    return jax.nn.logsumexp(
        values, axes, b=jnp.broadcast_to(mask, values.shape).astype(values.dtype), keepdims=keep
    )


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum_of(lambda x: x),
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extreme(jnp.max, True),
    "ReduceMin": _extreme(jnp.min, False),
    "ReduceL1": _sum_of(jnp.abs),
    "ReduceL2": _sum_of(jnp.square, jnp.sqrt),
    "ReduceSumSquare": _sum_of(jnp.square),
    "ReduceLogSum": _sum_of(lambda x: x, jnp.log),
    "ReduceLogSumExp": _log_sum_exp,
}
_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    ]
)


def _count(m: Masking, node: Node) -> list[int | Count] | None:
    """The sum over a mask that was cast to numbers."""
    name = mask_of_count(m.makers, node)
    value = m.env.get(name) if name is not None else None
    if (
        name is None
        or value is None
        or isinstance(value, Masked)
        or getattr(value, "dtype", None) != np.bool_
    ):
        return None
    return [Count(value, m.mask_key(name, np.shape(value)))] if np.size(m.env[node.outputs[0]]) == 1 else None


def _shape_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    x = m.env.get(node.inputs[0])
    if not isinstance(x, Masked):
        return None
    return x.sizes[node.attributes.get("start", 0) : node.attributes.get("end")]


def _concat_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    parts = [m.sizes(name) for name in node.inputs]
    return None if None in parts else [size for part in parts for size in part or ()]


def _gather_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    sizes, indices = m.sizes(node.inputs[0]), m.env.get(node.inputs[1])
    return [sizes[index] for index in ints(indices)] if sizes is not None and is_static(indices) else None


def _slice_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    sizes = m.sizes(node.inputs[0])
    bounds = [m.env.get(name) for name in node.inputs[1:] if name]
    if sizes is None or not is_static(bounds) or len(bounds) < 2:
        return None
    step = ints(bounds[3])[0] if len(bounds) > 3 else 1
    return sizes[ints(bounds[0])[0] : ints(bounds[1])[0] : step]


def _same_sizes(m: Masking, node: Node) -> list[int | Count] | None:
    return m.sizes(node.inputs[0])


_SIZES: dict[str, Callable[[Masking, Node], list[int | Count] | None]] = {
    "ReduceSum": _count,
    "Shape": _shape_sizes,
    "Concat": _concat_sizes,
    "Gather": _gather_sizes,
    "Slice": _slice_sizes,
    **dict.fromkeys(("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"), _same_sizes),
}
"""How a tensor of lengths follows from other ones."""
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
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
