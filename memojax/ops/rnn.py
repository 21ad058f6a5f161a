"""RNN, GRU and LSTM: one product for the inputs of all steps, then a scan over time (none for a single step).

A step takes a direction (0, or 1 for the second of a bidirectional node), the projected input at one
time, and the states `(batch, hidden)`. It returns the new states, the hidden state first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import inline as rolled
from ._common import is_static, traced
from .registry import op

_UNROLLED = 4
"""Up to this many steps are unrolled, which is faster for small batches, at some cost in compile time."""

Step = Callable[..., tuple[jax.Array, ...]]

Product = Callable[[Any, int], jax.Array]
"""Rows times the transposed weights of a direction."""

_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "elu": (lambda x, alpha: jnp.where(x < 0, alpha * jnp.expm1(x), x), (1.0,)),
    "hardsigmoid": (lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, alpha: jnp.where(x < 0, alpha * x, x), (0.01,)),
    "relu": (jax.nn.relu, ()),
    "scaledtanh": (lambda x, alpha, beta: alpha * jnp.tanh(beta * x), (1.0, 1.0)),
    "sigmoid": (jax.nn.sigmoid, ()),
    "softplus": (jax.nn.softplus, ()),
    "softsign": (jax.nn.soft_sign, ()),
    "tanh": (jnp.tanh, ()),
    "thresholdedrelu": (lambda x, alpha: jnp.where(x > alpha, x, jnp.zeros_like(x)), (1.0,)),
}
"""Lower-case name -> (function of x and perhaps alpha and beta, defaults of alpha and beta)."""


@op("RNN")
def rnn(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    output_sequence=0,
):
    """`h = f(x W + h R + b)` over time. https://onnx.ai/onnx/operators/onnx__RNN.html"""
    functions = _functions(activations, ("Tanh",), activation_alpha, activation_beta, len(w))

    def step(d: int, projected: Any, h: Any) -> tuple[jax.Array, ...]:
        (f,) = functions[d]
        return (f(_clipped(projected + _product(h, _at(r, d)), clip)),)

    return _run(
        step,
        x,
        _times(w),
        r.shape[::2],
        _joint_bias(b),
        sequence_lens,
        (initial_h,),
        direction,
        layout,
        hidden_size,
    )


@op("GRU")
def gru(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    linear_before_reset=0,
    output_sequence=0,
):
    """Gated recurrent unit.

    With `linear_before_reset`, the reset follows the product with R, as in Keras and PyTorch, so one product
    is enough.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    functions = _functions(activations, ("Sigmoid", "Tanh"), activation_alpha, activation_beta, len(w))
    hidden = r.shape[-1]
    bias, inner = (
        (_joint_bias(b), None) if not linear_before_reset or b is None else jnp.split(traced(b), 2, axis=1)
    )

    def step(d: int, projected: Any, h: Any) -> tuple[jax.Array, ...]:
        f, g = functions[d]
        weights, split = _at(r, d), 2 * hidden
        gates = _product(h, weights if linear_before_reset else weights[:split])
        if inner is not None:
            gates += _at(inner, d)[None]
        update, reset = jnp.split(f(_clipped(projected[:, :split] + gates[:, :split], clip)), 2, axis=1)
        candidate = reset * gates[:, split:] if linear_before_reset else _product(reset * h, weights[split:])
        new = g(_clipped(projected[:, split:] + candidate, clip))
        return ((1 - update) * new + update * h,)

    return _run(
        step, x, _times(w), r.shape[::2], bias, sequence_lens, (initial_h,), direction, layout, hidden_size
    )


@op("LSTM")
def lstm(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    p=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    input_forget=0,
    layout=0,
    output_sequence=0,
):
    """Long short-term memory, with peepholes `p`; `input_forget` couples the forget gate to the input gate.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    return lstm_of(
        x,
        _times(w),
        _times(r),
        r.shape[::2],
        b,
        sequence_lens,
        initial_h,
        initial_c,
        p,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=input_forget,
        layout=layout,
    )


def lstm_of(
    x: Any,
    by_w: Product,
    by_r: Product,
    sizes: Sequence[int],
    b: Any,
    sequence_lens: Any,
    initial_h: Any,
    initial_c: Any,
    p: Any,
    *,
    activation_alpha: Sequence[float],
    activation_beta: Sequence[float],
    activations: Sequence[str] | None,
    clip: float | None,
    direction: str,
    hidden_size: int | None,
    input_forget: int,
    layout: int,
) -> tuple[jax.Array, ...]:
    """LSTM with functions `by_w` and `by_r` for its products; `sizes` are (directions, hidden size)."""
    functions = _functions(
        activations, ("Sigmoid", "Tanh", "Tanh"), activation_alpha, activation_beta, sizes[0]
    )

    def step(d: int, projected: Any, h: Any, c: Any) -> tuple[jax.Array, ...]:
        f, g, last = functions[d]
        i, o, forget, cell = jnp.split(projected + by_r(h, d), 4, axis=1)
        peep_i, peep_o, peep_f = (None,) * 3 if p is None else jnp.split(_at(p, d)[None], 3, axis=1)

        def gate(values: Any, peephole: Any, cell: Any) -> jax.Array:
            return f(_clipped(values if peephole is None else values + peephole * cell, clip))

        i = gate(i, peep_i, c)
        forget = 1 - i if input_forget else gate(forget, peep_f, c)
        c = forget * c + i * g(_clipped(cell, clip))
        return gate(o, peep_o, c) * last(c), c

    return _run(
        step,
        x,
        by_w,
        sizes,
        _joint_bias(b),
        sequence_lens,
        (initial_h, initial_c),
        direction,
        layout,
        hidden_size,
    )


