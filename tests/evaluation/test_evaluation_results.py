"""The uses of an evaluation: statistics, comparison, merging, files, tables, pictures, videos, advice."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper
from scipy.special import stdtrit
from scipy.stats import trim_mean

import memojax as mj
from memojax import errors, evaluation, policies
from memojax.evaluation import Episode
from memojax.evaluation.statistics import bootstrap_interval, interquartile_mean, student_quantile

from ..evaluation_fakes import Policy, first, linear
from ..tiny_envs import UNIT, Tiny


@pytest.fixture
def result() -> mj.Evaluation:
    return mj.evaluate(Policy(linear), Tiny, episodes=12, num_envs=4, name="mine")


# Statistics


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile_is_scipys(level: float) -> None:
    for freedom in [*range(1, 60), 99, 100, 4999, 100_000]:
        wanted = stdtrit(freedom, 0.5 + level / 2)
        assert student_quantile(level, freedom) == pytest.approx(wanted, rel=1e-9), freedom


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 100])
def test_the_interquartile_mean_is_rliables(count: int, rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, count)) ** 3
    np.testing.assert_allclose(interquartile_mean(values), trim_mean(values, 0.25, axis=1))


def test_the_bootstrapped_interval_holds_the_mean_as_often_as_it_says() -> None:
    """The distribution is symmetric around 0, so its interquartile mean is 0."""
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.standard_normal(60), level=0.9, seed=i) for i in range(150)]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.8 <= held <= 0.97


def test_the_bootstrapped_interval_repeats_and_shrinks(rng: np.random.Generator) -> None:
    values = rng.standard_normal(300)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < interquartile_mean(values) < high
    few = bootstrap_interval(values[:20])
    assert few[1] - few[0] > high - low
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert all(map(math.isnan, bootstrap_interval(values[:1])))


def test_many_episodes_are_resampled_in_parts(rng: np.random.Generator) -> None:
    values = rng.standard_normal(60_000)
    low, high = bootstrap_interval(values, repetitions=200)
    assert low < interquartile_mean(values) < high


def test_one_odd_episode_does_not_move_the_interquartile_mean(result: mj.Evaluation) -> None:
    data = result.to_dict()
    assert (
        data["interquartile_mean"]
        == result.interquartile_mean
        == pytest.approx(trim_mean(result.returns, 0.25))
    )
    assert data["interquartile_interval_95"] == list(result.interquartile_interval())


# Comparison


def test_a_comparison_keeps_the_difference_of_each_seed(result: mj.Evaluation) -> None:
    other = mj.evaluate(Policy(first), Tiny, episodes=9, seed=3, name="other")
    compared = evaluation.compare(result, other)
    assert list(compared.differences) == list(range(3, 12))
    assert compared.episodes == 9
    for seed, difference in compared.differences.items():
        assert difference == other.returns[seed - 3] - result.returns[seed]
    assert compared.difference == pytest.approx(np.mean(list(compared.differences.values())))
    assert "other minus mine" in str(compared)
    assert "9 paired episodes" in str(compared)
    assert json.loads(json.dumps(compared.to_dict()))["differences"]["3"] == compared.differences[3]


# Merging


def test_merged_parts_are_the_whole(result: mj.Evaluation) -> None:
    parts = [
        mj.evaluate(Policy(linear), Tiny, episodes=count, num_envs=envs, seed=seed, name="mine")
        for seed, count, envs in ((5, 7, 3), (0, 5, 5))
    ]
    merged = evaluation.merge(parts)
    assert merged.episodes == result.episodes
    assert (merged.asked, merged.steps) == (12, result.steps)
    assert merged.confidence_interval() == result.confidence_interval()
    assert sum(size * count for size, count in merged.batch_sizes.items()) == merged.steps
    assert merged.seconds == pytest.approx(sum(part.seconds for part in parts))
    assert evaluation.merge([merged]).episodes == result.episodes


def test_merged_plans_have_the_calls_of_all_parts() -> None:
    parts = [
        mj.evaluate(policies.bundled("acrobot_ppo"), episodes=2, num_envs=2, seed=seed, max_steps=8)
        for seed in (0, 2)
    ]
    (plan,) = evaluation.merge(parts).plans
    assert (plan.size, plan.calls) == (2, 16)


def test_parts_that_do_not_belong_together_are_refused(result: mj.Evaluation) -> None:
    other = mj.evaluate(Policy(linear), Tiny, episodes=2, seed=50, name="other")
    drawn = mj.evaluate(Policy(linear), Tiny, episodes=2, seed=50, name="mine", deterministic=False)
    for parts, message in (
        ([], "no parts"),
        ([result, other], "model is 'mine' and 'other'"),
        ([result, drawn], "deterministic is True and False"),
        ([result, result], "seed 0 was played in two parts"),
    ):
        with pytest.raises(errors.EvaluationError, match=message):
            evaluation.merge(parts)


def test_a_gap_of_an_interrupted_part_stays_a_gap() -> None:
    def stop(episode: Episode) -> None:
        if episode.index == 1:
            raise KeyboardInterrupt

    broken = mj.evaluate(Policy(first), Tiny, episodes=4, num_envs=1, on_episode=stop)
    whole = mj.evaluate(Policy(first), Tiny, episodes=2, num_envs=1, seed=4)
    merged = evaluation.merge([whole, broken])
    assert [episode.index for episode in merged.episodes] == [0, 1, 4, 5]
    assert merged.interrupted
    assert merged.asked == 6


# Files and tables


def test_saved_evaluations_load_again(result: mj.Evaluation, tmp_path: Path) -> None:
    real = mj.evaluate(policies.bundled("pendulum_ppo"), episodes=2, max_steps=4)
    evaluation.save([result, real], tmp_path / "both.json")
    again = evaluation.load(tmp_path / "both.json")
    assert [one.to_dict() for one in again] == [one.to_dict() for one in (result, real)]
    assert evaluation.compare(again[0], result).difference == 0
    assert evaluation.merge([again[0]]).episodes == result.episodes


@pytest.mark.parametrize("rewards", [[math.inf], [-math.inf], [math.inf, -math.inf]])
def test_odd_returns_survive_a_file(rewards: list[float], tmp_path: Path) -> None:
    class Odd(Tiny):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, rewards[self.steps % len(rewards)], *rest

    result = mj.evaluate(Policy(first), Odd, episodes=1)
    assert not math.isfinite(result.mean_return)
    evaluation.save(result, tmp_path / "odd.json")
    (again,) = evaluation.load(tmp_path / "odd.json")
    np.testing.assert_array_equal(again.returns, result.returns)


def test_a_line_per_episode_for_a_spreadsheet(result: mj.Evaluation, tmp_path: Path) -> None:
    evaluation.save(result, tmp_path / "episodes.csv")
    header, *lines = (tmp_path / "episodes.csv").read_text().splitlines()
    assert header == "model,env_id,episode,seed,return,length,truncated"
    assert len(lines) == 12
    index, seed, total, length = lines[3].split(",")[2:6]
    assert (int(index), int(seed), float(total), int(length)) == (3, 3, result.returns[3], result.lengths[3])


def test_files_that_hold_no_evaluation_are_refused(result: mj.Evaluation, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"evaluations": [{"model": "x"}]}')
    (tmp_path / "text.json").write_text("hello")
    for name in ("list.json", "half.json", "text.json", "missing.json"):
        with pytest.raises(errors.EvaluationError, match=name):
            evaluation.load(tmp_path / name)
    for target in (tmp_path / "result.txt", tmp_path / "no" / "folder.json"):
        with pytest.raises(errors.EvaluationError, match=target.name):
            evaluation.save(result, target)


def test_a_frame_has_a_row_per_episode(result: mj.Evaluation) -> None:
    pytest.importorskip("pandas")
    frame = result.to_frame()
    assert frame["return"].mean() == pytest.approx(result.mean_return)
    assert list(frame["seed"]) == list(result.seeds)


def test_without_pandas_the_error_says_what_to_install(
    result: mj.Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(errors.MissingPackageError, match=r"memojax\[frame\]"):
        result.to_frame()


# Shown


def test_transforms_are_shown_and_recorded_wherever_a_result_is() -> None:
    def doubled(rows: np.ndarray) -> np.ndarray:
        return 2 * rows

    space = spaces.Box(-3, 3, (1,), np.float32)
    result = mj.evaluate(
        Policy(lambda inputs: {"a": inputs["obs"]}, {"obs": (1,)}, {"a": (1,)}),
        lambda: Tiny(UNIT, space),
        episodes=2,
        observation_transforms=[doubled, mj.SelectObs([1])],
        action_transforms=[mj.ScaleAction(), mj.ClipAction(-2.5, 2.5)],
    )
    seen, done = ("doubled", "SelectObs([1])"), ("ScaleAction(-3, 3)", "ClipAction(-2.5, 2.5)")
    assert (result.observation_transforms, result.action_transforms) == (seen, done)
    data = result.to_dict()
    assert (data["observation_transforms"], data["action_transforms"]) == (list(seen), list(done))
    for shown in (str(result), repr(result), result._repr_html_()):
        for name in (*seen, *done):
            assert name in shown


def test_clipping_by_default_is_shown_too() -> None:
    space = spaces.Box(np.array([-1, -2, -3], np.float32), np.array([1, 2, 3], np.float32))
    policy = Policy(lambda inputs: {"a": 0.0}, outputs={"a": (3,)})
    shown = str(mj.evaluate(policy, lambda: Tiny(UNIT, space), episodes=1))
    assert "actions: ClipAction([-1, -2, -3], [1, 2, 3])" in shown
    assert "actions" not in str(mj.evaluate(Policy(first), Tiny, episodes=1))


def test_the_card_escapes_and_shows_what_matters(result: mj.Evaluation) -> None:
    page = mj.evaluate(Policy(linear), Tiny, episodes=3, name="<b>x")._repr_html_()
    assert "&lt;b&gt;x on Tiny" in page
    for part in ("interquartile mean", "observation -&gt; obs", "argmax of logits"):
        assert part in page


def test_a_result_draws_itself(result: mj.Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "returns.png")
    assert (tmp_path / "returns.png").read_bytes().startswith(b"\x89PNG")


# Advice


def _bounded(folder: Path, *last: Any) -> Path:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["obs", "w"], ["h"]), *last]
    constants = {
        "w": np.ones((2, 1), np.float32),
        "low": np.float32(-1),
        "high": np.float32(1),
        "two": np.float32(2),
    }
    graph = helper.make_graph(
        nodes,
        "bounded",
        [value("obs", TensorProto.FLOAT, ["N", 2])],
        [value("action", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "b.onnx"
    )
    return folder / "b.onnx"


node = helper.make_node
TANH = (node("Tanh", ["h"], ["action"]),)
ENDS = {
    "tanh": (TANH, True),
    "tanh, rearranged": ((node("Tanh", ["h"], ["t"]), node("Identity", ["t"], ["action"])), True),
    "clip": ((node("Clip", ["h", "low", "high"], ["action"]),), True),
    "wider clip": ((node("Clip", ["h", "low", "two"], ["action"]),), False),
    "open clip": ((node("Clip", ["h", "low"], ["action"]),), False),
    "scaled inside": ((node("Tanh", ["h"], ["t"]), node("Mul", ["t", "two"], ["action"])), False),
    "linear": ((node("Identity", ["h"], ["action"]),), False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_bounded_policy_on_a_wider_box_gets_one_line_of_advice(
    end: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, expected = ENDS[end]
    make = lambda: Tiny(UNIT, spaces.Box(-2, 2, (1,), np.float32))  # noqa: E731
    with caplog.at_level(logging.WARNING, "memojax"):
        result = mj.evaluate(_bounded(tmp_path, *nodes), make, episodes=1)
    said = [record.getMessage() for record in caplog.records]
    assert said == list(result.advice)
    assert len(said) == expected
    if expected:
        assert "lies in [-1, 1]" in said[0]
        assert "the environment takes -2 to 2" in said[0]
        assert "--scale-actions" in said[0]
        assert "lies in [-1, 1]" in result._repr_html_()


@pytest.mark.parametrize(
    ("space", "transforms"),
    [
        (spaces.Box(-1, 1, (1,), np.float32), None),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), None),
        (spaces.Box(-2, 2, (1,), np.float32), [mj.ScaleAction()]),
        (spaces.Box(-2, 2, (1,), np.float32), [lambda actions: 2 * actions]),
    ],
)
def test_advice_is_given_only_where_it_applies(space: Any, transforms: Any, tmp_path: Path) -> None:
    result = mj.evaluate(
        _bounded(tmp_path, *TANH), lambda: Tiny(UNIT, space), episodes=1, action_transforms=transforms
    )
    assert result.advice == ()


# Watching


class Shown(Tiny):
    """Renders a grey picture."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        super().__init__()
        self.render_mode = render_mode
        self.shown = 0

    def render(self) -> Any:
        self.shown += 1
        return np.full((32, 32, 3), 128, np.uint8)


