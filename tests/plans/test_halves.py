"""Two halves of a batch at the same time: the numbers of the whole, and threads on two cores."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.plans import compiler as compilers
from memojax.plans import halves, serialized
from memojax.plans.candidates import DEFAULT, HALVES, PLAIN
from memojax.plans.choice import HALVES_FROM, all_work
from memojax.plans.compiler import PlanCompiler
from memojax.plans.plan import Plan
from memojax.xla import pair as pairs
from memojax.xla.cpu_client import cpu_device
from tests.helpers import in_threads
from tests.system.interrupts import bad_points

RNG = np.random.default_rng(0)
WIDE = 64

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has affinity")


@pytest.fixture(autouse=True)
def two_cores_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "opened", lambda: None)
    monkeypatch.setattr(compilers, "usable_cores", lambda: 2)


def network(*, noise: bool = False, mixing: bool = False) -> bytes:
    """Rows of [24] and of int64[1] to a hidden layer, logits (with draws added), and their best."""
    weights = {
        "w": RNG.standard_normal((24, WIDE)).astype(np.float32),
        "v": RNG.standard_normal((WIDE, 5)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["g"]),
        helper.make_node("Cast", ["shift"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["g", "s"], ["gs"]),
        helper.make_node("Tanh", ["gs"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["l"]),
    ]
    last = "l"
    if noise:
        nodes += [
            helper.make_node("RandomNormalLike", ["l"], ["e"]),
            helper.make_node("Add", ["l", "e"], ["noisy"]),
        ]
        last = "noisy"
    if mixing:
        nodes += [
            helper.make_node("ReduceMax", ["h"], ["m"], keepdims=0),
            helper.make_node("Sub", [last, "m"], ["mixed"]),
        ]
        last = "mixed"
    nodes += [
        helper.make_node("Identity", [last], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 24]),
        helper.make_tensor_value_info("shift", TensorProto.INT64, ["n", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", WIDE]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5]),
        helper.make_tensor_value_info("best", TensorProto.INT64, ["n"]),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def compiler_of(content: bytes, **options: Any) -> PlanCompiler:
    return PlanCompiler(memojax.load(content).typed, cpu_device(), **options)


def rows_of(size: int) -> list[np.ndarray]:
    return [
        RNG.standard_normal((size, 24)).astype(np.float32),
        RNG.integers(-1, 2, (size, 1)).astype(np.int64),
    ]


def both(compiler: PlanCompiler, size: int) -> tuple[Plan, Plan]:
    """The plan in halves, and the plan of the whole."""
    plans = tuple(compiler.lower(size, way).compile() for way in (HALVES, PLAIN))
    assert [plan.executable.candidate for plan in plans] == ["halves", "xla"]
    return plans[0], plans[1]


def assert_equal(given: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(given, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["constant", "argument"])
@pytest.mark.parametrize("size", [2, 3, 16, 401])
def test_halves_give_the_numbers_of_the_whole(size: int, weights: Any) -> None:
    split, whole = both(compiler_of(network(), weights=weights), size)
    for _ in range(3):
        rows = rows_of(size)
        results = split(rows)
        assert_equal(results, whole(rows))
        assert all(not result.flags.writeable for result in results)


@pytest.mark.parametrize("size", [2, 5, 64])
def test_each_half_draws_what_the_whole_draws_for_its_rows(size: int) -> None:
    split, whole = both(compiler_of(network(noise=True)), size)
    rows, drawn = rows_of(size), set()
    for seed in range(3):
        key = np.array([seed, 7], np.uint32)
        results = split(rows, key)
        assert_equal(results, whole(rows, key))
        drawn.add(results[1].tobytes())
    assert len(drawn) == 3


def test_rows_that_xla_cannot_read_where_they_lie() -> None:
    size = 3_000  # beyond the inputs that are always copied
    split, whole = both(compiler_of(network()), size)
    rows = rows_of(size)
    expected = whole(rows)
    spread = np.empty((size, 48), np.float32)
    spread[:, ::2] = rows[0]
    shifted = np.empty(size * 24 + 1, np.float32)[1:].reshape(size, 24)
    shifted[:] = rows[0]
    for first in (rows[0], spread[:, ::2], shifted, np.asfortranarray(rows[0])):
        assert_equal(split([first, rows[1]]), expected)


def test_results_stay_while_later_calls_run_in_threads() -> None:
    split, whole = both(compiler_of(network()), 33)
    asked = [rows_of(33) for _ in range(12)]
    answers = in_threads(4, lambda number: [split(rows) for rows in asked[number::4]])
    for number, answer in enumerate(answers):
        for rows, results in zip(asked[number::4], answer, strict=True):
            assert_equal(results, whole(rows))


def test_a_fault_at_any_line_of_a_call_spoils_no_later_call() -> None:
    plan, _ = both(compiler_of(network()), 6)
    rows, others = rows_of(6), rows_of(6)
    expected = plan(rows)

    def scenario() -> tuple[Callable[[], Any], Callable[[bool], None]]:
        def check(interrupted: bool) -> None:
            plan(others)
            for given, right in zip(plan(rows), expected, strict=True):
                np.testing.assert_array_equal(given, right)

        return lambda: plan(rows), check

    points = list(bad_points(scenario))
    assert len(points) > 20
    assert not [wrong for _, wrong in points if wrong]


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["", "raise SystemExit(3)", "fork()"])
def test_a_process_ends_while_threads_call_a_plan_in_halves(ends: str) -> None:
    script = f"""
        import os, threading, time
        import numpy as np, memojax
        from memojax.plans import choice, compiler

        choice.HALVES_FROM = 0
        compiler.opened, compiler.usable_cores = lambda: None, lambda: 2
        policy = memojax.load("acrobot_ppo", preload=[64])
        assert [plan.candidate for plan in policy.plans()] == ["halves"]
        rows = {{name: np.zeros((64, *shape), np.float32) for name, shape in policy.input_shapes()}}

        def play():
            while True:
                policy.infer_arrays(rows)

        def fork():
            child = os.fork()
            if child:
                raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            try:
                policy.infer_arrays(rows)
            except memojax.errors.ForkError:
                os._exit(3)

        for _ in range(2):
            threading.Thread(target=play, daemon=True).start()
        time.sleep(0.2)
        {ends}
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == (3 if ends else 0), done.stderr


