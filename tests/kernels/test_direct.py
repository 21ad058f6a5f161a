"""Plans that are one program run without XLA, and answer as plans of XLA do."""

from __future__ import annotations

import gc
import os
import pickle
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import memojax
from memojax.kernels.direct import Direct
from memojax.lowering.row_probe import mixing_rows, random_rows
from memojax.plans.candidates import DEFAULT, KERNELS
from memojax.plans.compiler import PlanCompiler
from memojax.plans.disk_cache import DiskCache
from memojax.plans.plan import Plan
from memojax.plans.serialized import as_bytes, from_bytes
from memojax.xla.cpu_client import cpu_device

from ..helpers import in_threads, mostly_slow, own_helper
from .test_rewrite import file, mlp, weight

pytestmark = pytest.mark.usefixtures("with_kernels")


def plans(content: bytes, size: int, weights: Any = "auto") -> tuple[Plan, Plan, list[np.ndarray]]:
    """The direct plan, XLA's, and rows for both."""
    typed = memojax.load(content).typed
    compiler = PlanCompiler(typed, cpu_device(), weights)
    ours, theirs = (compiler.lower(size, one).compile() for one in (KERNELS, DEFAULT))
    assert isinstance(ours.executable.made.program, Direct)
    rows = [random_rows(np.random.default_rng(size), size, spec) for spec in typed.api.inputs]
    if typed.random:
        rows.append(np.array([5, 7], np.uint32))
    return ours, theirs, rows


def same(ours: Plan, theirs: Plan, rows: list[np.ndarray]) -> None:
    for _ in range(2):
        for given, expected in zip(ours(rows), theirs(rows), strict=True):
            assert (given.dtype, given.shape) == (expected.dtype, expected.shape)
            assert not given.flags.writeable
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("weights", ["constant", "argument"])
@pytest.mark.parametrize("size", [1, 9])
def test_a_network_is_one_program(weights: str, size: int) -> None:
    same(*plans(mlp("Tanh"), size, weights))


@pytest.mark.parametrize("size", [1, 700])
def test_large_rows_and_outputs_are_not_copied(size: int) -> None:
    """Rows may lie apart or have another type, and two outputs may be one array."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Identity", ["y"], ["same"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    content = file(nodes, {"w": weight(40, 30)}, {"x": [40]}, ["y", "z", "same"])
    ours, theirs, rows = plans(content, size)
    same(ours, theirs, rows)
    apart = np.empty((size, 80), np.float32)[:, ::2]
    apart[...] = rows[0]
    same(ours, theirs, [apart])
    first, again = ours(rows)[0], ours([rows[0] + 1])[0]
    assert not np.allclose(first, again)


@pytest.mark.parametrize("size", [1, 4])
def test_an_input_may_be_an_output(size: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Identity", ["state"], ["next"]),
    ]
    content = file(nodes, {"w": weight(6, 3)}, {"x": [6], "state": [2]}, ["y", "next"])
    ours, theirs, rows = plans(content, size)
    same(ours, theirs, rows)
    assert not np.shares_memory(ours(rows)[1], rows[1])


def _sampler(kind: str) -> bytes:
    """A policy that draws its actions, as ML-Agents exports it, and names the likeliest one."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if kind == "discrete":
        nodes += [
            helper.make_node("Softmax", ["y"], ["p"], axis=1),
            helper.make_node("Log", ["p"], ["l"]),
            helper.make_node("Multinomial", ["l"], ["a"], dtype=TensorProto.INT64, sample_size=1),
            helper.make_node("Multinomial", ["l"], ["b"], dtype=TensorProto.INT32, sample_size=3),
            helper.make_node("ArgMax", ["p"], ["likeliest"], axis=1, keepdims=1),
            helper.make_node("Concat", ["a", "likeliest"], ["both"], axis=1),
        ]
        outputs = ["both", "b"]
    else:
        nodes += [
            helper.make_node("RandomNormalLike", ["y"], ["noise"]),
            helper.make_node("Add", ["y", "noise"], ["a"]),
            helper.make_node("RandomUniformLike", ["y"], ["u"], low=-2.0, high=3.0),
        ]
        outputs = ["a", "u"]
    return file(nodes, {"w": weight(6, 5)}, {"x": [6]}, outputs)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("size", mostly_slow([7], [1, 300]))
def test_draws_equal_the_plan_of_xla(kind: str, size: int) -> None:
    same(*plans(_sampler(kind), size))


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("size", mostly_slow([1, 7], [300]))
def test_draws_of_single_rows_equal_the_plan_of_xla(kind: str, size: int) -> None:
    """With the batch fixed to 1, each row has a key of its own."""
    model = onnx.ModelProto.FromString(_sampler(kind))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    ours, theirs, rows = plans(model.SerializeToString(), size)
    same(ours, theirs, rows)
    if kind == "continuous" and size > 1:
        rows[0][...] = rows[0][0]
        alike = ours(rows)[0]
        assert not np.array_equal(alike[0], alike[1])


