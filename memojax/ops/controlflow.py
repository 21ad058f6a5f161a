"""If, Loop and Scan: run while tracing if possible, else `lax.cond`, `lax.scan` and `lax.while_loop`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._types import GraphValue
from ..errors import LimitError, LoweringError
from . import inline as rolled
from ._common import cast, is_static, normalize_axis, nx, scalar, traced
from .registry import op
from .trips import Trips, most, nested
from .trips import check as check_trips

UNROLLED = 8
"""A loop of up to this many steps is unrolled: XLA fuses across steps, and the step number stays static."""

MAX_UNROLLED = 1024
"""A longer loop is not unrolled, even if nothing else can lower it."""

MAX_FOLDED = 1 << 20
"""The longest loop over static values that runs while tracing."""

_ENDLESS = 1 << 63

Result = TypeVar("Result")


class _Varies(ValueError):
    """An XLA loop cannot carry the state at `places`; if `curable`, it can once that state is traced."""

    def __init__(self, places: Iterable[int], curable: bool = True):
        self.places = tuple(places)
        self.curable = curable
        super().__init__(
            f"state {', '.join(map(str, self.places))} of the loop changes its shape, dtype or structure "
            "from step to step"
        )


class _DataDependent(Exception):
    """A loop's condition depends on data."""


def _outputs_may_differ(node: Any) -> bool:
    """Whether the branches of an If declare different outputs, which one XLA value cannot hold."""

    def differ(one: Any, other: Any) -> bool:
        if "optional" in (one.kind, other.kind) or (
            one.shape is not None and other.shape is not None and len(one.shape) != len(other.shape)
        ):
            return True
        dims = zip(one.shape or (), other.shape or (), strict=False)
        return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in dims)

    then, other = (node.attributes[name].outputs for name in ("then_branch", "else_branch"))
    return any(differ(*pair) for pair in zip(then, other, strict=False))


@op("If", static=("cond",), static_if=_outputs_may_differ)
def if_(cond: GraphValue, *, then_branch: Any, else_branch: Any, trips: Trips) -> tuple[GraphValue, ...]:
    """Run one of two subgraphs; if the condition is known while tracing, only that one is traced.

    https://onnx.ai/onnx/operators/onnx__If.html
    """
    if is_static(cond):
        return then_branch() if scalar(cond) else else_branch()
    seen: list[Any] = []
    # Both branches start from the same count of trips, and the count of the branch that ran is carried on.
    counts = then_branch.loops or else_branch.loops
    before = trips.start() if counts else None

    def branch(body: Any) -> Callable[[], Any]:
        def run() -> Any:
            trips.used = before
            outputs = _strong(body())
            seen.append(_types(outputs))
            if seen[0] != seen[-1]:
                raise ValueError(
                    f"the branches return {seen[0]} and {seen[-1]}, so the output's shape depends on data"
                )
            return outputs, trips.start() if counts else ()

        return run

    around = trips.used
    with trips.kept():
        outputs, used = rolled.cond(
            jnp.reshape(cond, ()).astype(bool), branch(then_branch), branch(else_branch)
        )
    trips.used = used if counts else around
    return outputs


def _grows(node: Any) -> bool:
    """Whether a Loop stacks outputs or carries sequences, so its number of steps decides a shape."""
    body = node.attributes["body"]
    return len(body.outputs) > len(body.inputs) - 1 or any(
        value.kind in ("sequence", "optional") for value in body.inputs
    )


@op("Loop", static=("M", "cond"), static_if=_grows)
def loop(
    M: GraphValue = None, cond: GraphValue = None, *v_initial: GraphValue, body: Any, trips: Trips
) -> tuple[GraphValue, ...]:
    """Run a subgraph at most `M` times, while a condition holds.

    A condition may depend on data if the loop has no scan outputs, and its state keeps its shapes.

    https://onnx.ai/onnx/operators/onnx__Loop.html
    """
    n_scans = body.n_outputs - 1 - len(v_initial)
    key = body.new_key()

    def step(
        i: GraphValue, state: Sequence[GraphValue], _: Any
    ) -> tuple[GraphValue, list[GraphValue], list[GraphValue]]:
        going, *rest = body(i, np.True_, *state, key=_fold(key, i))
        return going, rest[: len(state)], rest[len(state) :]

    if is_static(M, cond):
        most_trips = (
            0 if cond is not None and not scalar(cond) else _ENDLESS if M is None else max(0, scalar(M))
        )
        try:
            with trips.kept():
                foldable = is_static(v_initial, body.captured)
                return _counted(step, v_initial, most_trips, n_scans, foldable, trips if body.loops else None)
        except _DataDependent:
            pass
    if n_scans:
        raise ValueError("the number of steps depends on data, and so does the shape of the scan outputs")
    with trips.kept():
        return _while(step, v_initial, M, cond, trips)