def test_dictionaries_are_checked_as_for_other_plans() -> None:
    split, whole = both(compiler_of(network()), 6)
    rows = dict(zip(("x", "shift"), rows_of(6), strict=True))
    given = split.answer(rows, None)
    assert given is not None
    assert_equal(list(given.values()), whole(list(rows.values())))
    assert split.answer({**rows, "x": rows["x"][:5]}, None) is None
    wider = split.answer({**rows, "x": rows["x"].astype(np.float64)}, None)
    assert wider is not None
    assert_equal(list(wider.values()), list(given.values()))


def test_new_weights_reach_both_halves() -> None:
    content = network()
    compiler = compiler_of(content, weights="argument")
    split, _ = both(compiler, 8)
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    other = memojax.load(model).typed
    compiler.updating(other)()
    rows = rows_of(8)
    assert_equal(split(rows), PlanCompiler(other, cpu_device()).lower(8, PLAIN).compile()(rows))


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_a_stored_plan_has_both_halves(weights: Any) -> None:
    compiler = compiler_of(network(noise=True), weights=weights)
    split, _ = both(compiler, 9)
    payload, arrays = serialized.as_bytes(split.executable.made)
    made = serialized.from_bytes(payload, [cpu_device()], lambda digest, held: arrays[digest])
    residual = compiler.trace(9) if weights == "argument" else None
    again = compiler.adopt(9, made, 1.0, DEFAULT, residual)
    assert again.executable.candidate == "halves"
    rows, key = rows_of(9), np.array([1, 2], np.uint32)
    assert_equal(again(rows, key), split(rows, key))