def test_another_key_draws_other_numbers() -> None:
    ours, theirs, rows = plans(_sampler("continuous"), 4)
    first = ours(rows)[0]
    rows[-1] = np.array([1, 2], np.uint32)
    same(ours, theirs, rows)
    assert not np.array_equal(first, ours(rows)[0])


def test_threads_share_a_plan() -> None:
    ours, theirs, _ = plans(mlp("Relu"), 5)
    wrong = []

    def work(seed: int) -> None:
        rows = [np.random.default_rng(seed).standard_normal((5, 19)).astype(np.float32)]
        expected = theirs(rows)[0]
        for _ in range(200):
            if not np.allclose(ours(rows)[0], expected, rtol=1e-5, atol=2e-5):
                wrong.append(seed)

    in_threads(4, work)
    assert not wrong


def test_new_weights_reach_a_direct_plan() -> None:
    inferer = memojax.load(mlp("Relu"), weights="argument", preload=[3])
    rows = {"x": np.ones((3, 19), np.float32)}
    before = inferer.infer_arrays(rows)["y"]
    inferer.update_params({name: 2 * np.asarray(value) for name, value in inferer.params.items()})
    after = inferer.infer_arrays(rows)["y"]
    expected = memojax.load(mlp("Relu")).infer_arrays(rows)["y"]
    assert before.shape == after.shape == expected.shape
    assert not np.allclose(before, after)


def test_direct_plans_are_stored(tmp_path: Path) -> None:
    content = mlp("Tanh")
    rows = {"x": np.ones((3, 19), np.float32)}
    first = memojax.load(content, preload=[3], cache_dir=tmp_path)
    second = memojax.load(content, preload=[3], cache_dir=tmp_path)
    assert second.cache_info().disk_hits == 1
    np.testing.assert_array_equal(first.infer_arrays(rows)["y"], second.infer_arrays(rows)["y"])


def two_layers(width: int) -> bytes:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    return file(nodes, {"w": weight(64, width), "v": weight(width, 4)}, {"x": [64]}, ["y"])


