"""The command line: its output, its JSON, its exit codes, its errors."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

import memojax
from memojax import policies
from memojax.cli.main import COMMANDS, cli, no_collections
from memojax.cli.sizes import parse_sizes
from memojax.ops.coverage import coverage, totals, who_lowers

needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed"
)


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == code, result.output + "".join(map(str, result.exc_info or ()))
    return result


def json_of(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


@pytest.fixture
def mixing(tmp_path: Path) -> Path:
    """A model whose rows influence each other: softmax over the batch."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    graph = helper.make_graph(
        nodes, "mixing", [value("x", TensorProto.FLOAT, ["N", 3])], [value("y", TensorProto.FLOAT, ["N", 3])]
    )
    path = tmp_path / "mixing.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


# The group


def test_it_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "memojax", "--version"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"memojax {memojax.__version__} (jax ")


@pytest.mark.parametrize("collecting", [True, False])
def test_collections_pause_during_imports_and_then_go_on_as_before(collecting: bool) -> None:
    frozen = gc.get_freeze_count()
    (gc.enable if collecting else gc.disable)()
    try:
        with no_collections():
            assert not gc.isenabled()
        assert gc.isenabled() is collecting
        assert (gc.get_freeze_count() > frozen) is collecting
    finally:
        gc.enable()
        gc.unfreeze()


def test_help_lists_the_commands_and_how_to_complete_them() -> None:
    text = run("--help").output
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "_MEMOJAX_COMPLETE=bash_source" in text
    assert "Exit codes" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    text = run(command, "--help").output
    assert "Example" in text
    assert f"memojax {command}" in text
    assert "--json FILE|-" in text


def test_a_mistyped_command_is_answered_with_the_closest() -> None:
    assert "Did you mean 'evaluate'?" in run("evalute", code=2).stderr


def test_errors_are_one_line_on_stderr_and_debug_shows_more() -> None:
    result = run("describe", "nix.onnx", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: nix.onnx: no such file, and no bundled policy")
    assert len(result.stderr.splitlines()) == 1
    assert isinstance(
        CliRunner().invoke(cli, ["--debug", "describe", "nix.onnx"]).exception, memojax.errors.ModelLoadError
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"<html>", "an HTML page"), (b"\x00\x01garbage", "not an ONNX model")],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for command in ("api", "describe", "run", "verify", "benchmark", "evaluate"):
        stderr = run(command, path, code=1).stderr
        assert message in stderr.replace("\n", " ")
        assert "Traceback" not in stderr


def test_a_bundled_name_is_suggested() -> None:
    assert "did you mean pendulum_ppo?" in run("api", "pendulum", code=1).stderr


def test_json_that_cannot_be_written_is_an_error() -> None:
    assert (
        "the folder /no/such/folder does not exist: make it first"
        in run("describe", "acrobot_ppo", "--json", "/no/such/folder/x.json", code=1).stderr
    )


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_unwritable_targets_are_found_before_the_work(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("memojax.cli.evaluate._evaluate", lambda *arguments: pytest.fail("evaluated"))
    (tmp_path / "folder.png").mkdir()
    for path, message in (
        (tmp_path / "none" / "x.png", "does not exist: make it first"),
        (tmp_path / "folder.png", "is a folder"),
    ):
        assert message in run("evaluate", option, path, code=1).stderr


def test_missing_memory_is_an_error_of_one_line() -> None:
    result = run("run", "acrobot_ppo", "--batch-size", "999999999999", code=1)
    assert result.stderr.startswith("error: Unable to allocate")


def test_a_model_that_does_not_load_keeps_the_results_of_others(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    arguments = (
        "evaluate",
        "acrobot_ppo",
        tmp_path / "broken.onnx",
        "--env",
        "Acrobot-v1",
        "--episodes",
        "2",
        "--max-steps",
        "2",
    )
    result = run(*arguments, "--json", "-", code=1)
    assert [one["model"] for one in json.loads(result.stdout)["evaluations"]] == ["acrobot_ppo"]
    assert "broken.onnx: not an ONNX model" in result.stderr


def test_the_shell_completes_models_and_options() -> None:
    def complete(*words: str) -> list[str]:
        environment = {
            "COMP_WORDS": " ".join(("memojax", *words)),
            "COMP_CWORD": str(len(words)),
            "_MEMOJAX_COMPLETE": "bash_complete",
        }
        result = CliRunner().invoke(cli, [], prog_name="memojax", env=environment)
        return result.stdout.split()

    assert "plain,evaluate" in complete("ev")
    assert "plain,pendulum_ppo" in complete("api", "pen")
    assert "plain,--num-envs" in complete("evaluate", "--num")


# Sizes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1-4,16", [1, 2, 3, 4, 16]),
        ("8", [8]),
        ("8-64:8", list(range(8, 65, 8))),
        ("3,1-3", [3, 1, 2]),
        (" 1 , 2 ", [1, 2]),
    ],
)
def test_size_lists(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty part"),
        ("1,,2", "empty part"),
        ("a", "'a' is neither a size"),
        ("-4", "neither a size"),
        ("1.5", "neither a size"),
        ("0", "start at 1"),
        ("4-1", "write 1-4"),
        ("1-8:0", "start at 1"),
        ("8:2", "neither a size"),
        ("1-100000000", "more than 4096 sizes"),
        ("²", "neither a size"),
    ],
)
def test_malformed_size_lists_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sizes(text)
    assert message in run("benchmark", "acrobot_ppo", "--batch-sizes", text, code=2).stderr