Step = Callable[
    [GraphValue, Sequence[GraphValue], Any], tuple[GraphValue, list[GraphValue], list[GraphValue]]
]
"""(step number, state, slices of the scan inputs) -> (whether to go on, next state, outputs to stack)."""


def _counted(
    step: Step,
    state: Sequence[GraphValue],
    trips: int,
    n_scans: int,
    foldable: bool,
    counter: Trips | None,
    slices: Sequence[GraphValue] = (),
) -> tuple[GraphValue, ...]:
    """Final state and stacked outputs of a loop with a static limit.

    It tries the cheapest way first: run the loop while tracing, unroll a short one, then `lax.scan`, and
    unroll a long one only if `lax.scan` cannot express it.

    Args:
        step: the body.
        state: the initial state.
        trips: the limit of the number of steps.
        n_scans: the number of stacked outputs.
        foldable: whether all values that the loop reads are static.
        counter: the trips of loops in the body; None if there are none.
        slices: scan inputs, with the steps on axis 0.

    Raises:
        _DataDependent: the condition depends on data.
    """
    if trips == 0:
        with (counter or Trips()).apart():
            return (*state, *_no_rows(step, state, n_scans, slices))
    if foldable and (result := _folded(step, state, trips, n_scans, slices)) is not None:
        return result
    if trips <= UNROLLED:
        return _unrolled(step, state, trips, n_scans, slices)
    try:
        with (counter or Trips()).kept():
            return _scanned(step, state, trips, slices, counter)
    except (_Varies, _DataDependent, LoweringError) as cause:
        if isinstance(cause, LimitError):
            raise
        # In an unrolled loop the step number is static, and so may be the shapes or the condition.
        if not n_scans if isinstance(cause, _DataDependent) else trips > MAX_UNROLLED:
            raise
    return _unrolled(step, state, trips, n_scans, slices)


def _folded(
    step: Step, state: Sequence[GraphValue], trips: int, n_scans: int, slices: Sequence[GraphValue]
) -> tuple[GraphValue, ...] | None:
    """The result of a loop that runs while tracing; None if a value of it depends on data."""
    try:
        return _unrolled(step, state, trips, n_scans, slices, limit=MAX_FOLDED, fold=True)
    except _DataDependent:
        return None


def _unrolled(
    step: Step,
    state: Sequence[GraphValue],
    trips: int,
    n_scans: int,
    slices: Sequence[GraphValue],
    limit: int = MAX_UNROLLED,
    fold: bool = False,
) -> tuple[GraphValue, ...]:
    """The loop unrolled; with `fold`, all values must be static.

    Raises:
        _DataDependent: the condition depends on data, or with `fold` another value does.
        TripCountError: the loop takes more trips than it may; a loop over slices ends by itself.
    """
    rows: list[list[GraphValue]] = []
    for i in range(trips):
        if not slices:
            check_trips(i + 1)
        going, state, outputs = step(np.asarray(i, np.int64), state, [x[i] for x in slices])
        if not is_static(going) or (fold and not is_static(state, outputs)):
            raise _DataDependent
        rows.append(outputs)
        if not scalar(going):
            break
        if i >= limit:
            raise ValueError(f"the loop takes more than {limit:,} steps, which is too many to unroll")
    return (*state, *(nx.stack(column) for column in zip(*rows, strict=True))) if n_scans else tuple(state)


@dataclass(frozen=True)
class _Kept:
    """The part of a loop's state that is static and never changes; an XLA loop carries the rest.

    Attributes:
        fixed: position in the state -> value.
        size: number of values in the state.
    """

    fixed: dict[int, GraphValue]
    size: int

    def join(self, carried: Sequence[GraphValue]) -> list[GraphValue]:
        """The whole state."""
        moving = iter(carried)
        return [self.fixed[k] if k in self.fixed else next(moving) for k in range(self.size)]

    def moving(self, before: Sequence[GraphValue], after: Sequence[GraphValue]) -> list[GraphValue]:
        """The part of a new state that the loop carries.

        Raises:
            _Varies: a static value changes, or a traced value changes its shape, dtype or structure.
        """
        if changed := [k for k in self.fixed if not _equal(before[k], after[k])]:
            raise _Varies(changed, curable=all(_traceable(self.fixed[k]) for k in changed))
        moving = {k: _strong(value) for k, value in enumerate(after) if k not in self.fixed}
        if unlike := [k for k, value in moving.items() if _types(before[k]) != _types(value)]:
            raise _Varies(unlike, curable=False)
        return list(moving.values())


