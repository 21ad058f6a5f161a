"""The compile helper: it makes the same plans, nothing compiles twice, and calls go on if it fails."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import memojax
from memojax.errors import CompileError, OptionError
from memojax.plans import helper as helper_module
from memojax.plans.compiler import PlanCompiler
from memojax.plans.helper import Helper, helper
from memojax.xla.background import submit

from ..helpers import own_helper

POLICY = memojax.policies.bundled("acrobot_ppo")
OBS = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the helper process is POSIX's")


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    helper.stop()


@pytest.fixture
def not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every compile in this process fail."""

    def refuse(*given: Any, **options: Any) -> Any:
        raise CompileError("compiled in this process")

    monkeypatch.setattr(PlanCompiler, "lower", refuse)
    monkeypatch.setattr(PlanCompiler, "prepare", refuse)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.02)


def expected(n: int) -> np.ndarray:
    return memojax.load(POLICY, compile_in="thread").infer_arrays({"obs": OBS[:n]})["logits"]


@pytest.mark.slow
def test_the_helper_divides_the_work_of_a_plan_as_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA divides a large step by the cores of its threads, of which the helper leaves one to the loop."""
    monkeypatch.setenv("MEMOJAX_KERNELS", "0")
    code = """
        import os, re, memojax
        from memojax.plans.helper import helper
        found = []
        for where in ("thread", "process"):
            file = memojax.policies.bundled("acrobot_ppo")
            policy = memojax.load(file, compile_in=where, threads=1)  # no halves, which divide nothing
            for size in (3, 4096, 2048, 2):  # the helper remembers how earlier plans went
                policy.preload([size])
            for plan in sorted(policy._engine.cache.plans(), key=lambda plan: plan.size):
                found.append(re.findall('partitions":.[^]]*]', plan.executable.made.executable.as_text()))
        assert helper.plans == 4, helper.plans
        assert found[:4] == found[4:], found
        divided = [any('["' in mark for mark in marks) for marks in found[:4]]
        assert divided == [False, False, True, True] or len(os.sched_getaffinity(0)) < 2, found
        print(found)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has affinity")
def test_the_helper_leaves_a_core_to_the_loop() -> None:
    memojax.load(POLICY, preload=[2], compile_in="process")
    ours, pid = os.sched_getaffinity(0), helper.pid
    assert pid is not None
    for task in os.listdir(f"/proc/{pid}/task"):
        theirs = os.sched_getaffinity(int(task))
        assert theirs <= ours
        assert len(theirs) == max(1, len(ours) - 1)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)
def test_the_helper_leaves_the_core_to_which_the_loop_moves() -> None:
    child = """
        import os, sys
        os.sched_setaffinity(0, eval(sys.argv[1]))
        from memojax.plans.helper_process import _Cores
        cores = _Cores()
        while input():
            cores.follow()
            print(*os.sched_getaffinity(0), flush=True)
    """
    parent = """
        import os, subprocess, sys
        cores = sorted(os.sched_getaffinity(0))
        command = [sys.executable, "-c", sys.argv[1], str(cores)]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as child:
            for core in [*cores[:2], *cores[:2]]:
                os.sched_setaffinity(0, {core})
                print("follow", file=child.stdin)
                left = set(cores) - set(map(int, child.stdout.readline().split()))
                assert left == {core}, (left, core)
            print(file=child.stdin)
    """
    command = [sys.executable, "-c", textwrap.dedent(parent), textwrap.dedent(child)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.parametrize("weights", ["constant", "argument"])
@pytest.mark.usefixtures("not_here")
def test_the_helper_makes_the_plans_of_this_process(weights: Any) -> None:
    policy = memojax.load(POLICY, weights=weights)
    policy.preload([2, 5], background=True).wait(60)
    inside = memojax.load(POLICY, preload=[3], weights=weights, compile_in="process")
    assert [plan.size for plan in policy.plans()] == [2, 5]
    info = policy.cache_info()
    assert (info.misses, info.disk_hits, info.failed) == (0, 0, {})
    with memojax.forbid_compile():
        got = [policy.infer_arrays({"obs": OBS[:n]})["logits"] for n in (2, 5)]
        got.append(inside.infer_arrays({"obs": OBS[:3]})["logits"])
    for n, answer in zip((2, 5, 3), got, strict=True):
        assert answer.shape == (n, 3)


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_helper_plans_give_the_same_numbers(weights: Any) -> None:
    made = helper.plans
    policy = memojax.load(POLICY, weights=weights, preload=[2, 9], compile_in="process")
    assert helper.plans == made + 2
    for n in (2, 9):
        np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:n]})["logits"], expected(n))
    policy.update_params({name: 0 * value for name, value in policy.params.items()})
    assert not policy.infer_arrays({"obs": OBS})["logits"].any()
    policy.preload([4])
    assert not policy.infer_arrays({"obs": OBS[:4]})["logits"].any()
    assert (
        policy.plans()[0].candidate
        == memojax.load(POLICY, preload=[2], compile_in="thread").plans()[0].candidate
    )


