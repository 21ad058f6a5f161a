"""New weights without a recompile: from mappings, files and pytrees; checked, atomic, concurrent."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import memojax
from memojax.errors import CompileError, IncompatibleModelError
from memojax.plans import engine

POLICY = Path(memojax.__file__).parent / "policies" / "acrobot_ppo.onnx"
OBS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


def scaled(factor: float, prefix: str = "") -> onnx.ModelProto:
    """Another export of the policy: all weights times `factor`, names with a prefix."""
    model = onnx.load(str(POLICY))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim:
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(factor), prefix + tensor.name))
            for node in model.graph.node:
                node.input[:] = [
                    tensor.name if name == tensor.name[len(prefix) :] and prefix else name
                    for name in node.input
                ]
    return model


def unproven(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, and a maximum over the batch that cancels out: no trace proves that its rows keep apart."""
    graph = model.graph
    given, made = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == made else name for name in node.output]
        node.input[:] = ["before" if name == made else name for name in node.input]
    graph.node.extend(
        [
            helper.make_node("ReduceMax", [given], ["most"], keepdims=0),
            helper.make_node("Sub", ["most", "most"], ["none"]),
            helper.make_node("Add", ["before", "none"], [made]),
        ]
    )
    return model


def logits(source: Any) -> np.ndarray:
    return memojax.run(source, {"obs": OBS})["logits"]


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_from_a_file_a_mapping_and_names_that_changed(weights: str) -> None:
    inferer = memojax.load(POLICY, preload=[5, 2], weights=weights)
    misses = inferer.cache_info().misses
    for source in (scaled(1.5), scaled(0.5, prefix="new/"), scaled(2.0).SerializeToString()):
        inferer.update_params(source)
        np.testing.assert_allclose(
            inferer.infer_arrays({"obs": OBS})["logits"], logits(source), rtol=1e-4, atol=1e-5
        )
    inferer.update_params(dict(memojax.load(POLICY).params))
    np.testing.assert_allclose(
        inferer.infer_arrays({"obs": OBS})["logits"], logits(POLICY), rtol=1e-4, atol=1e-5
    )
    assert inferer.cache_info().misses == misses
    np.testing.assert_allclose(
        inferer.infer_arrays({"obs": OBS[:3]})["logits"], logits(POLICY)[:3], rtol=1e-4, atol=1e-5
    )


def test_some_weights_only_and_device_arrays() -> None:
    inferer = memojax.load(POLICY)
    on_device = inferer.infer_arrays({"obs": jnp.asarray(OBS)})["logits"]
    name = next(name for name, array in inferer.params.items() if array.shape == (3,))
    inferer.update_params({name: inferer.params[name] + 1})
    np.testing.assert_allclose(
        inferer.infer_arrays({"obs": OBS})["logits"], logits(POLICY) + 1, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        inferer.infer_arrays({"obs": jnp.asarray(OBS)})["logits"], on_device + 1, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {next(iter(p)): np.zeros((1, 2, 3), np.float32)}, r"float32\[1, 2, 3\]"),
        (lambda p: {next(iter(p)): next(iter(p.values())).astype(np.float64)}, "float64"),
        (lambda p: {"unheard of": np.zeros(3)}, "no parameter 'unheard of'"),
        (lambda p: POLICY.with_name("pendulum_ppo.onnx"), "another network"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change: Any, message: str) -> None:
    inferer = memojax.load(POLICY)
    before = inferer.infer_arrays({"obs": OBS})["logits"]
    with pytest.raises(IncompatibleModelError, match=message):
        inferer.update_params(change(inferer.params))
    np.testing.assert_array_equal(inferer.infer_arrays({"obs": OBS})["logits"], before)


def test_functions_take_any_pytree() -> None:
    typed = memojax.TypedModel.from_function(
        lambda p, x: x["x"] @ p["w"] + p["b"][0],
        {"w": np.eye(3, dtype=np.float32), "b": [np.zeros(3, np.float32)]},
        {"x": ((3,), np.float32)},
    )
    inferer = memojax.MemoizingDynamicInferer(typed)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["output"], x)
    inferer.update_params({"w": 2 * np.eye(3, dtype=np.float32), "b": [np.ones(3, np.float32)]})
    np.testing.assert_array_equal(inferer.infer_arrays({"x": x})["output"], 2 * x + 1)
    with pytest.raises(IncompatibleModelError, match="missing"):
        inferer.update_params({"w": np.eye(3, dtype=np.float32)})


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_a_call_sees_all_old_or_all_new_weights(weights: str) -> None:
    def fn(p, x):
        return x["x"] + p["a"] - p["b"]  # zero unless old and new weights meet

    typed = memojax.TypedModel.from_function(
        fn, {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}, {"x": ((4,), np.float32)}
    )
    inferer = memojax.MemoizingDynamicInferer(typed, [1, 2, 3], weights=weights)
    stop, wrong = threading.Event(), []

    def call(n: int) -> None:
        x = np.zeros((n, 4), np.float32)
        while not stop.is_set():
            if np.any(inferer.infer_arrays({"x": x})["output"] != 0):
                wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in (1, 2, 3, 7)]
    for thread in threads:
        thread.start()
    for step in range(60):
        value = np.full(4, step, np.float32)
        inferer.update_params({"a": value, "b": value})
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_gradients_have_the_names_of_the_weights() -> None:
    """A training loop takes gradients of `to_jax` on the same weights, then updates them."""
    inferer = memojax.load(POLICY, weights="argument")
    fn, params = memojax.to_jax(POLICY)
    compiled = [plan.size for plan in inferer.plans()]
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.mean(fn(p, {"obs": OBS})["logits"] ** 2)))
    values = []
    inferer.infer_arrays({"obs": OBS})
    misses = inferer.cache_info().misses
    for _ in range(5):
        value, gradient = loss(params)
        values.append(float(value))
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
        inferer.update_params(params)
        np.testing.assert_allclose(
            inferer.infer_arrays({"obs": OBS})["logits"],
            fn(params, {"obs": OBS})["logits"],
            rtol=1e-3,
            atol=1e-4,
        )
    assert values[-1] < values[0]
    assert inferer.cache_info().misses == misses
    assert compiled == []


