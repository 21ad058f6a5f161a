"""Autotuning's candidates for GPUs, as far as a machine without a GPU can check them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memojax import TypedModel
from memojax.plans.autotune import Tuner, candidates
from memojax.plans.candidates import CANDIDATES, DEFAULT, LAYOUTS, NO_TRITON, THREE_PASSES
from memojax.plans.compiler import PlanCompiler
from memojax.plans.hoist import Residual
from memojax.plans.serialized import as_bytes, from_bytes
from memojax.xla.cpu_client import cpu_device
from memojax.xla.options import compiled

RNG = np.random.default_rng(0)
WEIGHTS = [(RNG.standard_normal((16, 16)) / 4).astype(np.float32) for _ in range(3)]
X = RNG.standard_normal((5, 16)).astype(np.float32)
GPU: Any = SimpleNamespace(platform="gpu")
"""All that choosing candidates needs of a device."""

NAMES = {candidate.name for candidate in (NO_TRITON, THREE_PASSES, LAYOUTS)}


def network(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    y = x["x"]
    for w in params:
        y = jnp.tanh(y @ w)
    return {"y": y}


def typed(weights: Any = WEIGHTS) -> TypedModel:
    return TypedModel.from_function(network, weights, {"x": ((16,), np.float32)})


def tried(device: Any, **options: Any) -> set[str]:
    compiler = PlanCompiler(typed(), device, **options)
    return {candidate.name for candidate in candidates(compiler.trace(5), 5, compiler)}


def traced() -> tuple[PlanCompiler, Residual]:
    compiler = PlanCompiler(typed(), GPU)
    return compiler, compiler.trace(5)


def test_a_gpu_has_candidates_of_its_own() -> None:
    assert tried(GPU) == NAMES
    assert set(CANDIDATES) >= NAMES, "a stored choice is found by its name"


def test_a_cpu_has_none_of_them() -> None:
    assert not tried(cpu_device()) & NAMES
    assert not tried(cpu_device(), weights="argument") & NAMES


def test_a_model_without_products_has_none() -> None:
    model = TypedModel.from_function(lambda _, x: {"y": x["x"] + 1}, [], {"x": ((16,), np.float32)})
    compiler = PlanCompiler(model, GPU)
    assert candidates(compiler.trace(5), 5, compiler) == []


def test_three_passes_are_only_for_full_precision() -> None:
    assert THREE_PASSES.name not in tried(GPU, precision="high")
    assert THREE_PASSES.name not in tried(GPU, precision=None)


def test_constant_weights_have_no_layout_to_choose() -> None:
    assert LAYOUTS.name not in tried(GPU, weights="constant")


def test_autotuning_takes_gpu_plans_whatever_their_weights() -> None:
    for weights in ("constant", "argument"):
        assert Tuner("preload").handles(PlanCompiler(typed(), GPU, weights))
        assert not Tuner("off").handles(PlanCompiler(typed(), GPU, weights))
    tpu: Any = SimpleNamespace(platform="tpu")
    assert not Tuner("preload").handles(PlanCompiler(typed(), tpu))


def test_xla_knows_the_option_without_triton() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(X)
    compiled(lowered, GPU, NO_TRITON.options)
    with pytest.raises(Exception, match="No such compile option"):
        compiled(lowered, GPU, {"xla_gpu_enable_triton_gems": False})


def test_three_passes_lower_for_cuda_with_that_algorithm() -> None:
    compiler, residual = traced()
    leading = compiler.constants(residual)

    def lowered(candidate: Any) -> str:
        def run(x: Any) -> Any:
            return candidate.trace(residual, leading, [x])

        return jax.jit(run).trace(X).lower(lowering_platforms=("cuda",)).as_text()

    assert lowered(THREE_PASSES).count("num_primitive_operations = 3") == len(WEIGHTS)
    assert "num_primitive_operations" not in lowered(DEFAULT)


def test_three_passes_leave_other_dtypes_alone() -> None:
    def half(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": x["x"].astype(jnp.bfloat16) @ params[0].astype(jnp.bfloat16)}

    compiler = PlanCompiler(TypedModel.from_function(half, WEIGHTS, {"x": ((16,), np.float32)}), GPU)
    residual = compiler.trace(5)
    values = compiler.constants(residual)
    closed = jax.make_jaxpr(lambda x: THREE_PASSES.trace(residual, values, [x]))(X)
    assert "TF32" not in str(closed)


def test_layouts_of_xla_give_the_same_numbers_and_follow_new_weights() -> None:
    compiler = PlanCompiler(typed(), cpu_device(), "argument")
    plan, plain = (compiler.lower(5, candidate).compile() for candidate in (LAYOUTS, DEFAULT))
    assert plan.executable.candidate == LAYOUTS.name
    np.testing.assert_array_equal(plan.executable.run([X])[0], plain.executable.run([X])[0])
    compiler.updating(typed([2 * w for w in WEIGHTS]))()
    expected = X
    for w in WEIGHTS:
        expected = np.tanh(expected @ (2 * w))
    np.testing.assert_allclose(plan.executable.run([X])[0], expected, rtol=1e-5, atol=1e-6)


def test_an_executable_with_layouts_loads_again() -> None:
    compiler = PlanCompiler(typed(), cpu_device(), "argument")
    stored, weights = as_bytes(compiler.lower(5, LAYOUTS).compile().executable.made)
    made = from_bytes(stored, [compiler.device], lambda digest, _: weights[digest])
    again = compiler.adopt(5, made, 1.0, LAYOUTS, compiler.trace(5))
    np.testing.assert_allclose(
        again.executable.run([X])[0],
        compiler.lower(5, DEFAULT).compile().executable.run([X])[0],
        rtol=1e-6,
        atol=1e-7,
    )
