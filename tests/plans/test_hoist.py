"""Work on weights alone is taken out of a traced function, and done once for all batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memojax.lowering.typed_model import TypedModel
from memojax.plans.hoist import Hoister, Residual, evaluate

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 3)).astype(np.float32)
B = RNG.standard_normal(5).astype(np.float32)
ROWS = RNG.standard_normal((4, 3)).astype(np.float32)


def split(hoister: Hoister, fn: Callable[..., Any], *rows: Any) -> Residual:
    return hoister.split(jax.make_jaxpr(fn)(*hoister.leaves, *rows))


def check(fn: Callable[..., Any], leaves: list[np.ndarray], *rows: np.ndarray) -> Residual:
    """Check that the split function equals the whole one; returns the residual."""
    hoister = Hoister(leaves)
    residual = split(hoister, fn, *rows)
    results = jax.jit(lambda leading, rows: residual(leading, rows))(hoister.values(residual.nodes), rows)
    for result, expected in zip(results, jax.tree.leaves(jax.jit(fn)(*leaves, *rows)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    return residual


def names(residual: Residual) -> list[str]:
    return [step.primitive.name for step in residual.steps]


def gemm(w: Any, b: Any, x: Any) -> Any:
    return (x @ w.T + b,)


def test_transposes_are_hoisted_and_broadcasts_to_the_batch_stay() -> None:
    residual = check(gemm, [W, B], ROWS)
    assert "transpose" not in names(residual)
    assert names(residual)[0] == "dot_general"
    assert {node.step.primitive.name if node.step else "weight" for node in residual.nodes} <= {
        "weight",
        "transpose",
        "broadcast_in_dim",
    }
    assert sum(value.size for value in Hoister([W, B]).values(residual.nodes)) == W.size + B.size


def test_batch_norm_becomes_scale_and_shift() -> None:
    def norm(scale: Any, bias: Any, mean: Any, var: Any, x: Any) -> Any:
        factor = scale / jnp.sqrt(var + 1e-5)
        return (x * factor + (bias - mean * factor),)

    leaves = [RNG.random(3).astype(np.float32) + 0.5 for _ in range(4)]
    residual = check(norm, leaves, ROWS)
    assert set(names(residual)) <= {"broadcast_in_dim", "mul", "add"}
    assert len(residual.nodes) == 2


def test_all_sizes_share_hoisted_values() -> None:
    hoister = Hoister([W, B])
    nodes = [split(hoister, gemm, np.zeros((n, 3), np.float32)).nodes for n in (2, 5, 64)]
    assert nodes[0] == nodes[1] == nodes[2]
    first, again = hoister.values(nodes[0]), hoister.values(nodes[2])
    assert all(a is b for a, b in zip(first, again, strict=True) if a is not B)


def test_steps_inside_nested_jits_are_hoisted() -> None:
    inner = jax.jit(lambda w: jnp.square(w).T)
    residual = check(lambda w, x: (jax.jit(lambda a, b: a @ inner(b))(x, w),), [W], ROWS)
    assert names(residual) == ["dot_general"]


def test_a_step_that_enlarges_weights_is_not_hoisted() -> None:
    residual = check(lambda b, x: (jnp.broadcast_to(b, (1000, 5)).sum() + x,), [B], ROWS)
    assert [value.size for value in Hoister([B]).values(residual.nodes)] == [B.size]
    assert "reduce_sum" in names(residual)


def test_unused_weights_are_dropped() -> None:
    residual = check(lambda w, b, x: (x * 2,), [W, B], ROWS)
    assert residual.nodes == ()


def test_outputs_that_are_inputs_or_weights_are_copies() -> None:
    residual = check(lambda b, x: (x, b, x + 1), [B], ROWS)
    jaxpr = jax.make_jaxpr(lambda leading, rows: residual(leading, rows))([B], [ROWS])
    assert [eqn.primitive.name for eqn in jaxpr.eqns].count("copy") == 2


def test_loops_over_weights_stay_inside_and_are_right() -> None:
    def fn(w: Any, x: Any) -> Any:
        total, _ = lax.scan(lambda carry, row: (carry + row, None), jnp.zeros(3, jnp.float32), w)
        return (x + total,)

    check(fn, [W], ROWS)


def test_other_weights_give_other_values() -> None:
    hoister = Hoister([W, B])
    residual = split(hoister, gemm, ROWS)
    hoister.replace([W * 2, B])
    results = residual(hoister.values(residual.nodes), [ROWS])
    np.testing.assert_allclose(results[0], ROWS @ W.T * 2 + B, rtol=1e-5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda w: w.T[::-1, 1:3].reshape(-1),
        lambda w: jnp.concatenate([w[:2], -w[2:]], axis=0),
        lambda w: lax.convert_element_type(w, np.float16),
        lambda w: jnp.stack(jnp.split(w, [2, 4], axis=0)[:2]),
        lambda w: 1 / jnp.sqrt(jnp.maximum(w * w, 0.5)) - jnp.exp(w),
        lambda w: jnp.where(w > 0, w, 0.1 * w),
        lambda w: lax.rsqrt(jnp.abs(w) + 1),
        lambda w: jnp.expand_dims(w, 0)[0],
    ],
)
def test_numpy_evaluates_like_xla(fn: Callable[[Any], Any]) -> None:
    hoister = Hoister([W])
    residual = split(hoister, lambda w: (fn(w),))
    (node,) = residual.nodes
    (value,) = evaluate([node], [W])
    expected = np.asarray(fn(jnp.asarray(W)))
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_steps_unknown_to_numpy_go_to_xla() -> None:
    hoister = Hoister([W])
    residual = split(hoister, lambda w: (jnp.tanh(w).T @ w,))
    (value,) = evaluate(residual.nodes, [W])
    np.testing.assert_allclose(value, np.tanh(W).T @ W, rtol=1e-5)


def test_64_bit_weights_stay_64_bit() -> None:
    table = np.arange(5000, dtype=np.int64) << 40
    typed = TypedModel.from_function(
        lambda p, x: p.reshape(50, 100).T[x["row"][:, 0], x["row"][:, 1]], table, {"row": ((2,), np.int64)}
    )
    from memojax import MemoizingDynamicInferer

    rows = np.array([[3, 4], [99, 49]], np.int64)
    (result,) = MemoizingDynamicInferer(typed).infer_arrays({"row": rows}).values()
    assert result.dtype == np.int64
    assert result.tolist() == table.reshape(50, 100).T[rows[:, 0], rows[:, 1]].tolist()
