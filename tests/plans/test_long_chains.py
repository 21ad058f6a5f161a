"""Plans of long chains of light steps: cut into calls, and right."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax.errors import LimitError
from memojax.plans.hoist import Residual
from memojax.plans.long_chains import cut, longest
from memojax.xla import limits
from memojax.xla.pieces import LONG_CHAIN, PIECE
from tests.system import odd_models

X = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]], np.float32)


def traced(length: int, product_every: int = 0) -> Residual:
    def fn(weights: jax.Array, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        value = inputs["x"]
        for step in range(length):
            value = jnp.tanh(value)
            if product_every and step % product_every == 0:
                value = value @ weights
        return {"y": value}

    typed = memojax.TypedModel.from_function(fn, np.eye(4, dtype=np.float32), {"x": ((4,), np.float32)})
    return memojax.load(typed)._engine._compiler.trace(2)


def refused_whole(file: bytes) -> None:
    """Check that `run` and `to_jax`, for which XLA compiles the whole graph, refuse it for its steps."""
    with pytest.raises(LimitError, match=limits.COMPILED.variable):
        memojax.run(file, {"x": X})
    fn, params = memojax.to_jax(file)
    with pytest.raises(LimitError, match=limits.COMPILED.variable):
        jax.jit(fn)(params, {"x": X})


def test_only_long_chains_are_cut() -> None:
    assert cut(traced(LONG_CHAIN // 2)) is None
    assert cut(traced(LONG_CHAIN + 200, product_every=50)) is None
    pieces = cut(traced(LONG_CHAIN + 200))
    assert pieces is not None
    assert len(pieces.steps) < (LONG_CHAIN + 200) / PIECE + 2


def test_a_product_ends_a_chain() -> None:
    assert longest(traced(100).steps) == 100
    assert longest(traced(100, product_every=10).steps) <= 11


def test_a_model_in_pieces_gives_the_numbers_of_numpy() -> None:
    wanted = X.copy()
    for step in range(LONG_CHAIN + 500):
        wanted = (np.negative, np.abs, np.tanh)[step % 3](wanted)
    found = memojax.load(odd_models.chain(LONG_CHAIN + 500).SerializeToString()).infer_arrays({"x": X})["y"]
    np.testing.assert_allclose(found, X + wanted, rtol=1e-4)


def test_an_executable_has_a_limit_on_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    file = odd_models.chain(60).SerializeToString()
    monkeypatch.setenv(limits.COMPILED.variable, "50")
    refused_whole(file)
    with pytest.raises(LimitError, match=limits.COMPILED.variable):
        memojax.load(file).infer_arrays({"x": X})
    monkeypatch.setenv(limits.COMPILED.variable, "100")
    memojax.run(file, {"x": X})


def test_many_products_are_refused_where_no_kernels_run_them() -> None:
    """XLA:CPU compiles a product in 8 ms, so 2,000 took a quarter of a minute."""
    names = ["x", *(f"v{step}" for step in range(1999)), "y"]
    nodes = [odd_models.node("MatMul", [read, "w"], [made]) for read, made in itertools.pairwise(names)]
    file = odd_models.model(nodes, w=np.eye(4, dtype=np.float32)).SerializeToString()
    refused_whole(file)


def test_code_compiled_as_a_whole_comes_in_pieces() -> None:
    file = odd_models.chain(400).SerializeToString()
    wanted = X.copy()
    for step in range(400):
        wanted = (np.negative, np.abs, np.tanh)[step % 3](wanted)
    fn, params = memojax.to_jax(file)
    lowered = jax.jit(fn).lower(params, {"x": X})
    assert lowered.as_text().count("call @piece") >= 400 // PIECE
    for found in (jax.jit(fn)(params, {"x": X}), fn(params, {"x": X}), memojax.run(file, {"x": X})):
        np.testing.assert_allclose(found["y"], X + wanted, rtol=1e-4)
    many = jax.jit(jax.vmap(fn, (None, 0)))(params, {"x": X[:, None]})["y"]
    np.testing.assert_allclose(many[:, 0], X + wanted, rtol=1e-4)


def test_pieces_have_the_derivatives_of_the_whole() -> None:
    fn, params = memojax.to_jax(odd_models.chain(400).SerializeToString())
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)

    def total(given: jax.Array) -> jax.Array:
        return fn(params, {"x": given})["y"].sum()

    compiled = jax.jit(total)
    close = [
        (compiled(x + 0.01 * one) - compiled(x - 0.01 * one)) / 0.02
        for one in np.eye(8, dtype=np.float32).reshape(8, 2, 4)
    ]
    found = np.asarray(jax.jit(jax.grad(total))(x))
    np.testing.assert_allclose(found.ravel(), np.asarray(close), rtol=0.05, atol=0.05)


def test_a_chain_whose_values_are_read_again_is_cut() -> None:
    """XLA repeats such values in each fusion that reads them: 166 turns took it 22 s as a whole."""

    def fn(weights: jax.Array, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        value = inputs["x"]
        for _ in range(166):
            best = jnp.argmax(value, axis=-1, keepdims=True)
            value = value - jnp.take_along_axis(value, best, axis=-1)
        return {"y": value}

    typed = memojax.TypedModel.from_function(fn, np.eye(4, dtype=np.float32), {"x": ((4,), np.float32)})
    assert cut(memojax.load(typed)._engine._compiler.trace(2)) is not None


@pytest.mark.parametrize("kind", ["Loop", "If"])
def test_a_long_body_is_refused(kind: str) -> None:
    """XLA came to the end of its stack in a loop of 8,000 steps, which ends the process."""
    node = odd_models.node
    steps = [
        node(("Tanh", "Neg", "Abs")[step % 3], [f"v{step}" if step else "x"], [f"v{step + 1}"])
        for step in range(5000)
    ]
    steps.append(node("Add", ["v5000", "x"], ["end"]))
    if kind == "If":
        then = odd_models.body(steps, [], ["end"])
        other = odd_models.body([node("Abs", ["x"], ["other"])], [], ["other"])
        nodes = [node("ReduceMax", ["x"], ["most"], keepdims=0), node("Greater", ["most", "zero"], ["go"])]
        nodes.append(node("If", ["go"], ["y"], then_branch=then, else_branch=other))
    else:
        steps[0] = node("Tanh", ["s"], ["v1"])
        steps.append(node("Identity", ["c"], ["d"]))
        inputs = [("i", odd_models.INT64, []), ("c", odd_models.BOOL, []), ("s", odd_models.FLOAT, None)]
        nodes = [node("Loop", ["trips", "go", "x"], ["y"], body=odd_models.body(steps, inputs, ["d", "end"]))]
    weights = {"zero": np.float32(0)} if kind == "If" else {"trips": np.int64(300), "go": np.array(True)}
    file = odd_models.model(nodes, **weights).SerializeToString()
    refused_whole(file)
    with pytest.raises(LimitError, match=limits.COMPILED.variable):
        memojax.load(file).infer_arrays({"x": X})