# The others


def test_api_tells_inputs_outputs_rule_and_ops(mixing: Path) -> None:
    text = run("api", "recurrent_lstm").stdout
    for part in ("float32   [n, 32]", "batch rule   axis", "independent", "LSTM", "lowered by"):
        assert part in text
    data = json_of("api", mixing)
    assert data["rows_mix"] == ["y"]
    assert data["ops"] == [
        {"domain": "", "op": "Softmax", "opset": 17, "count": 1, "by": "ours", "reason": ""}
    ]
    assert "rows         influence each other in y" in run("api", mixing).stdout
    assert "not probed" in run("api", mixing, "--no-probe").stdout
    assert "names 'nope', which no input declares" in run("api", mixing, "--dim", "nope=3", code=1).stderr
    assert "is not a whole number" in run("api", mixing, "--dim", "nope=x", code=2).stderr


def test_describe_prints_the_content_of_the_file() -> None:
    data = json_of("describe", "pendulum_ppo")
    assert data["opsets"] == {"ai.onnx": 18}
    assert data["parameters"] == 4485
    assert data["ops"]["Gemm"] == 3
    assert data["inputs"][0] == {"name": "obs", "kind": "tensor", "dtype": "float32", "shape": ["batch", 3]}
    assert len(data["sha256"]) == 64
    text = run("describe", "pendulum_ppo").stdout
    assert "pytorch 2.13.0" in text
    assert "metadata env_id" in text


