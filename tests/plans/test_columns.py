"""Weight matrices of [outputs, inputs] are transposed once per load, and the numbers stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memojax import TypedModel
from memojax.plans import compiler as compilers
from memojax.plans.compiler import PlanCompiler
from memojax.plans.hoist import Residual
from memojax.xla.cpu_client import cpu_device

RNG = np.random.default_rng(0)
ROWS = (((1,), (1,)), ((), ()))


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "opened", lambda: None)


def recurrent(weights: str = "auto") -> PlanCompiler:
    """A product by rows of a matrix that also occurs by columns, and one by rows of another."""
    params = [(RNG.standard_normal(shape) / 4).astype(np.float32) for shape in ((20, 16), (24, 20))]

    def fn(given: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        first, second = given
        y = jnp.tanh(lax.dot_general(x["x"], first, ROWS))
        back = lax.dot_general(y, first, (((1,), (0,)), ((), ())))
        return {"y": lax.dot_general(y, second, ROWS), "back": back}

    typed = TypedModel.from_function(fn, params, {"x": ((16,), np.float32)})
    return PlanCompiler(typed, cpu_device(), weights)  # pyright: ignore[reportArgumentType]


def contracted(residual: Residual) -> list[int]:
    """The contracted axis of each product's second operand."""
    found = [step for step in residual.steps if step.primitive.name == "dot_general"]
    return [step.params["dimension_numbers"][0][1][0] for step in found]


def test_rows_become_columns() -> None:
    compiler = recurrent()
    residual = compiler.trace(3)
    assert contracted(residual) == [0, 0, 0]
    shapes = [value.shape for value in compiler.constants(residual)]
    assert sorted(shapes) == [(16, 20), (20, 16), (20, 24)]
    assert shapes == [residual.avals[number].shape for number in residual.leading]


def test_sizes_share_the_transposed_matrices() -> None:
    compiler = recurrent()
    one, other = (compiler.trace(size) for size in (1, 5))
    assert one.nodes == other.nodes
    held = compiler.constants(one)
    assert all(a is b for a, b in zip(held, compiler.constants(other), strict=True))


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_the_numbers_are_the_functions(weights: str) -> None:
    compiler = recurrent(weights)
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    run = compiler.lower(5).compile().executable.run
    wanted = jax.jit(compiler.typed.fn)(compiler.typed.params, [x], None)
    for given, expected in zip(run([x]), wanted, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_new_weights_are_transposed_as_well() -> None:
    compiler = recurrent("argument")
    plan = compiler.lower(2).compile()
    x = RNG.standard_normal((2, 16)).astype(np.float32)
    changed = jax.tree.map(lambda leaf: np.asarray(leaf * 3), compiler.typed.params)
    before = [value.copy() for value in plan.executable.run([x])]
    compiler.updating(compiler.typed.with_params(changed))()
    wanted = jax.jit(compiler.typed.fn)(changed, [x], None)
    for given, expected, old in zip(plan.executable.run([x]), wanted, before, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(given, old)


def test_a_matrix_in_order_stays() -> None:
    params = (RNG.standard_normal((16, 8)) / 4).astype(np.float32)
    typed = TypedModel.from_function(lambda w, x: {"y": x["x"] @ w}, params, {"x": ((16,), np.float32)})
    compiler = PlanCompiler(typed, cpu_device())
    (node,) = compiler.trace(2).nodes
    assert node.step is None
