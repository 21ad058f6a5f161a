"""Plans: one trace per size, inputs and outputs of every kind through the fast path, weights either way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax import MemoizingDynamicInferer, TypedModel
from memojax.plans.candidates import DEFAULT, PLAIN
from memojax.plans.compiler import PlanCompiler, Weights, plain_name
from memojax.plans.dispatch import on_host
from memojax.plans.input_buffers import Staging
from memojax.plans.packing import PACKED_BYTES, Packing
from memojax.plans.weight_arguments import Leading
from memojax.rows.scratch import COPIED_BYTES as STAGED
from memojax.rows.scratch import aligned_empty
from memojax.xla.cpu_client import cpu_device
from tests.helpers import in_threads

RNG = np.random.default_rng(0)
WAYS: list[Weights] = ["constant", "argument"]


def deep(layers: int) -> tuple[TypedModel, list[np.ndarray]]:
    """A chain of many small layers, and its weights."""
    weights = [RNG.standard_normal((6, 6)).astype(np.float32) / 3 for _ in range(layers)]

    def fn(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        y = x["x"]
        for w in params:
            y = jnp.tanh(y @ w.T)
        return {"y": y}

    return TypedModel.from_function(fn, weights, {"x": ((6,), np.float32)}), weights


def chain(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    for w in weights:
        x = np.tanh(x @ w.T)
    return x


@pytest.mark.parametrize("weights", WAYS)
def test_one_trace_per_size(weights: Weights) -> None:
    traced = []

    def fn(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        traced.append(x["x"].shape[0])
        return {"y": x["x"] * params}

    typed = TypedModel.from_function(fn, np.float32(2), {"x": ((3,), np.float32)})
    traced.clear()
    inferer = MemoizingDynamicInferer(typed, weights=weights)
    for n in (4, 1, 4, 2, 1, 4):
        inferer.infer_arrays({"x": np.ones((n, 3), np.float32)})
    # A function has no proof that its rows keep apart, so trial runs of five rows look for mixing.
    assert sorted(traced) == [1, 2, 4, 5]


@pytest.mark.parametrize("weights", WAYS)
def test_many_parameters(weights: Weights) -> None:
    typed, params = deep(80)
    inferer = MemoizingDynamicInferer(typed, [3], weights=weights)
    x = RNG.standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(inferer.infer_arrays({"x": x})["y"], chain(params, x), rtol=1e-4, atol=1e-5)


def test_auto_is_constant_on_cpu_unless_large() -> None:
    small, _ = deep(1)
    assert PlanCompiler(small, cpu_device()).weights == "constant"
    large = TypedModel.from_function(
        lambda w, x: {"y": x["x"] @ w}, np.zeros((1024, 9000), np.float32), {"x": ((1024,), np.float32)}
    )
    assert PlanCompiler(large, cpu_device()).weights == "argument"


def test_update_swaps_weights_without_a_compile() -> None:
    typed, params = deep(3)
    compiler = PlanCompiler(typed, cpu_device(), "argument")
    plans = [compiler.lower(n).compile() for n in (1, 3)]
    x = RNG.standard_normal((3, 6)).astype(np.float32)
    new = [w * 0.5 for w in params]
    compiler.updating(typed.with_params(new))()
    later = compiler.lower(2).compile()
    np.testing.assert_allclose(plans[1]([x])[0], chain(new, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plans[0]([x[:1]])[0], chain(new, x[:1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(later([x[:2]])[0], chain(new, x[:2]), rtol=1e-4, atol=1e-5)


def test_update_copies_the_given_weights() -> None:
    typed = TypedModel.from_function(
        lambda w, x: {"y": x["x"] + w}, np.zeros(64, np.float32), {"x": ((64,), np.float32)}
    )
    compiler = PlanCompiler(typed, cpu_device(), "argument")
    plan = compiler.lower(1).compile()
    reused = np.ones(64, np.float32)
    compiler.updating(typed.with_params(reused))()
    reused[:] = 7
    assert plan([np.zeros((1, 64), np.float32)])[0].max() == 1


@pytest.mark.parametrize(
    "dtype", ["int64", "uint64", "float64", "uint8", "bool", "int8", "float16", "int32", "uint32"]
)
@pytest.mark.parametrize("width", [3, STAGED])
def test_dtypes_come_back_exactly(dtype: str, width: int) -> None:
    typed = TypedModel.from_function(lambda _, x: {"y": x["x"][:, ::-1]}, (), {"x": ((width,), dtype)})
    inferer = MemoizingDynamicInferer(typed)
    values = RNG.integers(0, 2, (2, width)).astype(dtype)
    if dtype in ("int64", "uint64"):
        values += np.asarray((1 << 62) + 1, dtype)
    if dtype == "float64":
        values += 1e-12
    for _ in range(2):
        result = inferer.infer_arrays({"x": values})["y"]
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, values[:, ::-1])


def test_outputs_of_many_shapes_and_dtypes_keep_their_order() -> None:
    def fn(_: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        x = x["x"]
        return {
            "matrix": jnp.stack([x, -x], axis=1),
            "scalar": x.sum(1),
            "first": x,
            "integer": x.astype(jnp.int32),
            "flag": x > 2,
            "other": x[:, :1] * 3,
            "count": x[:, 0].astype(jnp.int32),
        }

    inferer = MemoizingDynamicInferer(TypedModel.from_function(fn, (), {"x": ((3,), np.float32)}))
    for n in (1, 4):
        x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
        results = inferer.infer_arrays({"x": x})
        assert list(results) == ["matrix", "scalar", "first", "integer", "flag", "other", "count"]
        expected = [
            np.stack([x, -x], 1),
            x.sum(1),
            x,
            x.astype(np.int32),
            x > 2,
            x[:, :1] * 3,
            x[:, 0].astype(np.int32),
        ]
        for result, want in zip(results.values(), expected, strict=True):
            assert (result.shape, result.dtype) == (want.shape, want.dtype)
            assert result.flags.c_contiguous
            assert not result.flags.writeable
            np.testing.assert_array_equal(result, want)


def test_large_outputs_are_left_alone() -> None:
    big = (1, PACKED_BYTES)
    packing = Packing.of([(1, 2), big, (1, 3), (1, 4)], [np.float32, np.float32, np.float32, np.int32])
    assert sorted(packing.groups) == [(0, 2), (1,), (3,)]


def test_drawn_outputs_are_packed_only_if_they_are_few() -> None:
    def typed(random: bool) -> TypedModel:
        def fn(_: Any, x: Any, key: Any = None) -> dict[str, Any]:
            noise = jax.random.normal(key, x["x"].shape) if random else 0.5
            return {"y": x["x"] + noise, "z": x["x"] * 2}

        return TypedModel.from_function(fn, (), {"x": ((16,), np.float32)}, random=random)

    def results(random: bool, size: int) -> int:
        compiler = PlanCompiler(typed(random), cpu_device())
        executable = compiler.lower(size, PLAIN).compile().executable
        x = RNG.standard_normal((size, 16)).astype(np.float32)
        y, z = executable.run([x, np.array([3, 7], np.uint32)] if random else [x])
        np.testing.assert_array_equal(z, 2 * x)
        assert (y != x).all()
        return executable.compiled.out_tree.num_leaves

    assert [results(True, size) for size in (2, 8, 9)] == [1, 1, 2]
    assert results(False, 9) == 1


def test_an_output_that_is_the_input_survives_the_next_call() -> None:
    inferer = MemoizingDynamicInferer(
        TypedModel.from_function(lambda _, x: {"same": x["x"]}, (), {"x": ((3,), np.float32)})
    )
    first = inferer.infer_arrays({"x": np.ones((2, 3), np.float32)})["same"]
    inferer.infer_arrays({"x": np.full((2, 3), 5, np.float32)})
    assert (first == 1).all()


def test_results_do_not_change_when_inputs_do() -> None:
    typed, params = deep(2)
    inferer = MemoizingDynamicInferer(typed)
    x = RNG.standard_normal((2, 6)).astype(np.float32)
    expected = chain(params, x)
    result = inferer.infer_arrays({"x": x})["y"]
    x[:] = 0
    inferer.infer_arrays({"x": x})
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [3, STAGED])
def test_odd_memory_layouts_give_the_same_numbers(width: int) -> None:
    inferer = MemoizingDynamicInferer(
        TypedModel.from_function(lambda _, x: {"y": x["x"] + 1}, (), {"x": ((width,), np.float32)})
    )
    base = np.arange(4 * width * 2, dtype=np.float32)
    raw = np.empty(4 * 2 * width + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(2, width)
    unaligned[:] = 7
    layouts = [
        base.reshape(4, -1)[::2, :width],
        np.asfortranarray(base[: 2 * width].reshape(2, width)),
        unaligned,
        base[1 : 2 * width + 1].reshape(2, width),
    ]
    for x in layouts:
        np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["y"], x + 1)


@pytest.mark.parametrize(
    "given", [np.ones((2, 3)), np.ones((2, 3), np.float16), [[1, 1, 1], [1, 1, 1]], np.ones((2, 3), ">f4")]
)
def test_other_inputs_take_the_checked_way(given: Any) -> None:
    inferer = MemoizingDynamicInferer(
        TypedModel.from_function(lambda _, x: {"y": x["x"] + 1}, (), {"x": ((3,), np.float32)}), [2]
    )
    result = inferer.infer_arrays({"x": given})["y"]
    assert result.dtype == np.float32
    assert (result == 2).all()


def test_random_models_draw_new_numbers_and_repeat_by_seed() -> None:
    def fn(_: Any, x: Mapping[str, Any], key: Any) -> dict[str, Any]:
        return {"y": x["x"] + jax.random.normal(key, x["x"].shape, jnp.float32)}

    typed = TypedModel.from_function(fn, (), {"x": ((3,), np.float32)}, random=True)
    x = np.zeros((2, 3), np.float32)
    one, two = (MemoizingDynamicInferer(typed, seed=5) for _ in range(2))
    draws = [one.infer_arrays({"x": x})["y"] for _ in range(20)]
    assert len({draw.tobytes() for draw in draws}) == 20
    for draw in draws:
        np.testing.assert_array_equal(two.infer_arrays({"x": x})["y"], draw)


def test_threads_do_not_share_buffers() -> None:
    typed, params = deep(20)
    inferer = MemoizingDynamicInferer(typed, [2])
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((2, 6)).astype(np.float32)
        expected = chain(params, x)
        start.wait()
        for _ in range(200):
            np.testing.assert_allclose(inferer.infer_arrays({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)

    in_threads(8, work)
    assert inferer.plans()[0].calls == 1600


def test_inputs_end_to_end_as_on_accelerators() -> None:
    def fn(_: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        return {"sum": x["a"] + x["c"].sum(2), "count": x["b"] + 1, "half": x["d"]}

    inputs = {
        "a": ((3,), np.float32),
        "b": ((), np.int64),
        "c": ((3, 2), np.float32),
        "d": ((2,), np.float16),
    }
    compiler = PlanCompiler(TypedModel.from_function(fn, (), inputs), cpu_device())
    compiler._packs_inputs = True
    plan = compiler.lower(2).compile()
    assert len(plan.executable.compiled.in_avals[0]) == 3
    for _ in range(3):
        given = {
            name: RNG.integers(0, 9, (2, *shape)).astype(dtype) for name, (shape, dtype) in inputs.items()
        }
        given["b"] += 1 << 40
        for results in (plan(list(given.values())), list((plan.answer(given, None) or {}).values())):
            np.testing.assert_array_equal(results[0], given["a"] + given["c"].sum(2))
            np.testing.assert_array_equal(results[1], given["b"] + 1)
            np.testing.assert_array_equal(results[2], given["d"])
            assert [result.dtype for result in results] == [np.float32, np.int64, np.float16]


def test_users_own_settings_do_not_matter() -> None:
    typed = TypedModel.from_function(lambda _, x: {"y": x["x"] * 2}, (), {"x": ((3,), np.int64)})
    inferer = MemoizingDynamicInferer(typed, [2])
    x = np.full((2, 3), 1 << 40, np.int64)
    for setting in (jax.enable_x64(True), jax.enable_x64(False), jax.default_matmul_precision("bfloat16")):
        with setting:
            np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["y"], x * 2)
    assert inferer.cache_info().currsize == 1


def test_xla_reads_the_aliased_buffers() -> None:
    staging = Staging([(2, 3)], [np.float32], cpu_device())
    # A JAX that copies NumPy arrays is correct but slower. If this fails, `Staging` needs another way.
    assert staging.staged == [True]
    (buffer,), (array,) = staging.slot()
    assert buffer is not None
    buffer[...] = 3
    first = np.asarray(jax.jit(lambda a: a + 1)(array))
    buffer[...] = 4
    assert (first == 4).all()
    assert (np.asarray(jax.jit(lambda a: a + 1)(array)) == 5).all()


def test_large_rows_are_copied_only_if_xla_cannot_read_them() -> None:
    shape = (2, 10_000)
    staging = Staging([shape], [np.float32], cpu_device())
    assert staging.spare == [True]
    taken: list[Any] = []

    def call(array: Any) -> np.ndarray:
        taken.append(array)
        return np.array(array)

    run = on_host(call, staging, Packing.of([shape], [np.float32]), Leading())
    well = aligned_empty(shape, np.float32)
    well[:] = 1
    shifted = aligned_empty((20_001,), np.float32)[1:].reshape(shape)
    shifted[:] = 2
    spread = aligned_empty((2, 20_000), np.float32)[:, ::2]
    spread[:] = 3
    for number, rows in enumerate((well, shifted, spread), 1):
        (result,) = run([rows])
        assert (result == number).all()
    assert taken[0] is well
    assert taken[1] is taken[2] is staging.free[0][1][0]


def test_a_client_that_copies_gets_the_callers_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    put = jax.device_put
    monkeypatch.setattr(
        jax, "device_put", lambda x, *a, **k: put(np.array(x), *a, **{**k, "may_alias": False})
    )
    staging = Staging([(2, 3)], [np.float32], cpu_device())
    assert (staging.staged, staging.spare) == ([False], [False])
    run = on_host(jax.jit(lambda a: a + 1), staging, Packing.of([(2, 3)], [np.float32]), Leading())
    for number in (1, 2):
        (result,) = run([np.full((2, 3), number, np.float32)])
        assert (result == number + 1).all()


@pytest.mark.parametrize("width", [3, STAGED])
@pytest.mark.parametrize("names", [("x",), ("x", "z")])
@pytest.mark.parametrize("candidate", [DEFAULT, None])
def test_floats_of_other_widths_are_cast(width: int, names: tuple[str, ...], candidate: Any) -> None:
    typed = TypedModel.from_function(
        lambda _, given: {"y": sum(given[name] for name in names) * 2},
        (),
        dict.fromkeys(names, ((width,), np.float32)),
    )
    compiler = PlanCompiler(typed, cpu_device())
    plan = compiler.lower(2, *([candidate] if candidate else [])).compile()
    inferer = MemoizingDynamicInferer(typed, [2])
    values = RNG.standard_normal((2, width)) * 1e3
    wide = np.empty((2, 2 * width))[:, ::2]
    wide[...] = values
    for given in (values, values.astype(np.float16), values.astype(">f4"), values.astype(">f8"), wide):
        named = dict.fromkeys(names, given)
        expected = given.astype(np.float32) * np.float32(2 * len(names))
        for _ in range(2):
            np.testing.assert_array_equal(inferer.infer_arrays(named)["y"], expected)
        if width == 3:  # the copy into the plan's buffers casts
            np.testing.assert_array_equal((plan.answer(named, None) or {})["y"], expected)
    for other in (np.int64, np.bool_, np.complex64, object):
        assert plan.answer(dict.fromkeys(names, values.astype(other)), None) is None
    assert plan.answer(dict.fromkeys(names, values[:1]), None) is None


@pytest.mark.parametrize("width", [3, STAGED])
def test_whole_numbers_are_cast_with_checks_alone(width: int) -> None:
    typed = TypedModel.from_function(lambda _, x: {"y": x["x"] + 1}, (), {"x": ((width,), np.int32)})
    inferer = MemoizingDynamicInferer(typed, [2])
    values = np.arange(2 * width).reshape(2, width)
    np.testing.assert_array_equal(inferer.infer_arrays({"x": values})["y"], values + 1)
    for refused in (values + (1 << 31), values.astype(np.float32)):
        with pytest.raises(memojax.errors.InputDtypeError):
            inferer.infer_arrays({"x": refused})


def test_plan_infos_count_calls_and_times() -> None:
    typed, _ = deep(1)
    inferer = MemoizingDynamicInferer(typed, [2])
    for _ in range(40):
        inferer.infer_arrays({"x": np.zeros((2, 6), np.float32)})
    (info,) = inferer.plans()
    assert (info.size, info.calls, info.gain) == (2, 40, None)
    assert info.candidate in ("default", "kernels")
    assert info.median_us is not None
    assert info.median_us > 0
    assert inferer.cache_info().hits == 40


def test_profiles_name_the_model_and_the_size() -> None:
    typed = memojax.load(memojax.policies.bundled("acrobot_ppo")).typed
    plan = PlanCompiler(typed, cpu_device()).lower(3, DEFAULT).compile()
    assert plan.executable.compiled.as_text().startswith("HloModule jit_acrobot_ppo_batch_3,")
    assert plain_name("C:\\a\\my policy (v2).onnx") == "my_policy_v2"
    assert plain_name("<bytes>") == "bytes"
    assert plain_name("//") == "model"


def test_weights_of_one_number_give_right_numbers() -> None:
    """With XLA's defaults, the pooled convolution reads beyond the number (jaxlib 0.10.2 with AVX-512: 0, or
    about 1e30)."""
    kernel = np.full((1000, 512, 1, 1), 0.02, np.float32)

    def pooled(w: Any, x: Any) -> Any:
        return jnp.mean(jax.nn.relu(jax.lax.conv(x["x"], w, (1, 1), "VALID")), (2, 3))

    x = RNG.random((1, 512, 13, 13)).astype(np.float32)
    for weights in WAYS:
        inferer = MemoizingDynamicInferer(
            TypedModel.from_function(pooled, kernel, {"x": x[0]}), weights=weights
        )
        for _ in range(3):
            inferer.cache_clear()
            (answer,) = inferer.infer_arrays({"x": x}).values()
            np.testing.assert_allclose(answer, np.full((1, 1000), 0.02 * x.sum() / 169), rtol=1e-4)