def test_run_takes_and_writes_arrays(tmp_path: Path) -> None:
    data = json_of("run", "acrobot_ppo", "--batch-size", "3")
    assert data["outputs"]["logits"]["shape"] == [3, 3]
    rows = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    np.savez(tmp_path / "in.npz", obs=rows)
    text = run("run", "acrobot_ppo", "--inputs", tmp_path / "in.npz", "--output", tmp_path / "out.npz").stdout
    assert "a batch of 4 from" in text
    assert "[4, 3]" in text
    wanted = memojax.load(policies.bundled("acrobot_ppo")).infer_arrays({"obs": rows})["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["logits"], wanted)
    np.savez(tmp_path / "nan.npz", obs=np.full((1, 6), np.nan, np.float32))
    assert "NaN in logits" in run("run", "acrobot_ppo", "--inputs", tmp_path / "nan.npz").stdout


def test_run_refuses(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "scalar.npz", obs=np.float32(1))
    np.savez(tmp_path / "shape.npz", obs=np.zeros((2, 5), np.float32))
    np.savez(tmp_path / "name.npz", observation=np.zeros((2, 6), np.float32))
    np.savez(tmp_path / "good.npz", obs=np.zeros((2, 6), np.float32))
    for name, message in (
        ("none.npz", "cannot be read"),
        ("text.npz", "not an .npz file"),
        ("one.npy", "one array, not an .npz"),
        ("scalar.npz", "is a single number"),
        ("shape.npz", "expected [n, 6]"),
        ("name.npz", "unknown input 'observation'"),
    ):
        assert message in run("run", "acrobot_ppo", "--inputs", tmp_path / name, code=1).stderr
    assert (
        "has only 2 rows"
        in run("run", "acrobot_ppo", "--inputs", tmp_path / "good.npz", "--batch-size", "3", code=2).stderr
    )


def test_run_goes_through_wrappers() -> None:
    data = json_of(
        "run", "recurrent_lstm", "-b", "2", "--recurrent", "auto", "--print-input", "--print-output"
    )
    assert list(data["input_rows"]) == ["obs"]
    assert list(data["outputs"]) == list(data["output_rows"]) == ["logits"]
    obs = np.array(data["input_rows"]["obs"], np.float32)
    agents = memojax.RecurrentTracker.wrap(memojax.load(policies.bundled("recurrent_lstm")))
    for agent in range(2):
        agents.begin_agent(agent)
    wanted = agents.infer_batch({agent: {"obs": obs[agent]} for agent in range(2)})
    np.testing.assert_allclose(
        data["output_rows"]["logits"], [wanted[agent]["logits"] for agent in range(2)], rtol=1e-6
    )
    assert (
        json_of("run", "recurrent_lstm", "-b", "2", "-r", "h_in:h_out,c_in:c_out")["outputs"]
        == data["outputs"]
    )
    first, second, other = (
        json_of("run", "pendulum_ppo", "-b", "3", "-w", "epsilon", "--seed", seed, "--print-input")[
            "input_rows"
        ]
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert list(first) == ["obs"]


def test_run_prints_every_row() -> None:
    text = run("run", "acrobot_ppo", "--batch-size", "1500", "--print-input", "--print-output").stdout
    assert text.count("\n[[") == 2
    assert "..." not in text
    for part in ("\ninput obs:\n", "\noutput logits:\n"):
        assert len(text.split(part)[1].split("]]")[0].split("\n [")) == 1500
    assert "input obs:" not in run("run", "acrobot_ppo").stdout


@needs_onnxruntime
def test_verify_agrees_with_onnx_runtime() -> None:
    data = json_of("verify", "pendulum_ppo", "-b", "1,3")
    assert data["same"]
    assert [check["size"] for check in data["checks"]] == [1, 3]
    assert all(check["max_abs"] < 1e-5 for check in data["checks"])
    text = run("verify", "pendulum_ppo", "--sizes", "4").stdout
    assert "are the same" in text


@needs_onnxruntime
def test_verify_tells_a_batch_whose_rows_mix(mixing: Path) -> None:
    text = " ".join(run("verify", mixing, "--sizes", "1,4", code=1).stdout.split())
    assert "1 of 2 differ" in text
    data = json_of("verify", mixing, "-b", "1,4", code=1)
    assert [(check["same"], check["alone"]) for check in data["checks"]] == [(True, True), (False, False)]
    assert data["checks"][1]["max_abs"] < 1e-5
    assert "a row alone" in data["checks"][1]["note"]


@needs_onnxruntime
def test_verify_tells_options_that_contradict_the_file() -> None:
    text = " ".join(run("verify", "acrobot_ppo", "--sizes", "2", "--batch-axis", "none").stdout.split())
    assert "batch_axis=False contradicts the file" in text
    data = json_of("verify", "acrobot_ppo", "-b", "2", "--batch-axis", "none")
    assert len(data["contradictions"]) == 1
    assert json_of("verify", "acrobot_ppo", "-b", "2")["contradictions"] == []


def test_verify_tells_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from memojax.verification.runtimes import OnnxRuntime

    honest = OnnxRuntime._run
    monkeypatch.setattr(
        OnnxRuntime,
        "_run",
        lambda self, feeds: {name: value + 0.5 for name, value in honest(self, feeds).items()},
    )
    text = run("verify", "acrobot_ppo", "--sizes", "2", code=1).stdout
    assert "differs" in text
    assert "1 of 1 differ" in text


def test_benchmark_draws_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "latency.png"
    options = ("benchmark", "acrobot_ppo", "--batch-sizes", "1,3", "--count", "3", "--plot")
    assert f"drawn: {target}" in run(*options, target).stdout
    assert target.read_bytes().startswith(b"\x89PNG")
    assert "png, ps" in run(*options, "x.nonsense", code=1).stderr
    assert "does not exist: make it first" in run(*options, tmp_path / "nowhere" / "x.png", code=1).stderr


@needs_onnxruntime
def test_benchmark_goes_on_without_a_contender_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    from memojax.verification.runtimes import OnnxRuntime

    def fail(self: Any, feeds: Any) -> Any:
        raise ValueError("no such kernel")

    monkeypatch.setattr(OnnxRuntime, "_run", fail)
    result = run(
        "benchmark", "acrobot_ppo", "-b", "1,2", "-c", "4", "--against", "onnxruntime", "--json", "-", code=1
    )
    data = json.loads(result.stdout)
    assert [(one["runtime"], one["batch_size"]) for one in data["results"]] == [
        ("memojax", 1),
        ("memojax", 2),
    ]
    assert data["unable"] == {"onnxruntime": "onnxruntime, batch of 1: no such kernel"}
    assert "error: onnxruntime, batch of 1: no such kernel" in result.stderr


@needs_onnxruntime
def test_benchmark_times_contenders() -> None:
    options = ("--batch-sizes", "1,2", "--count", "20", "--against", "onnxruntime")
    data = json_of("benchmark", "acrobot_ppo", *options)
    assert [(one["runtime"], one["batch_size"]) for one in data["results"]] == [
        ("memojax", 1),
        ("onnxruntime", 1),
        ("memojax", 2),
        ("onnxruntime", 2),
    ]
    for one in data["results"]:
        assert one["p50_us"] <= one["p90_us"] <= one["p99_us"]
        assert one["mean_us_per_element"] == pytest.approx(one["mean_us"] / one["batch_size"])
    assert "geometric mean onnxruntime" in run("benchmark", "acrobot_ppo", *options).stdout


def test_benchmark_times_tract() -> None:
    pytest.importorskip("tract")
    data = json_of(
        "benchmark", "recurrent_lstm", "-r", "auto", "-b", "1-2,4", "-c", "4", "--against", "tract"
    )
    assert [one["batch_size"] for one in data["results"] if one["runtime"] == "tract"] == [1, 2, 4]
    assert all(one["compile_ms"] > 0 for one in data["results"])


@pytest.mark.parametrize(
    "options",
    [
        ("recurrent_lstm", "--recurrent", "auto"),
        ("recurrent_lstm", "--recurrent", "h_in:h_out,c_in:c_out", "--call", "batch"),
        ("pendulum_ppo", "--with-epsilon", "epsilon"),
    ],
)
def test_benchmark_goes_through_wrappers(options: tuple[str, ...]) -> None:
    assert json_of("benchmark", *options, "--batch-sizes", "2", "--count", "3")["results"][0]["mean_us"] > 0


def test_benchmark_refuses_wrappers_that_do_not_fit() -> None:
    assert (
        "no output continues an input"
        in run("benchmark", "acrobot_ppo", "--recurrent", "auto", code=1).stderr
    )
    assert "unknown input 'nope'" in run("benchmark", "acrobot_ppo", "--with-epsilon", "nope", code=1).stderr
    assert (
        "write it as auto, or IN:OUT" in run("benchmark", "acrobot_ppo", "--recurrent", "h_in", code=2).stderr
    )


def test_ops_lists_all_of_onnx() -> None:
    data = json_of("ops")
    assert sum(data["totals"].values()) == sum(len(row.versions) for row in coverage())
    listed = {
        (entry["domain"], entry["op"], version)
        for entry in data["operators"]
        for version in entry["versions"]
    }
    schemas = {
        (s.domain or "ai.onnx", s.name, s.since_version)
        for s in onnx.defs.get_all_schemas_with_history()
        if not s.deprecated
    }
    assert schemas <= listed
    assert json_of("ops", "softmax", "Gemm")["operators"][0]["op"] == "Gemm"
    assert all(entry["by"] == "no" and entry["reason"] for entry in json_of("ops", "--missing")["operators"])
    assert "did you mean 'Softmax'?" in run("ops", "softmx", code=1).stderr
    assert "% supported)" in run("ops", "--domain", "ai.onnx").stdout


def test_coverage_knows_functions_and_foreign_domains() -> None:
    assert who_lowers("", "Relu", 14) == ("ours", "")
    assert who_lowers("my.domain", "Snake", 1) == ("no", "memojax has no such operator")
    memojax.ops.register("Snake", domain="my.domain")(lambda x: x)
    try:
        row = next(row for row in coverage() if row.op_type == "Snake")
        assert row.name == "my.domain.Snake"
        assert totals([row]) == {"ours": 1}
    finally:
        memojax.ops.registry.remove("my.domain", "Snake")


def test_every_option_is_explained() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        assert all(
            option.help for one in commands for option in one.params if isinstance(option, click.Option)
        )