def test_user_settings_do_not_change_helper_plans() -> None:
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"), jax.debug_nans(True):
        policy = memojax.load(POLICY, preload=[7], compile_in="process")
        got = policy.infer_arrays({"obs": OBS[:7]})["logits"]
    np.testing.assert_array_equal(got, expected(7))


def test_the_helper_takes_random_models_and_free_dimensions() -> None:
    noisy = memojax.policies.bundled("pendulum_ppo")
    rows = {spec.name: np.ones((4, *spec.shape), spec.dtype) for spec in memojax.load(noisy).api.inputs}
    answers = [
        memojax.load(noisy, preload=[4], compile_in=where, seed=3).infer_arrays(rows)
        for where in ("process", "thread")
    ]
    for name, value in answers[0].items():
        np.testing.assert_array_equal(value, answers[1][name])


def test_a_model_is_sent_once_and_forgotten_with_its_last_user() -> None:
    made = helper.plans
    typed = memojax.TypedModel.from_model(POLICY)
    memojax.load(typed, preload=[1], compile_in="process")
    assert helper._running is not None
    known = helper._running._known
    _, sent_as = known[id(typed)]
    memojax.load(typed, preload=[2, 3], compile_in="process")
    next_number = next(helper._running._numbers)
    assert known[id(typed)][1] == sent_as
    assert next_number == sent_as + 1  # each model that is sent takes a number
    assert helper.plans == made + 3
    number = id(typed)
    del typed
    memojax.load(POLICY, preload=[1], compile_in="process")
    assert number not in known or known[number][0]() is not None


def test_a_function_is_compiled_here() -> None:
    typed = memojax.TypedModel.from_function(
        lambda w, x: {"y": w * x["obs"]}, np.float32(2), {"obs": ((6,), np.float32)}
    )
    made = helper.plans
    policy = memojax.load(typed, preload=[2], compile_in="process")
    np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:2]})["y"], 2 * OBS[:2])
    assert helper.plans == made


def test_a_failing_compile_raises_the_usual_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOJAX_MAX_RUN_BYTES", "1")
    for where in ("process", "thread"):
        with pytest.raises(memojax.errors.LimitError, match="MEMOJAX_MAX_RUN_BYTES"):
            memojax.load(POLICY, preload=[6], compile_in=where)


def test_a_plan_that_fails_in_the_helper_is_not_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = memojax.load(POLICY, preload=[1], compile_in="process")
    monkeypatch.setenv("MEMOJAX_MAX_RUN_BYTES", "1")
    here: list[int] = []
    lower = PlanCompiler.lower

    def noted(self: PlanCompiler, size: int, *given: Any, **options: Any) -> Any:
        here.append(size)
        return lower(self, size, *given, **options)

    monkeypatch.setattr(PlanCompiler, "lower", noted)
    for background in (True, False):
        with pytest.raises(memojax.errors.LimitError, match="MEMOJAX_MAX_RUN_BYTES"):
            policy.preload([8], background=background).wait(60)
    assert here == []
    monkeypatch.delenv("MEMOJAX_MAX_RUN_BYTES")
    policy.preload([8])
    np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:8]})["logits"], expected(8))


def test_a_killed_process_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = own_helper(monkeypatch)
    policy = memojax.load(POLICY, preload=[1], compile_in="process")
    for n in (2, 3, 4, 5):
        if made.pid is not None:
            os.kill(made.pid, signal.SIGKILL)
            until(lambda: made.pid is None)
        with caplog.at_level(logging.INFO, "memojax"):
            policy.preload([n])
        np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:n]})["logits"], expected(n))
        if made.crashes < 3:
            policy.preload([n + 4])
    assert (made.crashes, made.started) == (3, 3)
    assert "the process that compiles was lost" in caplog.text
    assert "helper processes were lost" in caplog.text


def test_a_helper_that_ended_without_work_is_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    made = own_helper(monkeypatch)
    policy = memojax.load(POLICY, preload=[1], compile_in="process")
    assert made._running is not None
    made._running.let_go()  # The process sees that its parent is gone.
    made._running.process.wait(30)
    policy.preload([2])
    assert (made.crashes, made.started, made.plans) == (0, 2, 2)
    made.stop()


