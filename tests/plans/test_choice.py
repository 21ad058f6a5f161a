"""The choice among XLA's ways without kernels: by the work of convolutions, and in order where that pays."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memojax import TypedModel
from memojax.plans import compiler as compilers
from memojax.plans.candidates import DEFAULT, EIGEN, EIGEN_CONVOLUTIONS, ORDERED, PLAIN
from memojax.plans.choice import (
    EIGEN_FROM,
    HALVES_FROM,
    MOST_COLUMNS,
    PRODUCTS_FROM,
    WIDE,
    chosen,
    convolution_work,
    product_work,
)
from memojax.plans.compiler import PlanCompiler
from memojax.xla import options as xla_options
from memojax.xla.cpu_client import cpu_device
from memojax.xla.options import VECTOR_WIDTH, YNN, has_sound_convolutions, ynn

RNG = np.random.default_rng(0)
BOTH = ynn("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION")
PRODUCTS = ynn("INDIVIDUAL_DOT")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DATA, PRODUCTS_DATA = RESULTS / "choice.json", RESULTS / "choice_products.json"
HALVES_DATA = RESULTS / "choice_halves.json"


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "opened", lambda: None)


def images(channels: int = 16, groups: int = 1) -> PlanCompiler:
    """A convolution of [16, 12, 12] images by windows of 3 x 3 to [channels, 10, 10]."""
    shape = (channels, 16 // groups, 3, 3)
    weights = (RNG.standard_normal(shape) / 12).astype(np.float32)

    def fn(w: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        made = lax.conv_general_dilated(x["x"], w, (1, 1), "VALID", feature_group_count=groups)
        return {"y": jax.nn.relu(made)}

    return PlanCompiler(
        TypedModel.from_function(fn, weights, {"x": ((16, 12, 12), np.float32)}), cpu_device()
    )


def branches(count: int) -> PlanCompiler:
    weights = [(RNG.standard_normal((12, 12)) / 3).astype(np.float32) for _ in range(3 * count)]

    def fn(params: Sequence[Any], x: Mapping[str, Any]) -> dict[str, Any]:
        total = jnp.zeros_like(x["x"])
        for first in range(0, len(params), 3):
            y = x["x"]
            for w in params[first : first + 3]:
                y = jnp.tanh(y @ w)
            total = total + y
        return {"y": jax.nn.softmax(total), "best": jnp.argmax(total, -1)}

    return PlanCompiler(TypedModel.from_function(fn, weights, {"x": ((12,), np.float32)}), cpu_device())


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (32, 1), (16, 4)])
def test_the_work_is_two_operations_for_each_weight_and_place(channels: int, groups: int) -> None:
    residual = images(channels, groups).trace(7)
    assert convolution_work(residual) == (2 * 7 * 10 * 10 * channels * (16 // groups) * 9, channels)


@pytest.mark.parametrize("channels", [16, 64])
def test_more_rows_never_turn_from_eigen_to_ynnpack(channels: int) -> None:
    compiler = images(channels)
    traced = [compiler.trace(size) for size in (1, 2, 8, 30, 50, 80, 512)]
    eigen = [chosen(residual, BOTH) == EIGEN_CONVOLUTIONS for residual in traced]
    assert eigen == sorted(eigen)
    assert (eigen[0], eigen[-1]) == (False, True)
    works = [convolution_work(residual)[0] for residual in traced]
    assert works == sorted(works)
    first = eigen.index(True)
    assert works[first - 1] < EIGEN_FROM[channels >= WIDE] <= works[first]


def test_a_wide_convolution_stays_with_ynnpack_longer() -> None:
    assert chosen(images(16).trace(48), BOTH) == EIGEN_CONVOLUTIONS
    assert chosen(images(32).trace(48), BOTH) == ORDERED


def test_the_numbers_are_those_that_the_benchmark_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA.parents[1]))
    benchmark = importlib.import_module("choice")
    rows = json.loads(DATA.read_text())["rows"]
    assert benchmark.fitted(rows) == EIGEN_FROM
    lost = benchmark.regret(rows, EIGEN_FROM)
    assert lost <= 1.03
    assert lost < min(benchmark.regret(rows, dict.fromkeys((False, True), way)) for way in (0.0, 1e18))


def test_the_numbers_for_halves_are_those_that_the_benchmark_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    benchmark = importlib.import_module("choice")
    rows = json.loads(HALVES_DATA.read_text())["rows"]
    assert len(rows) > 150
    assert benchmark.halves_fitted(rows) == HALVES_FROM
    lost = benchmark.halves_regret(rows, HALVES_FROM)
    assert lost <= 1.05
    assert lost < min(benchmark.halves_regret(rows, limit) for limit in (0.0, 1e18))


def test_the_numbers_for_products_are_those_that_the_benchmark_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    benchmark = importlib.import_module("choice")
    rows = json.loads(PRODUCTS_DATA.read_text())["rows"]
    assert len(rows) > 90
    assert benchmark.products_fitted(rows) == (PRODUCTS_FROM, MOST_COLUMNS)
    lost = benchmark.products_regret(rows, PRODUCTS_FROM, MOST_COLUMNS)
    assert lost <= 1.03
    assert lost < min(benchmark.products_regret(rows, 1e18, 0), benchmark.products_regret(rows, 0.0, 1 << 30))


def layers(*sizes: int) -> PlanCompiler:
    """A chain of products."""
    weights = [(RNG.standard_normal(shape) / 16).astype(np.float32) for shape in itertools.pairwise(sizes)]

    def fn(params: Sequence[Any], x: Mapping[str, Any]) -> dict[str, Any]:
        y = x["x"]
        for w in params:
            y = jnp.tanh(y @ w)
        return {"y": y}

    return PlanCompiler(TypedModel.from_function(fn, weights, {"x": ((sizes[0],), np.float32)}), cpu_device())


def test_the_work_of_products_is_that_of_the_largest_and_the_width_that_of_the_widest() -> None:
    assert product_work(layers(300, 100, 200).trace(7)) == (2 * 7 * 300 * 100, 200)
    assert product_work(images().trace(7)) == (0.0, 0)


def test_eigen_multiplies_many_rows_by_narrow_matrices() -> None:
    compiler = layers(256, 256, 8)
    assert chosen(compiler.trace(100), PRODUCTS) == ORDERED
    assert chosen(compiler.trace(300), PRODUCTS) == EIGEN
    assert chosen(layers(256, 600, 8).trace(1024), PRODUCTS) == ORDERED
    x = RNG.standard_normal((300, 256)).astype(np.float32)
    many, plain = (compiler.lower(300, way).compile().executable for way in (DEFAULT, PLAIN))
    assert many.candidate == EIGEN.name
    np.testing.assert_allclose(many.run([x])[0], plain.run([x])[0], rtol=1e-5, atol=1e-5)


def test_short_rows_have_narrow_vectors() -> None:
    """Wide vectors gain little for functions of short rows, and take far longer to compile."""
    options = {**PRODUCTS, VECTOR_WIDTH: "512"}
    assert chosen(layers(40, 31, 16).trace(64), options) == replace(ORDERED, options={VECTOR_WIDTH: "256"})
    many = chosen(layers(40000, 16).trace(300), options)
    assert many == replace(EIGEN, options={**EIGEN.options, VECTOR_WIDTH: "256"})
    assert chosen(layers(40, 32, 16).trace(64), options) == ORDERED
    assert chosen(layers(40, 31, 16).trace(64), PRODUCTS) == ORDERED  # The machine has none.
    assert chosen(images().trace(1), options) == ORDERED
    compiler = layers(40, 31, 16)
    x = RNG.standard_normal((64, 40)).astype(np.float32)
    ours, plain = (compiler.lower(64, way).compile().executable for way in (DEFAULT, PLAIN))
    assert ours.candidate == "default"
    np.testing.assert_allclose(ours.run([x])[0], plain.run([x])[0], rtol=1e-5, atol=1e-6)


def test_kernels_are_the_faster_way_in_the_data() -> None:
    rows = [row["us"] for row in json.loads(DATA.read_text())["rows"] if "kernels" in row["us"]]
    ratios = [us["kernels"] / us["xla"] for us in rows]
    assert len(ratios) > 150
    assert sum(ratio > 1.1 for ratio in ratios) <= 2
    assert np.exp(np.mean(np.log(ratios))) < 0.5


def test_where_ynnpack_has_no_convolutions_there_is_no_choice() -> None:
    assert chosen(images().trace(512), PRODUCTS) == ORDERED


@pytest.mark.skipif(not has_sound_convolutions(), reason="this jaxlib has no YNNPACK for convolutions")
def test_the_choice_has_its_name_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "over_defaults", lambda *_: BOTH)
    compiler = images()
    assert compiler.lower(1, DEFAULT).compile().executable.candidate == "default"
    many = compiler.lower(512).compile()
    assert many.executable.candidate == EIGEN_CONVOLUTIONS.name
    x = RNG.standard_normal((512, 16, 12, 12)).astype(np.float32)
    plain = compiler.lower(512, PLAIN).compile().executable.run([x])[0]
    np.testing.assert_allclose(many.executable.run([x])[0], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "name"), [(1, "default"), (2, "in-order")])
def test_branches_run_in_order_and_a_chain_as_it_is(count: int, name: str) -> None:
    compiler = branches(count)
    plan, plain = (compiler.lower(3, one).compile() for one in (DEFAULT, PLAIN))
    assert (plan.executable.candidate, plain.executable.candidate) == (name, "xla")
    x = RNG.standard_normal((3, 12)).astype(np.float32)
    for one, other in zip(plan.executable.run([x]), plain.executable.run([x]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("missing", [{YNN}, {VECTOR_WIDTH}, {YNN, VECTOR_WIDTH}])
def test_a_default_that_xla_does_not_know_is_left_out(
    missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    class Lowered:
        def compile(self, options: Mapping[str, Any] | None) -> str:
            given.append(dict(options or {}))
            for name in sorted(missing & set(options or {})):
                raise RuntimeError(f"INVALID_ARGUMENT: No such compile option: '{name}'")
            return "executable"

    monkeypatch.setattr(xla_options, "_defaults", lambda: {**PRODUCTS, VECTOR_WIDTH: "512"})
    monkeypatch.setattr(xla_options, "_has_arctan", lambda _: False)
    assert xla_options.compiled(Lowered(), cpu_device(), {"other": "1"}) == "executable"
    assert set(given[-1]) == {YNN, VECTOR_WIDTH, "other"} - missing
    with pytest.raises(RuntimeError, match="No such compile option"):
        xla_options.compiled(Lowered(), cpu_device(), dict.fromkeys(missing, "mine"))


def test_an_option_that_xla_has_dropped_costs_only_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "over_defaults", lambda *_: BOTH)
    compile_it = compilers.compiled_for

    def refuses_options(lowered: Any, device: Any, options: Mapping[str, Any]) -> Any:
        if options:
            raise RuntimeError("No such compile option: a fault of this test")
        return compile_it(lowered, device, options)

    monkeypatch.setattr(compilers, "compiled_for", refuses_options)
    plan = images().lower(512).compile()
    assert plan.executable.candidate == "xla"
    assert np.isfinite(plan.executable.run([np.ones((512, 16, 12, 12), np.float32)])[0]).all()


def test_what_does_not_compile_in_order_compiles_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it = compilers.compiled_for

    def refuses_calls(lowered: Any, *rest: Any) -> Any:
        if "inlineable" in lowered.as_text():
            raise RuntimeError("a fault of this test")
        return compile_it(lowered, *rest)

    monkeypatch.setattr(compilers, "compiled_for", refuses_calls)
    plan = branches(2).lower(3).compile()
    assert plan.executable.candidate == "xla"
    assert np.isfinite(plan.executable.run([np.ones((3, 12), np.float32)])[0]).all()
