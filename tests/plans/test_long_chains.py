"""Plans of long chains of light steps: cut into calls, and right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax.errors import LimitError
from memojax.plans.hoist import Residual
from memojax.plans.long_chains import LONG, cut, longest
from memojax.xla import limits
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


def test_only_long_chains_are_cut() -> None:
    assert cut(traced(LONG // 2)) is None
    assert cut(traced(LONG + 200, product_every=50)) is None
    pieces = cut(traced(LONG + 200))
    assert pieces is not None
    assert len(pieces.steps) < 10


def test_a_product_ends_a_chain() -> None:
    assert longest(traced(100).steps) == 100
    assert longest(traced(100, product_every=10).steps) <= 11


def test_a_model_in_pieces_gives_the_numbers_of_numpy() -> None:
    wanted = X.copy()
    for step in range(LONG + 500):
        wanted = (np.negative, np.abs, np.tanh)[step % 3](wanted)
    found = memojax.load(odd_models.chain(LONG + 500).SerializeToString()).infer_arrays({"x": X})["y"]
    np.testing.assert_allclose(found, X + wanted, rtol=1e-4)


def test_code_compiled_as_a_whole_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = odd_models.chain(60).SerializeToString()
    monkeypatch.setenv(limits.CHAIN.variable, "50")
    with pytest.raises(LimitError, match=limits.CHAIN.variable):
        memojax.run(file, {"x": X})
    fn, params = memojax.to_jax(file)
    with pytest.raises(LimitError, match=limits.CHAIN.variable):
        jax.jit(fn)(params, {"x": X})
    memojax.load(file).infer_arrays({"x": X})
    monkeypatch.setenv(limits.CHAIN.variable, "100")
    memojax.run(file, {"x": X})