def test_cases_without_the_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    made = own_helper(monkeypatch)
    memojax.load(POLICY, preload=[1])  # Nothing compiles in the background here.
    memojax.load(POLICY, compile_in="thread").preload([1], background=True).wait(60)
    with monkeypatch.context() as patch:
        patch.setattr(helper_module, "available_bytes", lambda device: 1 << 20)
        memojax.load(POLICY, preload=[1], compile_in="process")
    with monkeypatch.context() as patch:
        import multiprocessing

        patch.setitem(multiprocessing.current_process()._config, "daemon", True)  # pyright: ignore[reportAttributeAccessIssue]
        memojax.load(POLICY, preload=[1], compile_in="process")
    memojax.load(POLICY, preload=[1], compile_in="process")
    assert (made.started, made.plans) == (0, 0)
    with pytest.raises(OptionError, match="compile_in= takes 'auto', 'process', 'thread', not 'fork'"):
        memojax.load(POLICY, compile_in="fork")  # pyright: ignore[reportArgumentType]


def test_models_with_registered_operators_compile_here(monkeypatch: pytest.MonkeyPatch) -> None:
    made = own_helper(monkeypatch)

    @memojax.ops.register("OnlyHere", domain="my.helper")
    def only_here(x: Any) -> Any:
        return x

    try:
        memojax.load(POLICY, preload=[1], compile_in="process")
        assert (made.plans, made.pid) == (0, None)
    finally:
        memojax.ops.registry.remove("my.helper", "OnlyHere")


def test_helper_plans_are_stored_for_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memojax.load(POLICY, preload=[3], compile_in="process", cache_dir=tmp_path)
    other = memojax.load(POLICY, preload=[3], compile_in="process", cache_dir=tmp_path)
    assert other.cache_info().disk_hits == 1
    np.testing.assert_array_equal(other.infer_arrays({"obs": OBS[:3]})["logits"], expected(3))


def test_an_interrupt_between_order_and_answer_does_not_mix_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = own_helper(monkeypatch)
    policy = memojax.load(POLICY, preload=[1], compile_in="process")
    with monkeypatch.context() as patch:

        def interrupted(pipe: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(helper_module, "received", interrupted)
        with pytest.raises(KeyboardInterrupt):
            policy.preload([2])
    policy.preload([3, 2])
    assert (made.crashes, made.started) == (0, 2)
    for n in (2, 3):
        np.testing.assert_array_equal(policy.infer_arrays({"obs": OBS[:n]})["logits"], expected(n))
    made.stop()


def test_new_weights_in_the_background_do_not_wait_for_compiles() -> None:
    policy = memojax.load(POLICY, preload=[2])
    going, started = threading.Event(), threading.Event()
    behind = submit(lambda: (started.set(), going.wait(60)))
    assert started.wait(30)
    done = policy.update_params({name: 0 * value for name, value in policy.params.items()}, background=True)
    done.result(30)
    assert not behind.done()
    going.set()
    behind.result(30)
    assert not policy.infer_arrays({"obs": OBS[:2]})["logits"].any()


def test_new_weights_in_the_background_during_a_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that compiles during the update gives the new numbers, too."""
    policy = memojax.load(POLICY, preload=[2], weights="argument")
    asked, go = threading.Event(), threading.Event()
    make = Helper.make

    def slow(self: Helper, *given: Any) -> Any:
        made = make(self, *given)  # a real compile in the helper process
        asked.set()
        assert go.wait(60)
        return made

    monkeypatch.setattr(Helper, "make", slow)
    compile = policy.preload([4], background=True)
    assert asked.wait(60)
    new = {name: value * np.float32(0.5) for name, value in policy.params.items()}
    policy.update_params(new, background=True).result(60)
    assert not compile.done()
    updated = policy.infer_arrays({"obs": OBS[:2]})["logits"]
    go.set()
    compile.wait(60)
    assert policy.is_ready(4)
    other = memojax.load(POLICY, compile_in="thread", weights="argument")
    other.update_params(new)
    for n, found in ((2, updated), (4, policy.infer_arrays({"obs": OBS[:4]})["logits"])):
        np.testing.assert_allclose(found, other.infer_arrays({"obs": OBS[:n]})["logits"], rtol=1e-6)
        assert not np.allclose(found, expected(n))


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_new_weights_in_the_background_while_xla_compiles(weights: Any) -> None:
    policy = memojax.load(POLICY, preload=[2], weights=weights)
    compiles = policy.preload(range(10, 40, 3), background=True)
    new = {name: value * np.float32(0.5) for name, value in policy.params.items()}
    policy.update_params(new, background=True).result(60)
    compiles.wait(60)
    other = memojax.load(POLICY, compile_in="thread")
    other.update_params(new)
    for n in (2, 9):
        found = policy.infer_arrays({"obs": OBS[:n]})["logits"]
        np.testing.assert_allclose(found, other.infer_arrays({"obs": OBS[:n]})["logits"], rtol=1e-6)
        assert not np.allclose(found, expected(n))
