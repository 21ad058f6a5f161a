"""Draws without loops: the same bits as JAX's, for every way in which a policy draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import memojax
from memojax import TypedModel
from memojax.errors import LimitError
from memojax.plans import draws
from memojax.plans.candidates import DEFAULT
from memojax.plans.compiler import PlanCompiler
from memojax.xla.cpu_client import cpu_device
from memojax.xla.draws import at_once
from memojax.xla.draws import draws as drawn_in
from memojax.xla.limits import COMPILED

from ..helpers import mostly_slow
from ..system import odd_models

KEY = np.array([3_000_000_007, 5], np.uint32)
ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

Draw = Callable[[Any, Any], Any]


def sampler(draw: Draw) -> PlanCompiler:
    """A compiler of `draw(rows, key)`, with the key in the form of a random file."""

    def fn(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": draw(x["x"], jax.random.wrap_key_data(x["key"][0], impl="threefry2x32"))}

    inputs: Any = {"x": ((4,), np.float32), "key": ((2,), np.uint32)}
    return PlanCompiler(TypedModel.from_function(fn, [], inputs), cpu_device())


def drawn(compiler: PlanCompiler) -> tuple[np.ndarray, str]:
    """The draws of a plan of five rows, and its program."""
    plan = compiler.lower(5, DEFAULT).compile()
    keys = np.tile(KEY, (5, 1))
    return np.array(plan.executable.run([ROWS, keys])[0]), plan.executable.compiled.as_text()


DRAWS: dict[str, Draw] = {
    "normal": lambda x, key: x + jax.random.normal(key, x.shape),
    "folded": lambda x, key: jax.random.uniform(jax.random.fold_in(key, 7), x.shape),
    "folded twice": lambda x, key: jax.random.bits(
        jax.random.fold_in(jax.random.fold_in(key, 1), x.shape[0]), x.shape, "uint32"
    ),
    "folded by a value": lambda x, key: jax.random.uniform(
        jax.random.fold_in(key, jnp.argmax(x).astype(np.uint32)), x.shape
    ),
    "categorical": lambda x, key: jax.random.categorical(key, x),
    "bernoulli": lambda x, key: jax.random.bernoulli(key, jax.nn.sigmoid(x), x.shape),
    "bytes": lambda x, key: jax.random.bits(key, x.shape, "uint8"),
    "halves": lambda x, key: jax.random.normal(key, x.shape, "float16"),
    "a key a row": lambda x, key: jax.vmap(
        lambda n, row: jax.random.normal(jax.random.fold_in(key, n), row.shape)
    )(jnp.arange(x.shape[0]), x),
    "a key an entry": lambda x, key: jax.vmap(
        jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, n), 3)))
    )(jnp.arange(x.size).reshape(x.shape)),
    "two draws of one key": lambda x, key: (
        jax.random.normal(key, x.shape) * jax.random.uniform(jax.random.fold_in(key, 1), x.shape)
    ),
}


QUICK = ("normal", "folded by a value", "categorical", "a key a row")


@pytest.mark.parametrize("name", mostly_slow(QUICK, [name for name in DRAWS if name not in QUICK]))
def test_the_numbers_equal_jaxs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, program = drawn(sampler(DRAWS[name]))
    monkeypatch.setattr("memojax.plans.compiler.without_loops", lambda residual: residual)
    expected, loops = drawn(sampler(DRAWS[name]))
    np.testing.assert_array_equal(found, expected)
    assert "while" in loops
    assert "while" not in program


def test_keys_that_go_elsewhere_are_left_to_jax() -> None:
    def split(x: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        return jax.random.normal(first, x.shape) + jax.random.normal(second, x.shape)

    compiler = sampler(split)
    residual = compiler.trace(5)
    assert draws.without_loops(residual) is residual
    found, _ = drawn(compiler)
    with jax.threefry_partitionable(True):
        expected = jax.jit(split)(ROWS, jax.random.wrap_key_data(KEY, impl="threefry2x32"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_jax_without_these_functions_draws_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise draws._NotOurs

    monkeypatch.setattr(draws, "_implementation", missing)
    compiler = sampler(DRAWS["folded"])
    assert any(step.primitive.name == "random_bits" for step in compiler.trace(5).steps)
    assert drawn(compiler)[0].shape == (5, 4)


def draw_chain(length: int, op: str = "RandomNormalLike", **options: float) -> bytes:
    """A file that adds `length` draws to its rows, one after the other."""
    nodes = []
    for place in range(length):
        before, after = f"v{place}" if place else "x", f"v{place + 1}" if place + 1 < length else "y"
        nodes.append(odd_models.node(op, [before], [f"r{place}"], **options))
        nodes.append(odd_models.node("Add", [before, f"r{place}"], [after]))
    return odd_models.model(nodes).SerializeToString()


def many(rows: Any, key: Any) -> tuple[Any, list[Any]]:
    """Draws of several shapes, by keys that are folded once, twice, and by a value."""
    others = []
    for place in range(12):
        own = jax.random.fold_in(key, place)
        if place % 3 == 0:
            own = jax.random.fold_in(own, 7)
        if place % 4 == 0:
            own = jax.random.fold_in(own, rows.astype(jnp.int32)[0, 0] + place)
        rows = rows + jax.random.normal(own, rows.shape)
        others += [jax.random.uniform(own, (place % 2 + 1,)), jax.random.bernoulli(key, abs(rows[0]) / 9)]
    return rows, others


def test_many_draws_at_once_are_the_same_draws() -> None:
    def fn(data: Any, rows: Any) -> Any:
        return many(rows, jax.random.wrap_key_data(data, impl="threefry2x32"))

    def a_key_a_row(data: Any, rows: Any) -> Any:
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(len(rows)))
        return jax.vmap(lambda row, own: many(row[None], own))(rows, keys)

    for function in (fn, a_key_a_row):
        before = jax.make_jaxpr(function)(KEY, ROWS)
        after = at_once(before)
        assert drawn_in(after.jaxpr) < drawn_in(before.jaxpr) / 2
        wanted = jax.tree.leaves(jax.jit(function)(KEY, ROWS))
        for one, other in zip(jax.jit(jaxpr_as_fun(after))(KEY, ROWS), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_few_draws_stay() -> None:
    closed = jax.make_jaxpr(lambda rows: jax.random.normal(jax.random.key(0), rows.shape))(ROWS)
    assert at_once(closed) is closed


@pytest.mark.parametrize("options", [{}, {"seed": 1.0}])
def test_a_chain_of_draws_compiles_one_hash(options: dict[str, float]) -> None:
    file = draw_chain(20, **options)
    fn, params = memojax.to_jax(file)

    def run(key: Any, rows: Any) -> Any:
        return fn(params, {"x": rows}, jax.random.wrap_key_data(key, impl="threefry2x32"))["y"]

    assert drawn_in(jax.make_jaxpr(run)(KEY, ROWS).jaxpr) == 1
    policy = memojax.load(file, seed=3)
    assert np.isfinite(policy.infer_arrays({"x": ROWS})["y"]).all()
    assert np.isfinite(memojax.run(file, {"x": ROWS})["y"]).all()


def test_draws_count_by_what_they_take_to_compile() -> None:
    file = draw_chain(300)
    fn, params = memojax.to_jax(file)
    for call in (
        lambda: memojax.run(file, {"x": ROWS}),
        lambda: memojax.load(file).infer_arrays({"x": ROWS}),
        lambda: jax.jit(fn)(params, {"x": ROWS}, jax.random.key(0)),
    ):
        with pytest.raises(LimitError, match=COMPILED.variable):
            call()
    with pytest.raises(LimitError, match=COMPILED.variable):
        memojax.load(draw_chain(1000))