def test_large_weights_are_stored_once_and_found_again(tmp_path: Path) -> None:
    content, rows = two_layers(300), {"x": np.ones((3, 64), np.float32)}
    first = memojax.load(content, preload=[2, 3], cache_dir=tmp_path)
    cache = DiskCache(tmp_path)
    (weights,) = (entry for entry in cache.entries() if not entry.is_plan)
    assert [entry.is_plan for entry in cache.entries()].count(True) == 2
    assert weights.bytes > 64 * 300 * 4 > 2 * max(e.bytes for e in cache.entries() if e.is_plan)
    expected = first.infer_arrays(rows)["y"]
    del first
    gc.collect()

    os.utime(weights.path, (1, 1))
    second = memojax.load(content, preload=[3], cache_dir=tmp_path)
    assert second.cache_info().disk_hits == 1
    np.testing.assert_array_equal(second.infer_arrays(rows)["y"], expected)
    assert weights.path.stat().st_mtime > 1, "a plan's weights are as recently used as the plan"
    os.utime(weights.path, (1, 1))
    second.preload([2])
    assert second.cache_info().disk_hits == 2
    assert weights.path.stat().st_mtime > 1, "weights that are in memory count as used, too"


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_plans_whose_weights_are_gone_compile_again(tmp_path: Path, harm: str) -> None:
    content, rows = two_layers(300), {"x": np.ones((3, 64), np.float32)}
    expected = memojax.load(content, preload=[3], cache_dir=tmp_path).infer_arrays(rows)["y"]
    gc.collect()
    (weights,) = (entry.path for entry in DiskCache(tmp_path).entries() if not entry.is_plan)
    if harm == "removed":
        weights.unlink()
    else:
        raw = bytearray(weights.read_bytes())
        raw[len(raw) // 2] ^= 1
        weights.write_bytes(bytes(raw))
    for hits in (0, 1):
        policy = memojax.load(content, preload=[3], cache_dir=tmp_path)
        assert policy.cache_info().disk_hits == hits
        np.testing.assert_array_equal(policy.infer_arrays(rows)["y"], expected)
        del policy
        gc.collect()


def test_an_artifact_carries_large_weights_once() -> None:
    artifact = memojax.PlanArtifact()
    policy = memojax.load(two_layers(300), preload=[2, 3], cache_dir=artifact)
    assert len(artifact) == 2
    assert artifact.nbytes < 2 * 64 * 300 * 4
    copy = pickle.loads(pickle.dumps(policy))
    copy.preload([2, 3])
    assert copy.cache_info().disk_hits == 2


@pytest.mark.skipif(os.name != "posix", reason="the helper process is POSIX's")
def test_the_helper_sends_large_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    content = two_layers(300)
    helper_process = own_helper(monkeypatch)  # no other test has made it refuse
    policy = memojax.load(content, compile_in="process", preload=[2, 3])
    running = helper_process._running
    assert running is not None, helper_process._refused
    arrays = [found for found in running._weights.values() if found]
    helper_process.exit()
    assert len(arrays[-1]) == 1
    plans = [policy._engine.cache.peek(size).executable.made.program for size in (2, 3)]
    large = [next(w for w in plan.weights if w.nbytes > 1 << 16) for plan in plans]
    assert large[0] is large[1] is next(iter(arrays[-1].values()))
    rows = {"x": np.ones((3, 64), np.float32)}
    here = memojax.load(content, compile_in="thread")
    np.testing.assert_array_equal(policy.infer_arrays(rows)["y"], here.infer_arrays(rows)["y"])


def test_the_executable_of_a_program_holds_no_weights() -> None:
    policy = memojax.load(two_layers(300))
    typed = policy.typed
    made = PlanCompiler(typed, cpu_device(), "constant").lower(3, KERNELS).compile().executable.made
    assert made.program is not None
    assert len(made.executable.as_text()) < 64 * 300
    weights = [np.asarray(weight) for weight in made.program.weights]
    x = np.ones((3, 64), np.float32)
    (made_by_xla,) = jax.tree.leaves(made.executable(*weights, x))
    np.testing.assert_array_equal(np.ravel(made_by_xla)[:12], np.ravel(policy.infer_arrays({"x": x})["y"]))


@pytest.mark.parametrize("width", [32, 300], ids=["with the plan", "apart from it"])
def test_sizes_that_are_loaded_share_their_weights(width: int) -> None:
    typed = memojax.load(two_layers(width)).typed
    compiler = PlanCompiler(typed, cpu_device(), "constant")
    stored = [as_bytes(compiler.lower(size, KERNELS).compile().executable.made) for size in (2, 3)]
    weights = stored[0][1]
    assert bool(weights) == (width == 300)
    assert stored[1][1].keys() == weights.keys()
    loaded = [
        from_bytes(payload, [compiler.device], lambda digest, held: weights[digest] if held is None else held)
        for payload, _ in stored
    ]
    first, second = (one.program for one in loaded)
    assert first
    assert second
    assert len(first.weights) == len(second.weights) > 1
    for one, other in zip(first.weights, second.weights, strict=True):
        assert one is other
    assert all(len(payload) < 1 << 16 for payload, _ in stored)


def test_denormals_are_zero_as_in_xla() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Mul", ["y", "s"], ["z"])]
    weights = {"w": np.eye(4, dtype=np.float32), "s": np.array([1e-30], np.float32)}
    ours, theirs, _ = plans(file(nodes, weights, {"x": [4]}, ["z"]), 2)
    rows = [np.array([[1e-10, 1, 2e-9, 1e-39], [1, 1e-8, 0, -1e-12]], np.float32)]
    for given, expected in zip(ours(rows), theirs(rows), strict=True):
        np.testing.assert_array_equal(given, expected)
    assert np.float32(1e-30) * np.float32(1e-10) != 0  # Python's own arithmetic is as before


def test_equal_rows_give_equal_bits_beside_other_callers() -> None:
    """Long sums of large rows: another order of adding would show, and look like rows that mix."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    compiler = PlanCompiler(
        memojax.load(file(nodes, {"w": weight(3000, 24)}, {"x": [3000]}, ["y"])).typed, cpu_device()
    )
    plan = compiler.lower(40, KERNELS).compile()
    assert isinstance(plan.executable.made.program, Direct)
    rows = [8 * np.random.default_rng(0).standard_normal((40, 3000)).astype(np.float32)]
    expected = np.array(plan(rows)[0])
    wrong: list[int] = []

    def calls(_: int) -> None:
        for number in range(60):
            if number % 20 == 0:
                time.sleep(0.02)  # Workers go to sleep.
            if not np.array_equal(plan(rows)[0], expected):
                wrong.append(number)

    in_threads(3, calls)
    assert not wrong
    typed, run = compiler.typed, plan.executable.run
    assert mixing_rows(typed.api.inputs, typed.computed, 40, lambda given: [*map(np.array, run(given))]) == ()