def _run(
    step: Step,
    x: Any,
    by_w: Product,
    sizes: Sequence[int],
    bias: Any,
    lens: Any,
    initial: Sequence[Any],
    direction: str,
    layout: int,
    hidden_size: int | None,
) -> tuple[jax.Array, ...]:
    """Y and the final states, from `step` in one or both directions."""
    directions, hidden = sizes
    reversed_by_direction = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(
        direction
    )
    if reversed_by_direction is None or len(reversed_by_direction) != directions:
        raise ValueError(f"direction is {direction!r}, but W has weights for {directions} direction(s)")
    if hidden_size not in (None, hidden):
        raise ValueError(f"hidden_size is {hidden_size}, but R has a hidden size of {hidden}")
    x = jnp.swapaxes(x, 0, 1) if layout else traced(x)
    for name, state in zip(("initial_h", "initial_c"), initial, strict=False):
        _check_state(name, state, (directions, x.shape[1], hidden), layout)
    if lens is not None and is_static(lens) and (lens == x.shape[0]).all():
        lens = None
    sequences, finals = [], []
    for d, backwards in enumerate(reversed_by_direction):
        projected = by_w(x, d)
        if bias is not None:
            projected += _at(bias, d)[None, None]
        shape = (x.shape[1], hidden)
        states = tuple(
            jnp.zeros(shape, x.dtype) if s is None else jnp.broadcast_to(_at(s, d, layout), shape)
            for s in initial
        )
        ys, states = _over_time(lambda p, *s, d=d: step(d, p, *s), projected, states, lens, backwards)
        sequences.append(jnp.swapaxes(ys, 0, 1) if layout else ys)
        finals.append(states)
    return jnp.stack(sequences, axis=2 if layout else 1), *(
        jnp.stack(state, axis=layout) for state in zip(*finals, strict=True)
    )


def _check_state(name: str, state: Any, wanted: tuple[int, int, int], layout: int) -> None:
    """Check a state before it is broadcast: another shape would give one agent's state to all of them.

    A state of one row is the zeros that an exporter wrote for its example of one row.
    """
    if state is None:
        return
    shape, (directions, batch, hidden) = np.shape(state), wanted
    expected = [(directions, rows, hidden) for rows in (batch, 1)]
    if layout:
        expected = [(rows, directions, hidden) for _, rows, _ in expected]
    if shape not in expected:
        raise ValueError(f"{name} has shape {list(shape)}, expected {list(expected[0])}")


def _over_time(
    step: Step, projected: jax.Array, states: tuple[Any, ...], lens: Any, backwards: bool
) -> tuple[Any, tuple[Any, ...]]:
    """Hidden states of all steps, and the last states.

    After the end of a shorter sequence, its states stay as they are, and its hidden states are zeros.
    """

    def advance(states: tuple[Any, ...], now: tuple[Any, Any]) -> tuple[tuple[Any, ...], Any]:
        time, given = now
        new = step(given, *states)
        if lens is None:
            return new, new[0]
        alive = (time < traced(lens))[:, None]
        new = tuple(jnp.where(alive, n, s) for n, s in zip(new, states, strict=True))
        return new, jnp.where(alive, new[0], jnp.zeros_like(new[0]))

    steps = projected.shape[0]
    if steps == 1:
        states, y = advance(states, (0, lax.squeeze(projected, (0,))))
        return y[None], states
    times = np.arange(steps, dtype=np.int32)
    unroll = steps if steps <= _UNROLLED else 1
    states, ys = rolled.scan(advance, states, (times, projected), reverse=backwards, unroll=unroll)
    return ys, states


def _functions(
    names: Sequence[str] | None,
    default: tuple[str, ...],
    alphas: Sequence[float],
    betas: Sequence[float],
    directions: int,
) -> list[list[Callable[[Any], Any]]]:
    """Activations of each direction; alphas and betas go in order to activations that take them.

    Raises:
        ValueError: an activation is unknown, or there are too few.
    """
    names = names or default * directions
    if len(names) < len(default) * directions:
        raise ValueError(
            f"activations has {list(names)}, expected {len(default)} for each of {directions} direction(s)"
        )
    given, found = (iter(alphas), iter(betas)), []
    for name in names[: len(default) * directions]:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"activation {name!r} is unknown, expected one of {', '.join(_ACTIVATIONS)}")
        function, defaults = _ACTIVATIONS[name.lower()]
        arguments = [next(values, standard) for values, standard in zip(given, defaults, strict=False)]
        found.append(lambda x, function=function, arguments=arguments: function(x, *arguments))
    return [found[start : start + len(default)] for start in range(0, len(found), len(default))]


def _times(weights: Any) -> Product:
    return lambda x, d: _product(x, _at(weights, d))


def _product(x: Any, weights: Any) -> jax.Array:
    """`x @ weights.T`, without a transpose."""
    return lax.dot_general(x, weights, (((x.ndim - 1,), (1,)), ((), ())))


def _at(values: Any, direction: int, axis: int = 0) -> jax.Array:
    return lax.index_in_dim(values, direction, axis, keepdims=False)


def _clipped(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


def _joint_bias(b: Any) -> Any:
    """The sum of input and recurrent bias."""
    return None if b is None else sum(jnp.split(traced(b), 2, axis=1))
