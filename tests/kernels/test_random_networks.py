"""Random networks in the kernels: the answers of ONNX Runtime, and no row reaches another."""

from __future__ import annotations

import jax
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memojax

from .random_networks import Network

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([1, 2, 3, 5, 8, 17, 64, 129])
UNUSUAL = st.sampled_from([np.nan, np.inf, -np.inf, 1e-40, 1e30, 0.0])


pytestmark = pytest.mark.usefixtures("with_kernels")


def close(given: np.ndarray, wanted: np.ndarray) -> bool:
    finite = np.abs(wanted[np.isfinite(wanted)])
    largest = min(float(finite.max(initial=0)), 1e6)
    return given.shape == wanted.shape and np.allclose(
        given, wanted, rtol=2e-3, atol=2e-4 * (1 + largest), equal_nan=True
    )


def reference(content: bytes, x: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(content)
    names = [output.name for output in session.get_outputs()]
    taken = {"x": x} if session.get_inputs() else {}
    return dict(zip(names, session.run(names, taken), strict=True))


def check(seed: int, n: int, unusual: float) -> None:
    rng = np.random.default_rng(seed)
    network = Network(rng)
    content = network.model()
    policy = memojax.load(content, device="cpu")
    x = rng.standard_normal((n, *network.input)).astype(np.float32)
    wanted = reference(content, x)
    made = {name: np.array(value) for name, value in policy.infer_arrays({"x": x}).items()}
    for name, value in wanted.items():
        assert close(made[name], value), name
    row = int(rng.integers(n))
    x[row] = unusual
    others = np.arange(n) != row
    for name, value in policy.infer_arrays({"x": x}).items():
        assert close(np.asarray(value)[others], wanted[name][others]), f"row {row} reached others in {name}"


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(SEEDS, SIZES, UNUSUAL)
def test_random_networks(seed: int, n: int, unusual: float) -> None:
    check(seed, n, unusual)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(SEEDS, SIZES, UNUSUAL)
def test_many_random_networks(seed: int, n: int, unusual: float) -> None:
    check(seed, n, unusual)


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(SEEDS, st.sampled_from([1, 3, 17]))
def test_random_networks_in_jax(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    network = Network(rng)
    content = network.model()
    pure, params = memojax.to_jax(content)
    ours, _ = memojax.to_jax(content, kernels=True)
    x = rng.standard_normal((n, *network.input)).astype(np.float32)
    wanted = pure(params, {"x": x})

    def one(row: jax.Array) -> dict[str, jax.Array]:
        return {name: value[0] for name, value in ours(params, {"x": row[None]}).items()}

    for made in (jax.jit(ours)(params, {"x": x}), jax.jit(jax.vmap(one))(x)):
        for name, value in wanted.items():
            assert close(np.asarray(made[name]), np.asarray(value)), name