gym.register("Shown-v0", Shown)


def test_the_first_environment_is_shown() -> None:
    made: list[str | None] = []

    class Noted(Shown):
        def __init__(self, render_mode: str | None = None):
            super().__init__(render_mode)
            made.append(render_mode)

    spec = gym.envs.registration.EnvSpec("Noted-v0", entry_point=Noted)
    mj.evaluate(Policy(first), spec, episodes=3, num_envs=3, render=True)
    assert made == ["human", None, None]


def test_episodes_are_filmed(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    folder = tmp_path / "films"
    mj.evaluate(Policy(first), "Shown-v0", episodes=4, num_envs=2, video=folder, name="mine")
    films = sorted(file.name for file in folder.glob("*.mp4"))
    assert films[0] == "mine-episode-0.mp4"
    assert all(file.stat().st_size > 0 for file in folder.glob("*.mp4"))
    env = Shown("rgb_array")
    mj.evaluate(Policy(first), env, episodes=1, max_steps=2, video=tmp_path / "own")
    assert (tmp_path / "own" / "policy-episode-0.mp4").exists()


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (Shown, {"video": "x"}, "render_mode=None, but showing it needs 'rgb_array'"),
        (Shown("rgb_array"), {"render": True}, "needs 'human'"),
        ("Shown-v0", {"render": True, "video": "x"}, "only one"),
        ("Shown-v0", {"render": True, "vectorization": "async"}, "in a worker process cannot be shown"),
    ],
)
def test_environments_that_cannot_be_shown_are_refused(env: Any, options: Any, message: str) -> None:
    with pytest.raises(errors.EvaluationError, match=message):
        mj.evaluate(Policy(first), env, episodes=1, **options)


def test_without_moviepy_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    with pytest.raises(errors.MissingPackageError, match=r"memojax\[video\]"):
        mj.evaluate(Policy(first), "Shown-v0", episodes=1, video=tmp_path)
