"""Autotuning: a faster candidate takes over between two calls, and a wrong one never does."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import memojax
from memojax import MemoizingDynamicInferer, TypedModel
from memojax.plans import autotune, compiler
from memojax.plans.candidates import (
    CANDIDATES,
    CONVOLUTIONS,
    DEFAULT,
    EIGEN,
    FLIPPED,
    FUSED,
    LAYERS,
    LOOPS,
    NARROW,
    TWO_ROWS,
    Candidate,
)
from memojax.plans.compiler import PlanCompiler
from memojax.plans.tuning_log import NAME, Choices
from memojax.xla import background as worker
from memojax.xla.cpu_client import cpu_device

RNG = np.random.default_rng(0)
WEIGHTS = [(RNG.standard_normal((16, 16)) / 4).astype(np.float32) for _ in range(3)]
X = RNG.standard_normal((8, 16)).astype(np.float32)
POLICY = Path(memojax.__file__).parent / "policies" / "acrobot_ppo.onnx"


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans start from XLA's default, so that tests know their starting point."""
    monkeypatch.setattr("memojax.plans.compiler.opened", lambda: None)


def network(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    y = x["x"]
    for w in params:
        y = jnp.tanh(y @ w)
    return {"y": y, "best": jnp.argmax(y, 1)}


def typed() -> TypedModel:
    return TypedModel.from_function(network, WEIGHTS, {"x": ((16,), np.float32)})


def expected(x: np.ndarray) -> np.ndarray:
    for w in WEIGHTS:
        x = np.tanh(x @ w)
    return x


def check(inferer: MemoizingDynamicInferer, n: int) -> None:
    np.testing.assert_allclose(inferer.infer_arrays({"x": X[:n]})["y"], expected(X[:n]), rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Wrong:
    """A candidate with slightly wrong results."""

    name: str = "wrong"
    options: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = False
    rows: int = 1
    kernels: bool = False
    ordered: bool = False
    layouts: bool = False
    halves: bool = False

    def trace(self, residual: Any, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        first, *others = residual(leading, inputs)
        return [first + 0.01, *others]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Candidates to try, each of which seems `gain` times as fast."""

    def use(*candidates: Any, gain: float = 2.0) -> None:
        monkeypatch.setattr(autotune, "candidates", lambda *_: list(candidates))
        monkeypatch.setattr(autotune, "compare", lambda *_: gain)

    return use


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("never happened")


def executables() -> int:
    gc.collect()
    return len(cpu_device().client.live_executables())


def test_off_compiles_only_the_default(tried: Callable[..., None]) -> None:
    tried(FUSED)
    before = executables()
    inferer = MemoizingDynamicInferer(typed(), [2])
    for _ in range(200):
        check(inferer, 2)
    worker.submit(lambda: None).result(30)
    assert executables() == before + 1
    assert [(plan.candidate, plan.gain) for plan in inferer.plans()] == [("default", None)]


@pytest.mark.parametrize(
    "candidate",
    [
        FUSED,
        LAYERS,
        CONVOLUTIONS,
        EIGEN,
        Candidate("options", {"xla_cpu_prefer_vector_width": "512"}),
        FLIPPED,
        TWO_ROWS,
    ],
)
def test_winners_give_the_defaults_numbers(tried: Callable[..., None], candidate: Candidate) -> None:
    tried(candidate)
    inferer = MemoizingDynamicInferer(typed(), [1], autotune="preload")
    (plan,) = inferer.plans()
    assert (plan.candidate, plan.gain) == (
        candidate.name,
        2.0,
    ) or plan.candidate == "default"  # This jaxlib lacks the option.
    plain = MemoizingDynamicInferer(typed(), [1])
    for _ in range(3):
        given, want = inferer.infer_arrays({"x": X[:1]}), plain.infer_arrays({"x": X[:1]})
        np.testing.assert_allclose(given["y"], want["y"], rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(given["best"], want["best"])
        check(inferer, 1)


def test_a_candidate_with_wrong_numbers_is_dropped_with_a_warning(
    tried: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    tried(Wrong())
    inferer = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    check(inferer, 2)
    assert inferer.plans()[0].candidate == "default"
    assert "'wrong' gives other numbers" in caplog.text


@dataclass(frozen=True)
class Breaking(Wrong):
    """A candidate that compiles but cannot run."""

    name: str = "breaking"

    def trace(self, residual: Any, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        def refuse(x: Any) -> Any:
            raise RuntimeError("unsupported instruction")

        first, *others = residual(leading, inputs)
        return [jax.pure_callback(refuse, jax.ShapeDtypeStruct(first.shape, first.dtype), first), *others]


def test_a_candidate_that_cannot_run_is_dropped(tried: Callable[..., None]) -> None:
    tried(Breaking(), NARROW)
    inferer = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    check(inferer, 2)
    assert inferer.plans()[0].candidate == "v256"


def test_no_gain_changes_nothing(tried: Callable[..., None]) -> None:
    tried(FUSED, LAYERS, gain=1.01)
    inferer = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    assert [(plan.candidate, plan.gain) for plan in inferer.plans()] == [("default", 1.0)]


def test_a_candidate_with_unknown_options_is_dropped_silently(
    tried: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    tried(Candidate("unheard-of", {"xla_cpu_no_such_option": "1"}))
    with caplog.at_level(logging.INFO, "memojax"):
        inferer = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    check(inferer, 2)
    assert "unheard-of" not in caplog.text
    assert inferer.plans()[0].candidate == "default"


def test_losers_and_dropped_plans_are_freed(tried: Callable[..., None]) -> None:
    tried(FUSED, LAYERS, gain=1.0)
    before = executables()
    inferer = MemoizingDynamicInferer(typed(), [2, 3], autotune="preload")
    assert executables() == before + 2
    tried(FUSED)
    other = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    assert executables() == before + 3
    other.cache_clear()
    inferer.cache_clear()
    assert executables() == before


def test_calls_are_right_while_a_size_is_tuned(tried: Callable[..., None]) -> None:
    tried(FUSED, Wrong(), LAYERS)
    inferer = MemoizingDynamicInferer(typed(), autotune="background")
    threads = [threading.Thread(target=lambda: [check(inferer, 3) for _ in range(400)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: inferer.plans() != [] and inferer.plans()[0].gain is not None)
    for thread in threads:
        thread.join()
    (plan,) = inferer.plans()
    assert plan.candidate in ("ynn", "ynn-layers", "default")
    assert plan.calls == 1200
    check(inferer, 3)


def test_rarely_used_sizes_are_not_tuned(tried: Callable[..., None]) -> None:
    tried(FUSED)
    inferer = MemoizingDynamicInferer(typed(), autotune="background")
    check(inferer, 2)
    check(inferer, 3)
    worker.submit(lambda: None).result(30)
    assert [plan.gain for plan in inferer.plans()] == [None, None]


def test_tuning_of_a_dropped_plan_stops(tried: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    tried(FUSED)
    gate = threading.Event()
    worker.submit(lambda: gate.wait(30))
    inferer = MemoizingDynamicInferer(typed(), autotune="background")
    for _ in range(100):
        check(inferer, 2)
    inferer.cache_clear()
    before = executables()
    gate.set()
    for _ in range(5):
        worker.submit(lambda: None).result(30)
    assert executables() <= before


def test_update_params_ends_tuning(tried: Callable[..., None]) -> None:
    tried(FUSED)
    inferer = MemoizingDynamicInferer(typed(), [2], autotune="preload")
    inferer.update_params([w * 0 for w in WEIGHTS])
    assert (inferer.infer_arrays({"x": X[:2]})["y"] == 0).all()
    assert (inferer.infer_arrays({"x": X[:3]})["y"] == 0).all()
    assert {plan.candidate for plan in inferer.plans()} == {"default"}


def test_tuning_stays_within_its_budget(tried: Callable[..., None]) -> None:
    tried(Candidate("packed", packs=True))
    weights = sum(w.nbytes for w in WEIGHTS)
    inferer = MemoizingDynamicInferer(
        typed(), [1, 2, 3], autotune="preload", autotune_budget_mb=4.5 * weights / (1 << 20)
    )
    assert [plan.candidate for plan in inferer.plans()] == ["packed", "packed", "default"]
    inferer.cache_clear(1)
    inferer.preload([4])
    assert inferer.plans()[-1].candidate == "packed"


def test_choices_are_remembered_on_disk(tried: Callable[..., None], tmp_path: Path) -> None:
    tried(NARROW)
    first = memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    tried(Wrong())
    again = memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    (plan,) = again.plans()
    assert (plan.candidate, plan.gain) == ("v256", 2.0)
    assert again.cache_info().disk_hits == 1
    obs = {"obs": np.ones((2, 6), np.float32)}
    np.testing.assert_array_equal(first.infer_arrays(obs)["logits"], again.infer_arrays(obs)["logits"])
    off = memojax.load(POLICY, preload=[2], cache_dir=tmp_path)
    assert off.plans()[0].candidate == "default"


def test_nothing_is_written_without_a_folder(
    tried: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMOJAX_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tried(FUSED)
    memojax.load(POLICY, preload=[2], autotune="preload")
    assert list(tmp_path.rglob(NAME)) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', '{"x": {"candidate": "ynn"}}'])
def test_odd_choice_files_are_ignored(tmp_path: Path, content: str) -> None:
    choices = Choices(tmp_path)
    key = {"model": "m", "size": 1}
    choices.put(key, "ynn", 1.5)
    name = next(iter(json.loads(choices.path.read_text())))
    choices.path.write_text(content.replace("x", name))
    assert choices.get(key) is None
    choices.put(key, "v256", 1.2)
    assert choices.get(key) == ("v256", 1.2)


def test_an_unknown_candidate_name_means_the_default(tried: Callable[..., None], tmp_path: Path) -> None:
    tried(NARROW)
    memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text.replace('"v256"', '"of-the-future"'))
    tried()
    inferer = memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    assert inferer.plans()[0].candidate == "default"


def test_a_remembered_candidate_that_does_not_compile_gives_the_default(
    tried: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(NARROW)
    memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    for entry in tmp_path.glob("*.plan"):
        entry.unlink()
    monkeypatch.setitem(CANDIDATES, "v256", Candidate("v256", {"xla_cpu_no_such_option": "1"}))
    inferer = memojax.load(POLICY, preload=[2], autotune="preload", cache_dir=tmp_path)
    assert inferer.plans()[0].candidate == "default"


def test_an_unwritable_folder_causes_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "folder")
    choices.put({"size": 1}, "ynn", 2.0)
    choices.put({"size": 2}, "ynn", 2.0)
    assert caplog.text.count("cannot write its choices") == 1


def test_candidates_follow_the_models_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "has_avx512", lambda: False)
    monkeypatch.setattr(autotune, "has_sound_convolutions", lambda: True)

    def names(fn: Any, weights: Any, shape: tuple[int, ...], size: int) -> list[str]:
        compiler = PlanCompiler(
            TypedModel.from_function(fn, weights, {"x": (shape, np.float32)}), cpu_device()
        )
        return [candidate.name for candidate in autotune.candidates(compiler.trace(size), size, compiler)]

    assert names(lambda w, x: x["x"] * w, np.float32(2), (3,), 1) == []
    assert names(lambda w, x: x["x"] @ w, WEIGHTS[0], (16,), 4) == ["ynn", "eigen", "loops"]
    assert names(network, WEIGHTS, (16,), 4) == ["ynn", "ynn-layers", "eigen", "loops"]
    big = RNG.standard_normal((1024, 1024)).astype(np.float32)
    assert names(lambda w, x: x["x"] @ w, big, (1024,), 1) == ["ynn", "flipped", "two-rows"]
    assert names(lambda w, x: x["x"] @ w, big, (1024,), 2) == ["ynn", "eigen", "loops"]
    assert names(lambda w, x: x["x"] @ w - (x["x"] @ w).mean(0), big, (1024,), 1) == [
        "ynn",
        "ynn-layers",
        "flipped",
    ]
    kernel = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
    assert names(lambda w, x: lax.conv(x["x"], w, (1, 1), "SAME"), kernel, (2, 8, 8), 1) == [
        "ynn",
        "ynn-conv",
        "eigen-conv",
    ]
    monkeypatch.setattr(autotune, "has_sound_convolutions", lambda: False)
    assert names(lambda w, x: lax.conv(x["x"], w, (1, 1), "SAME"), kernel, (2, 8, 8), 1) == [
        "ynn",
        "eigen-conv",
    ]
    monkeypatch.setattr(autotune, "has_avx512", lambda: True)
    assert names(lambda w, x: x["x"] * w, np.float32(2), (3,), 1) == [NARROW.name]


def test_weights_of_one_number_are_not_fused() -> None:
    """YNNPACK reads such a matrix as one number and beyond: these zeros gave 1e30 (jaxlib 0.10.2)."""

    def names(fn: Any, weights: Any, shape: tuple[int, ...] = (16,)) -> set[str]:
        compiler = PlanCompiler(
            TypedModel.from_function(fn, weights, {"x": (shape, np.float32)}), cpu_device()
        )
        return {candidate.name for candidate in autotune.candidates(compiler.trace(4), 4, compiler)} - {
            NARROW.name,
            EIGEN.name,
            LOOPS.name,
        }

    zeros, ones = np.zeros((16, 16), np.float32), np.ones((16, 1), np.float32)
    assert names(lambda w, x: x["x"] @ w, zeros) == set()
    assert names(lambda w, x: x["x"] @ w.T, ones.T) == set()
    assert names(lambda w, x: (x["x"] @ w) @ ones, WEIGHTS[0]) == set()
    assert names(lambda w, x: (x["x"] @ w) @ jnp.full((16, 16), 0.5), WEIGHTS[0]) == set()
    assert names(lambda w, x: x["x"] @ w[0] + w[1], (WEIGHTS[0], zeros[0])) == {"ynn"}
    kernel = np.full((32, 32, 3, 3), 0.1, np.float32)  # Few channels would become more: other weights.
    assert names(lambda w, x: lax.conv(x["x"], w, (1, 1), "SAME"), kernel, (32, 8, 8)) == {"eigen-conv"}


class Clock:
    """Time that passes only when a contender runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: self.now)

    def work(self, *seconds: float) -> Callable[[Any], Any]:
        """A contender whose calls take these times, one after the other and over again."""
        turns = itertools.cycle(seconds)

        def run(rows: Any) -> None:
            self.now += next(turns)

        return run


def test_comparison_tells_the_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert autotune.compare(clock.work(0.003), clock.work(0.001), ()) == pytest.approx(3)
    assert autotune.compare(clock.work(0.001), clock.work(0.003), ()) == pytest.approx(1 / 3)


def test_comparison_doubts_a_candidate_that_is_faster_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lucky block in four changes the fast rounds, but not the median."""
    clock = Clock(monkeypatch)
    luck = [0.002] * 6 + [0.001] * 2  # a block is two calls, and the first one is not counted
    assert autotune.compare(clock.work(0.002), clock.work(*luck), ()) == pytest.approx(1)
    assert autotune.compare(clock.work(*luck), clock.work(0.001), ()) == pytest.approx(1)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'off', 'preload', 'background'"):
        MemoizingDynamicInferer(typed(), autotune="always")  # pyright: ignore[reportArgumentType]


def test_an_untuned_plan_compiles_with_default_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    compiled = compiler.compiled_for

    def noted(lowered: Any, device: jax.Device, options: Any = None) -> Any:
        given.append(options)
        return compiled(lowered, device, options)

    def wide(weights: Any, inputs: Any) -> Any:
        return {"y": jnp.tanh(inputs["x"] @ weights)}

    monkeypatch.setattr(compiler, "compiled_for", noted)
    # A function of shorter rows would have narrow vectors (`plans/choice.py`).
    model = TypedModel.from_function(wide, np.ones((16, 64), np.float32), {"x": ((16,), np.float32)})
    policy = MemoizingDynamicInferer(model, [2])
    assert policy.plans()[0].candidate == DEFAULT.name
    assert given == [{}]