def _settled(state: Sequence[GraphValue], run: Callable[[_Kept, list[GraphValue]], Result]) -> Result:
    """The result of `run` with as much of the state static as the steps leave unchanged.

    `run` gets the static part and the part to carry. Each time that it finds a static value which changes, it
    runs again with that value traced.

    Raises:
        _Varies: the state cannot be carried.
    """
    fixed = {k: value for k, value in enumerate(state) if is_static(value)}
    while True:
        try:
            return run(
                _Kept(fixed, len(state)), [_strong(value) for k, value in enumerate(state) if k not in fixed]
            )
        except _Varies as cause:
            if not cause.curable:
                raise
            fixed = {k: value for k, value in fixed.items() if k not in cause.places}


def _scanned(
    step: Step, state: Sequence[GraphValue], trips: int, slices: Sequence[GraphValue], counter: Trips | None
) -> tuple[GraphValue, ...]:
    """The loop as one `lax.scan`."""
    if trips > most() and not slices:
        raise _DataDependent
    used = counter.start() if counter is not None else ()

    def run(kept: _Kept, carried: list[GraphValue]) -> tuple[GraphValue, ...]:
        def one(carry: Any, x: tuple[GraphValue, list[GraphValue]]) -> tuple[Any, list[GraphValue]]:
            # Loops in the body count their trips in the carry of this loop.
            before = kept.join(carry[1])
            if counter is not None:
                counter.used = carry[0]
            going, after, outputs = step(x[0], before, x[1])
            if not is_static(going) or not scalar(going):
                raise _DataDependent
            now = counter.start() if counter is not None else ()
            return (now, kept.moving(before, after)), _strong(outputs)

        steps = (jnp.asarray(np.arange(trips)), list(map(traced, slices)))
        with nested(trips):
            (now, final), stacked = rolled.scan(one, (used, carried), steps)
        if counter is not None:
            counter.used = now
        return (*kept.join(final), *stacked)

    return _settled(state, run)


def _while(
    step: Step, state: Sequence[GraphValue], M: GraphValue, cond: GraphValue, counter: Trips
) -> tuple[GraphValue, ...]:
    """The loop as one `lax.while_loop`."""
    # ONNX counts in int64, which a caller's trace without x64 does not have.
    first = traced(cast(np.asarray(0), np.int64))
    limit = np.iinfo(first.dtype).max
    last = limit if M is None else min(scalar(M), limit) if is_static(M) else jnp.reshape(M, ())
    start = jnp.asarray(True) if cond is None else jnp.reshape(traced(cond), ()).astype(bool)
    used, allowed = counter.start(), most()

    def run(kept: _Kept, carried: list[GraphValue]) -> tuple[GraphValue, ...]:
        def one(
            carry: tuple[GraphValue, GraphValue, GraphValue, list[GraphValue]],
        ) -> tuple[GraphValue, GraphValue, GraphValue, list[GraphValue]]:
            i, _, counter.used, moving = carry
            before = kept.join(moving)
            going, after, _ = step(i, before, ())
            if M is None and is_static(going) and scalar(going):
                raise ValueError(
                    "the loop never ends: it has no maximum trip count, and its condition is always true"
                )
            on = jnp.reshape(traced(going), ()).astype(bool)
            return i + 1, on, counter.start() + 1, kept.moving(before, after)

        def goes_on(carry: Any) -> Any:
            return carry[1] & (carry[0] < last) & (carry[2] <= allowed)

        _, _, counter.used, final = rolled.while_loop(goes_on, one, (first, start, used, carried))
        return tuple(kept.join(final))

    try:
        return _settled(state, run)
    except _Varies as cause:
        raise ValueError(f"{cause}, while the number of steps depends on data") from cause


def _types(x: GraphValue) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x)


def _traceable(x: GraphValue) -> bool:
    return all(leaf.dtype != object for leaf in jax.tree.leaves(x)) and x is not None


def _equal(one: GraphValue, other: GraphValue) -> bool:
    if not is_static(one, other) or type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other or (one is not None and one.dtype == other.dtype and np.array_equal(one, other))


def _no_rows(
    step: Step, state: Sequence[GraphValue], n_scans: int, slices: Sequence[GraphValue]
) -> list[GraphValue]:
    """Stacked outputs of a loop without steps."""
    if not n_scans:
        return []
    row = [np.zeros(x.shape[1:], x.dtype) for x in slices]
    shapes = jax.eval_shape(lambda: [traced(x) for x in step(np.asarray(0), state, row)[2]])
    return [jnp.zeros((0, *shape.shape), shape.dtype) for shape in shapes]


def _fold(key: jax.Array | None, i: GraphValue) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, i)


def _strong(x: GraphValue) -> GraphValue:
    """`x` traced, without weak types, whose dtypes could change from step to step."""
    return jax.tree.map(lambda leaf: lax.convert_element_type(traced(leaf), traced(leaf).dtype), x)


