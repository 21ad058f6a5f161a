"""`memojax evaluate`: tables and JSON, several models, wrappers, and partial results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from memojax import policies
from memojax.evaluation import Episode, load

from .test_cli import json_of, run


def test_evaluate_prints_return_plans_and_speed() -> None:
    text = run("evaluate", "--episodes", "3", "--max-steps", "20", "--preload", "2,3").stdout
    assert text.startswith(
        "acrobot_ppo on Acrobot-v1: 3 episodes, 3 side by side, deterministic, seeds from 0\n"
    )
    for part in (
        "return                 -20.0 ± 0.0",
        "episode length",
        "steps per second",
        "recorded return",
        "metadata algorithm     PPO",
    ):
        assert part in text
    assert "observation -> obs; action: argmax of logits" in text
    header, _, row, *_ = text[text.index("batch size") :].splitlines()
    assert header.split() == [
        "batch",
        "size",
        "compile",
        "ms",
        "calls",
        "median",
        "call",
        "us",
        "us",
        "per",
        "agent",
    ]
    assert row.split()[0] == "3"
    assert row.split()[2] == "20"
    assert "not used: 2" in text


def test_intervals_have_as_many_digits_as_the_mean() -> None:
    text = run("evaluate", "pendulum_ppo", "--episodes", "3", "--max-steps", "50").stdout
    lines = [line.replace("95 %", "") for line in text.splitlines() if "95 %" in line]
    numbers = re.findall(r"\d+(?:\.\d+)?", " ".join(lines))
    assert len(numbers) == 7  # The mean, its error, the interquartile mean, and two intervals.
    assert len({len(one.partition(".")[2]) for one in numbers}) == 1, lines


def test_evaluate_as_json(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    text = run(
        "evaluate",
        "pendulum_ppo",
        "--episodes",
        "2",
        "--max-steps",
        "5",
        "--stochastic",
        "--seed",
        "7",
        "--json",
        target,
    ).stdout
    assert "stochastic" in text
    one = json.loads(target.read_text())["evaluations"][0]
    assert one["seeds"] == [7, 8]
    assert one["lengths"] == [5, 5]
    assert one["feeds"] == ["observation -> obs", "noise -> epsilon"]
    assert one["plans"][0]["size"] == 2
    assert one["metadata"]["env_id"] == "Pendulum-v1"


def test_evaluate_compares_models_on_paired_seeds(tmp_path: Path) -> None:
    """The second policy always goes left."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["obs", "w"], ["logits"])]
    weights = [onnx.numpy_helper.from_array(np.zeros((6, 3), np.float32), "w")]
    shapes = [value("obs", TensorProto.FLOAT, ["N", 6])], [value("logits", TensorProto.FLOAT, ["N", 3])]
    left = tmp_path / "left.onnx"
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "left", *shapes, weights), opset_imports=[helper.make_opsetid("", 17)]
        ),
        left,
    )
    options = (
        "--env",
        "Acrobot-v1",
        "--episodes",
        "4",
        "--num-envs",
        "4",
        "--max-steps",
        "150",
        "--preload",
        "4",
    )
    data = json_of("evaluate", "acrobot_ppo", left, "acrobot_ppo", *options)
    assert [one["model"] for one in data["evaluations"]] == ["acrobot_ppo (1)", "left", "acrobot_ppo (2)"]
    worse, same = data["comparisons"]
    assert worse["difference"] < -20
    assert worse["interval"][1] < 0
    assert same["difference"] == 0
    text = run("evaluate", "acrobot_ppo", left, *options).stdout
    assert "minus acrobot_ppo" in text
    assert " *" in text
    assert "paired by seed" in text


def test_models_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "policy.onnx").write_bytes(policies.bundled("acrobot_ppo").read_bytes())
    files = tmp_path / "old" / "policy.onnx", tmp_path / "new" / "policy.onnx"
    data = json_of("evaluate", *files, "--env", "Acrobot-v1", "--episodes", "1", "--max-steps", "2")
    assert [one["model"] for one in data["evaluations"]] == ["old/policy", "new/policy"]


def test_evaluate_draws_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "returns.png"
    assert (
        f"drawn: {target}" in run("evaluate", "--episodes", "2", "--max-steps", "8", "--plot", target).stdout
    )
    assert target.read_bytes().startswith(b"\x89PNG")
    assert (
        "nonsense"
        in run("evaluate", "--episodes", "1", "--max-steps", "1", "--plot", "x.nonsense", code=1).stderr
    )


