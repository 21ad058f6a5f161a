"""How rows lie in the results of JAX's primitives: one rule for each kind of primitive.

A rule gives a state for each result, or one for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .row_states import MIXED, Apart, Mixed, Rows, Same, State, joined, moved, reshaped, uniform_on

Rule: TypeAlias = "Callable[[Any, list[Apart], int], Sequence[State]]"
"""(equation, states of its operands, number of rows) -> states of its results."""


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a variable of a trace; empty if it is no array."""
    return tuple(getattr(var.aval, "shape", ()))


def with_units(state: State, shape: Sequence[int]) -> State:
    """A value is the same along an axis of one entry."""
    if not isinstance(state, Same) or 1 not in shape:
        return state
    return Same(state.uniform | {axis for axis, size in enumerate(shape) if size == 1})


def _elementwise(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    rank = len(shape_of(equation.outvars[0]))
    # A scalar has the same value everywhere, so it is uniform on the axes of the others.
    shown = [
        everywhere(rank) if not shape_of(var) and isinstance(state, Same) else state
        for var, state in zip(equation.invars, given, strict=True)
    ]
    return [joined(shown)]


def everywhere(rank: int) -> Same:
    """The state of a value whose entries are all the same."""
    return Same(frozenset(range(rank)))


def _each(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    return list(given)


def _broadcast(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, to, shape = given[0], equation.params["broadcast_dimensions"], equation.params["shape"]
    if isinstance(state, Rows):
        return [moved(state, to[state.axis])]
    kept = {at for axis, at in enumerate(to) if axis in state.uniform}
    return [Same(frozenset(kept | (set(range(len(shape))) - set(to))))]


def _reshape(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    return [reshaped(given[0], shape_of(equation.invars[0]), shape_of(equation.outvars[0]), n)]


def _transpose(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    order = list(equation.params["permutation"])
    state = given[0]
    if isinstance(state, Rows):
        return [moved(state, order.index(state.axis))]
    return [Same(frozenset(order.index(axis) for axis in state.uniform))]


def without(state: State, axes: Sequence[int]) -> State:
    """The state after `axes` are gone."""

    def new(axis: int) -> int:
        return axis - sum(gone < axis for gone in axes)

    if isinstance(state, Mixed):
        return state
    if isinstance(state, Rows):
        return MIXED if state.axis in axes else moved(state, new(state.axis))
    return Same(frozenset(new(axis) for axis in state.uniform if axis not in axes))


def _reduce(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    operands = [state for var, state in zip(equation.invars, given, strict=True) if shape_of(var)]
    return [without(joined(operands), equation.params["axes"])]


def _squeeze(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    return [without(given[0], equation.params["dimensions"])]


def _along(parameter: str) -> Rule:
    """The rule of operators that work along one axis or several, such as a sum so far."""

    def rule(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
        axes = equation.params[parameter]
        state = joined(given)
        if not isinstance(state, Same):
            return [MIXED if isinstance(state, Rows) and state.axis in np.atleast_1d(axes) else state]
        return [Same(state.uniform - {int(axis) for axis in np.atleast_1d(axes)})]

    return rule


def _dot(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    (contract, batch), ranks = (
        equation.params["dimension_numbers"],
        [len(shape_of(var)) for var in equation.invars],
    )
    free = [
        [axis for axis in range(ranks[side]) if axis not in contract[side] and axis not in batch[side]]
        for side in (0, 1)
    ]
    found: list[int] = []
    for side, state in enumerate(given):
        if not isinstance(state, Rows):
            continue
        if state.axis in contract[side]:
            return [MIXED]
        if state.axis in batch[side]:
            at = list(batch[side]).index(state.axis)
            other, there = given[1 - side], batch[1 - side][at]
            if other != moved(state, there) and not uniform_on(other, there):
                return [MIXED]
        else:
            if isinstance(given[1 - side], Rows):
                return [MIXED]
            at = len(batch[0]) + (len(free[0]) if side else 0) + free[side].index(state.axis)
        found.append(at)
    if not found:
        return [_dot_of_constants(given, batch, free)]
    state = next(state for state in given if isinstance(state, Rows))
    return [moved(state, found[0])]


def _dot_of_constants(given: list[Apart], batch: Any, free: Any) -> State:
    left, right = (state.uniform for state in given if isinstance(state, Same))
    kept = {at for at, (a, b) in enumerate(zip(*batch, strict=True)) if a in left and b in right}
    start = len(batch[0])
    kept |= {start + at for at, axis in enumerate(free[0]) if axis in left}
    kept |= {start + len(free[0]) + at for at, axis in enumerate(free[1]) if axis in right}
    return Same(frozenset(kept))


def _conv(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    numbers = equation.params["dimension_numbers"]
    rows, kernel = given
    if not isinstance(rows, Rows):
        return [MIXED if isinstance(kernel, Rows) else Same()]
    apart = rows.axis == numbers.lhs_spec[0] and equation.params["batch_group_count"] == 1
    return [moved(rows, numbers.out_spec[0]) if apart and isinstance(kernel, Same) else MIXED]


def _concatenate(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    axis = equation.params["dimension"]
    state = joined(given)
    if isinstance(state, Same):
        return [Same(state.uniform - {axis})]
    if state is MIXED or (isinstance(state, Rows) and state.axis != axis):
        return [state]
    parts = [part for part in given if isinstance(part, Rows)]
    # Several heads one after the other: each has all rows.
    return [
        Rows(axis, sum(part.outer for part in parts), parts[0].inner) if len(parts) == len(given) else MIXED
    ]


def _slice(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, p = given[0], equation.params
    if isinstance(state, Same):
        return [state]
    at, size = state.axis, shape_of(equation.invars[0])[state.axis]
    low, high = p["start_indices"][at], p["limit_indices"][at]
    step = 1 if p["strides"] is None else p["strides"][at]
    if (low, high, step) == (0, size, 1):
        return [state]
    block = n * state.inner
    if step == 1 and low % block == 0 and high % block == 0 and high > low:
        return [Rows(at, (high - low) // block, state.inner)]
    return [MIXED]


def _dynamic_slice(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, *places = given
    if any(isinstance(place, Rows) for place in places):
        return [MIXED]
    if isinstance(state, Same):
        sizes = equation.params["slice_sizes"]
        return [Same(state.uniform | {axis for axis, size in enumerate(sizes) if size == 1})]
    full = equation.params["slice_sizes"][state.axis] == shape_of(equation.invars[0])[state.axis]
    return [state if full else MIXED]


def _dynamic_update_slice(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, update, *places = given
    both = joined([state, update])
    if any(isinstance(place, Rows) for place in places):
        return [MIXED]
    if isinstance(both, Same):
        whole, part = shape_of(equation.invars[0]), shape_of(equation.invars[1])
        return [Same(frozenset(axis for axis in both.uniform if whole[axis] == part[axis]))]
    if both is MIXED or not isinstance(both, Rows):
        return [MIXED]
    full = shape_of(equation.invars[0])[both.axis] == shape_of(equation.invars[1])[both.axis]
    return [both if full else MIXED]


def _pad(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, filling = given
    padded = {
        axis
        for axis, (low, high, inside) in enumerate(equation.params["padding_config"])
        if low or high or inside
    }
    if isinstance(filling, Rows):
        return [MIXED]
    if isinstance(state, Same):
        return [Same(state.uniform - padded)]
    return [MIXED if isinstance(state, Rows) and state.axis in padded else state]


def _iota(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    rank = len(equation.params["shape"])
    return [Same(frozenset(range(rank)) - {equation.params["dimension"]})]


def _gather(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    operand, indices = given[:2]
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    source = shape_of(equation.invars[0])
    rank = len(shape_of(equation.outvars[0]))
    places = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    if isinstance(operand, Same):
        if isinstance(indices, Same):
            return [
                Same(
                    frozenset(
                        at
                        for axis, at in enumerate(places)
                        if axis in indices.uniform and not numbers.operand_batching_dims
                    )
                )
            ]
        if indices.axis in numbers.start_indices_batching_dims:
            pair = numbers.start_indices_batching_dims.index(indices.axis)
            if not uniform_on(operand, numbers.operand_batching_dims[pair]):
                return [MIXED]
        return [moved(indices, places[indices.axis])] if indices.axis < len(places) else [MIXED]
    at = operand.axis
    if at in numbers.operand_batching_dims:
        there = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(at)]
        if indices == moved(operand, there) or uniform_on(indices, there):
            return [moved(operand, places[there])]
        return [MIXED]
    if isinstance(indices, Rows) or sizes[at] != source[at]:
        return [MIXED]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if at in gone or at in numbers.start_index_map:
        return [MIXED]
    left = [axis for axis in range(len(source)) if axis not in gone]
    return [moved(operand, numbers.offset_dims[left.index(at)])]


def _scatter(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    operand, indices, updates = given
    numbers = equation.params["dimension_numbers"]
    target, given_shape = shape_of(equation.invars[0]), shape_of(equation.invars[2])
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    left = [axis for axis in range(len(target)) if axis not in gone]
    places = [axis for axis in range(len(given_shape)) if axis not in numbers.update_window_dims]

    def in_updates(axis: int) -> int | None:
        """The axis of the updates that goes along an axis of the operand, if its rows stay apart."""
        if axis in numbers.operand_batching_dims:
            return places[numbers.scatter_indices_batching_dims[numbers.operand_batching_dims.index(axis)]]
        if axis not in left or axis in numbers.scatter_dims_to_operand_dims:
            return None
        at = numbers.update_window_dims[left.index(axis)]
        return at if given_shape[at] == target[axis] else None

    if all(isinstance(state, Same) for state in given):
        return [Same()]
    for axis in range(len(target)):
        at = in_updates(axis)
        if at is None:
            continue
        batched = axis in numbers.operand_batching_dims
        there = places.index(at) if batched else None
        states = [state for state in given if isinstance(state, Rows)]
        first = states[0]
        fits = (
            (operand == moved(first, axis) or uniform_on(operand, axis))
            and (updates == moved(first, at) or uniform_on(updates, at))
            and (
                (indices == moved(first, there) or uniform_on(indices, there))
                if there is not None
                else isinstance(indices, Same)
            )
        )
        if fits:
            return [moved(first, axis)]
    return [MIXED]


def _tile(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, repeats = given[0], equation.params["reps"]
    if isinstance(state, Rows):
        return [Rows(state.axis, state.outer * repeats[state.axis], state.inner)]
    return [state]


def _stack(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, axis = joined(given), equation.params["axis"]
    if isinstance(state, Rows):
        return [moved(state, state.axis + (state.axis >= axis))]
    if state is MIXED or not isinstance(state, Same):
        return [MIXED]
    return [Same(frozenset(at + (at >= axis) for at in state.uniform))]


def _unstack(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    return [without(given[0], [equation.params["axis"]])] * len(equation.outvars)


def _sort(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state = joined(given)
    axis = equation.params["dimension"]
    if isinstance(state, Same):
        return [Same(state.uniform - {axis})] * len(given)
    return [MIXED if isinstance(state, Rows) and state.axis == axis else state] * len(given)


def _top_k(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    # JAX 0.8 has no such parameter, and its axis is the last one.
    axis = equation.params.get("axis", len(shape_of(equation.invars[0])) - 1)
    state = given[0]
    if isinstance(state, Rows):
        return [MIXED if state.axis == axis else state]
    return [Same(state.uniform - {axis})]


def _window(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, p = given[0], equation.params
    if not isinstance(state, Rows) or any(isinstance(other, Rows) for other in given[1:]):
        return [Same() if isinstance(state, Same) else MIXED]
    at = state.axis
    still = (
        p["window_dimensions"][at] == 1
        and p["window_strides"][at] == 1
        and tuple(p["padding"][at]) == (0, 0)
        and (p.get("base_dilation") or {at: 1})[at] == 1
    )
    return [state if still else MIXED]


def _split(equation: Any, given: list[Apart], n: int) -> Sequence[State]:
    state, axis = given[0], equation.params["axis"]
    return [MIXED if isinstance(state, Rows) and state.axis == axis else state] * len(equation.outvars)


_ELEMENTWISE = (
    "abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt "
    "ceil clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to erf erf_inv erfc "
    "exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log log1p "
    "logistic lt lt_to max min mul mulhi ne neg nextafter not or polygamma population_count pow real "
    "reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta"
)

FLAT_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("optimization_barrier", "name", "device_put"), _each),
    **dict.fromkeys(
        [f"reduce_{name}" for name in ("sum", "max", "min", "prod", "and", "or", "xor")], _reduce
    ),
    **dict.fromkeys(("argmax", "argmin"), _reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window
    ),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), _scatter
    ),
    "rev": _along("dimensions"),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "concatenate": _concatenate,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "iota": _iota,
    "gather": _gather,
    "sort": _sort,
    "top_k": _top_k,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
}
"""Primitive without a body -> how rows lie in its results."""