@op("Scan", since=9)
def scan(
    *initial_state_and_scan_inputs: GraphValue,
    num_scan_inputs: int,
    body: Any,
    scan_input_axes: tuple[int, ...] = (),
    scan_input_directions: tuple[int, ...] = (),
    scan_output_axes: tuple[int, ...] = (),
    scan_output_directions: tuple[int, ...] = (),
    trips: Trips,
) -> tuple[GraphValue, ...]:
    """Run a subgraph, with state, along an axis of its scan inputs.

    https://onnx.ai/onnx/operators/onnx__Scan.html
    """
    n_states = len(initial_state_and_scan_inputs) - num_scan_inputs
    state, xs = initial_state_and_scan_inputs[:n_states], initial_state_and_scan_inputs[n_states:]
    axes = [
        normalize_axis(axis, x.ndim) for x, axis in zip(xs, scan_input_axes or [0] * len(xs), strict=True)
    ]
    if len(lengths := {x.shape[axis] for x, axis in zip(xs, axes, strict=True)}) != 1:
        raise ValueError(f"the scan inputs have {sorted(lengths)} steps, expected the same number in each")
    xs = [nx.moveaxis(x, axis, 0) if axis else x for x, axis in zip(xs, axes, strict=True)]
    xs = [
        nx.flip(x, 0) if back else x
        for x, back in zip(xs, scan_input_directions or [0] * len(xs), strict=True)
    ]
    n_scans = body.n_outputs - n_states
    key = body.new_key()

    def step(
        i: GraphValue, state: Sequence[GraphValue], slices: Sequence[GraphValue]
    ) -> tuple[GraphValue, list[GraphValue], list[GraphValue]]:
        outputs = list(body(*state, *slices, key=_fold(key, i)))
        return np.True_, outputs[:n_states], outputs[n_states:]

    static = is_static(state, xs, body.captured)
    with trips.kept():
        counter = trips if body.loops else None
        results = _counted(step, state, lengths.pop(), n_scans, static, counter, xs)
    scans = results[n_states:]
    scans = [
        nx.flip(y, 0) if back else y
        for y, back in zip(scans, scan_output_directions or [0] * n_scans, strict=True)
    ]
    places = [
        normalize_axis(axis, y.ndim) for y, axis in zip(scans, scan_output_axes or [0] * n_scans, strict=True)
    ]
    return (
        *results[:n_states],
        *(nx.moveaxis(y, 0, axis) if axis else y for y, axis in zip(scans, places, strict=True)),
    )


@op("Scan", since=8, until=9)
def scan_batched(
    sequence_lens: GraphValue,
    *initial_state_and_scan_inputs: GraphValue,
    num_scan_inputs: int,
    body: Any,
    directions: tuple[int, ...] = (),
    trips: Trips,
) -> tuple[GraphValue, ...]:
    """Version 8 of Scan: along axis 1, for each row of a batch, up to the row's own length.

    After the end of a row, its outputs are 0, and its state stays as it is.

    https://onnx.ai/onnx/operators/onnx__Scan.html
    """
    n_states = len(initial_state_and_scan_inputs) - num_scan_inputs
    batch, steps = initial_state_and_scan_inputs[-1].shape[:2]
    back = directions or (0,) * num_scan_inputs
    lengths = jnp.full(batch, steps) if sequence_lens is None else traced(sequence_lens)

    before = trips.start() if body.loops else None

    def row(length: GraphValue, *values: GraphValue) -> tuple[Any, Any]:
        trips.used = before
        xs = [_reverse(x, length) if flip else x for x, flip in zip(values[n_states:], back, strict=True)]

        def step(
            i: GraphValue, state: Sequence[GraphValue], slices: Sequence[GraphValue]
        ) -> tuple[GraphValue, list[GraphValue], list[GraphValue]]:
            outputs = body(*state, *slices)
            inside = i < length
            kept = [jnp.where(inside, new, old) for new, old in zip(outputs[:n_states], state, strict=True)]
            return np.True_, kept, [jnp.where(inside, y, jnp.zeros_like(y)) for y in outputs[n_states:]]

        counter = trips if body.loops else None
        results = _counted(step, values[:n_states], steps, body.n_outputs - n_states, False, counter, xs)
        return results, trips.start() if body.loops else ()

    around = trips.used
    with trips.kept():
        results, used = jax.vmap(row)(lengths, *map(traced, initial_state_and_scan_inputs))
    trips.used = jnp.max(used) if body.loops else around
    return results


def _reverse(x: GraphValue, length: GraphValue) -> GraphValue:
    """The first `length` rows of `x` in reverse order, the others after them."""
    i = jnp.arange(x.shape[0])
    return x[jnp.where(i < length, length - 1 - i, i)]