def test_evaluate_keeps_its_results(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    options = ("--env", "Pendulum-v1", "--episodes", "2", "--max-steps", "5", "--select", "0,1,2")
    text = run("evaluate", "pendulum_ppo", *options, "--save", target).stdout
    assert "observations           SelectObs([0, 1, 2])" in text
    assert "actions                ClipAction(-2, 2)" in text
    (kept,) = load(target)
    assert kept.observation_transforms == ("SelectObs([0, 1, 2])",)
    run("evaluate", "pendulum_ppo", "pendulum_ppo", *options, "--save", tmp_path / "kept.csv")
    assert len((tmp_path / "kept.csv").read_text().splitlines()) == 5
    assert "written as .json or .csv" in run("evaluate", "--save", tmp_path / "kept.txt", code=1).stderr


def test_evaluate_takes_the_options_of_loading(tmp_path: Path) -> None:
    options = ("--episodes", "4", "--max-steps", "5", "--bucketing", "3,8", "--maxsize", "2")
    text = run("evaluate", *options, "--cache-dir", tmp_path / "plans", "--on-miss", "compile").stdout
    assert text[text.index("batch size") :].splitlines()[2].split()[0] == "8"
    assert list((tmp_path / "plans").iterdir())
    one = json_of("evaluate", *options)["evaluations"][0]
    assert one["padded_rows"] == 4 * 5
    assert one["plans"][0]["size"] == 8


def test_evaluate_takes_the_recurrent_policys_mask_from_its_card() -> None:
    one = json_of("evaluate", "recurrent_lstm", "--episodes", "1", "--max-steps", "60")["evaluations"][0]
    assert one["lengths"] == [60]
    assert one["feeds"] == ["observation -> obs", "h_out -> h_in", "c_out -> c_in"]


@pytest.mark.parametrize("option", ["auto", "h_in:h_out,c_in:c_out"])
def test_evaluate_takes_hidden_state_as_benchmark_does(option: str) -> None:
    (one,) = json_of(
        "evaluate", "recurrent_lstm", "--episodes", "1", "--max-steps", "3", "--recurrent", option
    )["evaluations"]
    assert {"h_out -> h_in", "c_out -> c_in"} <= set(one["feeds"])


def test_evaluate_normalizes_scales_and_selects(tmp_path: Path) -> None:
    statistics = tmp_path / "stats.json"
    statistics.write_text(json.dumps({"mean": [0, 0, 0], "var": [1, 1, 1]}))
    options = ("--episodes", "1", "--max-steps", "3", "--vecnormalize", statistics, "--scale-actions")
    assert json_of("evaluate", "pendulum_ppo", *options)["evaluations"][0]["lengths"] == [3]
    assert "selects elements" in run("evaluate", "pendulum_ppo", "--select", "0,9", code=1).stderr
    assert "write indices such as 0,2" in run("evaluate", "pendulum_ppo", "--select", "x", code=2).stderr


def test_evaluate_stopped_by_ctrl_c_prints_the_finished_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    import memojax.evaluation.rollout as rollout

    def episode(index: int, *rest: Any) -> Episode:
        if index == 1:
            raise KeyboardInterrupt
        return Episode(index, *rest)

    monkeypatch.setattr(rollout, "Episode", episode)
    text = run("evaluate", "--episodes", "5", "--num-envs", "1", "--max-steps", "4", code=130).stdout
    assert "1 of 5 episodes" in text
    assert "stopped" in text
    assert "-4.0" in text


def test_evaluate_prints_the_partial_result_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        "--env",
        "tests.tiny_envs:Late-v0",
        "--num-envs",
        "1",
        "--episodes",
        "9",
        "--observation",
        "observation=obs",
    )
    result = run("evaluate", "pendulum_ppo", *options, code=1)
    assert "3 of 9 episodes" in result.stdout
    assert "raised in step: RuntimeError: the simulator lost its mind" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--env", "Acrobt-v1"), 1, "did you mean 'Acrobot-v1'"),
        (("--env", "Pendulum-v1"), 1, "obs: float32[n, 6]"),
        (("pendulum_ppo", "--env", "MountainCar-v0", "--select", "0,1,1"), 1, "Discrete(3): float[n, 3]"),
        (("pendulum_ppo", "recurrent_lstm"), 2, "choose one environment with --env"),
        (("--episodes", "0"), 2, "--episodes"),
        (("--num-envs", "-1"), 2, "--num-envs"),
        (("--preload", "0"), 2, "start at 1"),
        (("--observation", "obs"), 2, "write it as NAME=VALUE"),
        (("--recurrent", "obs"), 2, "write it as auto, or IN:OUT"),
        (("--device", "tpu:7"), 1, "no device 'tpu:7'"),
        (("--bucketing", "pow3"), 2, "neither a size"),
        (("--on-miss", "wait"), 2, "'compile', 'pad', 'warn', 'error'"),
        (("--on-miss", "error"), 1, "has no plan"),
        (("--render", "--async"), 1, "cannot be shown"),
    ],
)
def test_evaluate_refuses(arguments: tuple[str, ...], code: int, message: str) -> None:
    assert message in run("evaluate", *arguments, code=code).stderr