def test_in_the_background_later_updates_build_on_earlier_ones_and_win() -> None:
    inferer = memojax.load(POLICY, preload=[5])
    before = inferer.infer_arrays({"obs": OBS})["logits"].copy()
    names = list(inferer.params)
    zeroed = {name: np.zeros_like(inferer.params[name]) for name in names}
    futures = [inferer.update_params({name: zeroed[name]}, background=True) for name in names]
    for future in futures:
        future.result(60)
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(inferer.infer_arrays({"obs": OBS})["logits"], np.zeros((5, 3), np.float32))
    with pytest.raises(IncompatibleModelError):
        inferer.update_params({names[0]: np.zeros(1, np.float32)}, background=True)
    np.testing.assert_array_equal(inferer.infer_arrays({"obs": OBS})["logits"], np.zeros((5, 3), np.float32))


def test_an_update_whose_plans_cannot_be_made_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = memojax.load(POLICY, preload=[5])
    before = inferer.infer_arrays({"obs": OBS})["logits"].copy()
    first, second = list(inferer.params)[:2]
    with monkeypatch.context() as patch:
        patch.setattr(inferer._engine, "_becoming_argument", _broken)
        with pytest.raises(CompileError, match="no plan"):
            inferer.update_params({first: np.zeros_like(inferer.params[first])})
    np.testing.assert_array_equal(inferer.infer_arrays({"obs": OBS})["logits"], before)
    inferer.update_params({second: inferer.params[second]})
    np.testing.assert_allclose(inferer.infer_arrays({"obs": OBS})["logits"], before, rtol=1e-5)


def _broken(typed: Any, like: Any) -> None:
    raise CompileError("no plan")


def test_an_interrupted_update_is_not_part_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = memojax.load(POLICY, preload=[5], weights="argument")
    first, second = list(policy.params)[:2]
    before = {name: np.array(value) for name, value in policy.params.items()}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("memojax.inferer.weight_updates.WeightUpdates._apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            policy.update_params({first: 9 * before[first]})
    policy.update_params({second: 2 * before[second]})
    np.testing.assert_array_equal(policy.params[first], before[first])
    np.testing.assert_array_equal(policy.params[second], 2 * before[second])


def test_a_failed_update_takes_none_along_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = memojax.load(POLICY, preload=[5], weights="argument")
    first, second = list(policy.params)[:2]
    before = {name: np.array(value) for name, value in policy.params.items()}
    waiting: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr("memojax.inferer.weight_updates.submit_errand", waiting.append)
        policy.update_params({first: 9 * before[first]}, background=True)

    def failing(*_: Any) -> None:
        raise CompileError("told to fail")

    with monkeypatch.context() as patched:
        patched.setattr(policy._family, "update", failing)
        with pytest.raises(CompileError):
            policy.update_params({second: 2 * before[second]})
    waiting[0]()
    np.testing.assert_array_equal(policy.params[first], 9 * before[first])
    np.testing.assert_array_equal(policy.params[second], before[second])


def test_weights_that_change_amid_the_row_check_are_not_taken_for_mixing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = memojax.load(unproven(scaled(1)), weights="argument", preload=[1])
    factors = iter([2, 3, 4])
    check = engine.plan_mixing

    def amid(compiler: Any, plan: Any) -> tuple[str, ...]:
        run, calls = plan.executable.run, itertools.count()

        def swapped(rows: Any) -> Any:
            # Between the first two runs, which the check compares.
            if next(calls) == 1 and (factor := next(factors, None)):
                policy.update_params(unproven(scaled(factor)))
            return run(rows)

        plan.executable = replace(plan.executable, run=swapped)
        try:
            return check(compiler, plan)
        finally:
            plan.executable = replace(plan.executable, run=run)

    monkeypatch.setattr(engine, "plan_mixing", amid)
    policy.infer_arrays({"obs": np.ones((2, 6), np.float32)})
    assert next(factors, None) is None
    assert policy.mixing_outputs == ()
