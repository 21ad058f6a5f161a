"""Loops of known length run as programs, and give the numbers of XLA's loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import helper

from memojax.kernels.unroll import unrolled
from memojax.plans.hoist import Hoister

from ..helpers import mostly_slow
from .test_rewrite import agree, file, weight

TIMES, WIDTH, HIDDEN = 5, 7, 9


pytestmark = pytest.mark.usefixtures("with_kernels")


def recurrent(kind: str, direction: str, last: bool) -> bytes:
    """Observations of several times through a recurrent layer: its last state, or all states."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    ways = 2 if direction == "bidirectional" else 1
    weights = {
        "w": weight(ways, gates * HIDDEN, WIDTH),
        "r": weight(ways, gates * HIDDEN, HIDDEN),
        "b": weight(ways, 2 * gates * HIDDEN),
        "wo": weight(ways * HIDDEN, 3),
        "axes": np.array([0], np.int64),
    }
    attributes = {"hidden_size": HIDDEN, "direction": direction}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(kind, ["t", "w", "r", "b"], ["all", "end"], **attributes),
    ]
    if last:
        nodes.append(helper.make_node("Transpose", ["end"], ["flat"], perm=[1, 0, 2]))
    else:
        nodes.append(helper.make_node("Transpose", ["all"], ["flat"], perm=[2, 0, 1, 3]))
    weights["shape"] = np.array([0, -1], np.int64)
    nodes.append(helper.make_node("Reshape", ["flat", "shape"], ["rows"]))
    if last:
        nodes.append(helper.make_node("MatMul", ["rows", "wo"], ["y"]))
    else:
        nodes.append(helper.make_node("Tanh", ["rows"], ["y"]))
    return file(nodes, weights, {"x": [TIMES, WIDTH]}, ["y"])


@pytest.mark.parametrize("last", [True, False], ids=["last", "all"])
@pytest.mark.parametrize("direction", mostly_slow(["forward"], ["reverse", "bidirectional"]))
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_agree(kind: str, direction: str, last: bool) -> None:
    # Some layouts of all times' states stay with XLA.
    agree(recurrent(kind, direction, last), [1, 2, 5, 33], expects="kernels" if last else None)


def test_a_recurrent_layer_leaves_no_loop_to_xla() -> None:
    from memojax import load
    from memojax.kernels.direct import Direct
    from memojax.plans.compiler import PlanCompiler
    from memojax.xla.cpu_client import cpu_device

    compiler = PlanCompiler(load(recurrent("LSTM", "forward", True)).typed, cpu_device(), "constant")
    for size in (1, 8, 64):
        assert isinstance(compiler.lower(size).compile().executable.made.program, Direct), size


def split(function: Any, *shapes: tuple[int, ...]) -> Any:
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return Hoister([]).split(jax.make_jaxpr(function)(*given))


def test_written_out_loops_give_the_same_numbers() -> None:
    def function(x: Any, h: Any) -> tuple[Any, ...]:
        end, gathered = jax.lax.scan(lambda c, item: (jnp.tanh(c + item), (c * 2, item)), h, x, reverse=True)
        third, _ = jax.lax.scan(lambda c, item: (c + item, None), h, gathered[0])
        return end, *gathered, gathered[0][2], third

    made = unrolled(split(function, (4, 3), (3,)))
    assert made is not None
    residual, first = made
    names = [step.primitive.name for step in residual.steps]
    assert "scan" not in names
    assert all(
        number >= first for step in residual.steps if step.primitive.name == "tanh" for number in step.outputs
    )
    x, h = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((4, 3), (3,)))
    for given, expected in zip(residual([], [x, h]), function(x, h), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_a_long_loop_stays_a_loop() -> None:
    def function(x: Any, h: Any) -> Any:
        return jax.lax.scan(lambda c, item: (jnp.tanh(c + item), None), h, x)[0]

    assert unrolled(split(function, (2000, 3), (3,))) is None
    assert unrolled(split(lambda x: jnp.tanh(x), (3,))) is None