def test_a_plan_on_disk_runs_in_halves_in_the_next_load(tmp_path: Path) -> None:
    content, size, answers = network(), 5_000, []
    for hits in (0, 1):
        policy = memojax.load(content, cache_dir=tmp_path, preload=[size])
        assert [plan.candidate for plan in policy.plans()] == ["halves"]
        assert policy.cache_info().disk_hits == hits
        x, shift = np.ones((size, 24), np.float32), np.zeros((size, 1), np.int64)
        answers.append(policy.infer_arrays({"x": x, "shift": shift})["y"])
    np.testing.assert_array_equal(*answers)


def test_the_work_of_a_call_decides() -> None:
    compiler = compiler_of(network())
    row = all_work(compiler.trace(1))
    assert row == 2 * (24 * WIDE + WIDE * 5)
    least = int(HALVES_FROM // row) + 1
    found = [compiler.lower(size).compile().executable.candidate for size in (least - 1, least)]
    assert found == ["default", "halves"]


def test_each_turn_of_a_loop_is_work() -> None:
    steps, inputs, hidden = 40, 3, 8
    weights = {
        "w": RNG.standard_normal((1, 4 * hidden, inputs)).astype(np.float32),
        "r": RNG.standard_normal((1, 4 * hidden, hidden)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "h"], hidden_size=hidden),
        helper.make_node("Squeeze", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", steps, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", hidden])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trace = compiler_of(model.SerializeToString()).trace(2)
    assert "scan" in {step.primitive.name for step in trace.steps}
    assert all_work(trace) == 2 * steps * 2 * 4 * hidden * (inputs + hidden)


@pytest.mark.parametrize("reason", ["one core", "four cores", "one thread", "rows mix", "no pair"])
def test_other_plans_stay_whole(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {"one core": 1, "four cores": 4}.get(reason, 2)
    monkeypatch.setattr(compilers, "usable_cores", lambda: cores)
    if reason == "no pair":
        monkeypatch.setattr(halves, "pair", lambda: None)
    threads = 1 if reason == "one thread" else None
    compiler = compiler_of(network(mixing=reason == "rows mix"), threads=threads)
    assert compiler.lower(5_000).compile().executable.candidate == "default"
    # A choice that another process stored may ask for halves.
    assert reason in ("one core", "four cores", "one thread") or (
        compiler.lower(8, HALVES).compile().executable.candidate == "default"
    )


def test_a_half_that_does_not_compile_costs_only_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no second client")

    monkeypatch.setattr(halves, "again_on", fail)
    compiler = compiler_of(network())
    plan = compiler.lower(5_000).compile()
    assert plan.executable.candidate == "xla"
    rows = rows_of(5_000)
    assert_equal(plan(rows), compiler.lower(5_000, PLAIN).compile()(rows))


def test_the_threads_of_the_second_client_leave_the_core_of_the_caller() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core")
    started, end = threading.Event(), threading.Event()
    found: list[int] = []

    def wait() -> None:
        found.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    core = min(allowed)
    part = pairs._parted(found, lambda: core)
    try:
        part()
        assert os.sched_getaffinity(found[0]) == allowed - {core}
        core = max(allowed)
        part()
        assert os.sched_getaffinity(found[0]) == allowed - {core}
    finally:
        end.set()
        thread.join()
    core = min(allowed)
    part()  # a thread that has ended


def test_making_the_clients_leaves_the_caller_all_cores() -> None:
    allowed = os.sched_getaffinity(0)
    device, threads = pairs._client(asynchronous=True)
    assert os.sched_getaffinity(0) == allowed
    assert threads
    assert all(os.sched_getaffinity(thread) == allowed for thread in threads)
    names = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads]
    assert names.count("tf_XLAEigen") == 1, "XLA shares steps among the threads of a client"
    assert (np.asarray(jax.device_put(np.arange(3), device)) == np.arange(3)).all()
