"""`package` and `to-stablehlo`, and every command on ONNX files, CRVO and StableHLO assets."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import memojax
from memojax import AssetData, AssetKind, policies
from memojax.cli.main import cli
from memojax.errors import IncompatibleModelError
from memojax.lowering.row_probe import random_rows

from ..helpers import mostly_slow

NAMES = policies.names()
KINDS = ("onnx", "crvo", "stablehlo")
needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed"
)


def run(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == code, result.output + "".join(map(str, result.exc_info or ()))
    assert "Traceback" not in result.stderr
    return result


def json_of(*arguments: Any, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One policy in three kinds of file, with suffixes that lie."""
    folder = tmp_path_factory.mktemp("kinds")
    made = {
        "onnx": folder / "policy.crvo",
        "crvo": folder / "policy.onnx",
        "stablehlo": folder / "policy.bin",
    }
    made["onnx"].write_bytes(policies.bundled("acrobot_ppo").read_bytes())
    run("package", made["onnx"], made["crvo"])
    run("to-stablehlo", made["onnx"], "-o", made["stablehlo"], "--platform", "cpu")
    return made


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was exported for four rows."""
    path = tmp_path_factory.mktemp("fixed") / "four.crvo"
    run("to-stablehlo", "acrobot_ppo", "-b", "4", "-o", path, "--platform", "cpu")
    return path


def assert_same_answers(one: Any, other: Any, n: int, **tolerance: float) -> None:
    rng = np.random.default_rng(n)
    assert one.api == other.api
    rows = {spec.name: random_rows(rng, n, spec) for spec in one.api.inputs}
    mine, theirs = one.infer_arrays(rows), other.infer_arrays(rows)
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], **{"rtol": 1e-6, "atol": 1e-6, **tolerance})


# package, to-stablehlo


@pytest.mark.parametrize("name", mostly_slow(NAMES[:1], NAMES[1:]))
def test_onnx_to_crvo_to_stablehlo_keeps_the_outputs(name: str, tmp_path: Path) -> None:
    crvo, stablehlo, again = tmp_path / "a.crvo", tmp_path / "b.crvo", tmp_path / "c.crvo"
    assert json_of("package", name, crvo)["assets"][0]["kind"] == "onnx"
    assert AssetData.read(crvo).data == policies.bundled(name).read_bytes()
    (about,) = json_of("to-stablehlo", crvo, "-o", stablehlo, "--platform", "cpu")["assets"]
    assert (about["kind"], about["batch_size"], about["platforms"]) == ("stablehlo", None, ["cpu"])
    assert about["bytes"] == stablehlo.stat().st_size
    run("package", stablehlo, again)
    assert again.read_bytes() == stablehlo.read_bytes()
    reference = memojax.load(policies.bundled(name))
    for n in (1, 5):
        for path in (crvo, stablehlo):
            assert_same_answers(reference, memojax.load(path), n)


def test_package_with_optimize_exports(tmp_path: Path) -> None:
    target = tmp_path / "fast.crvo"
    text = run("package", "pendulum_ppo", target, "-O", "-N", "2").stdout
    assert "stablehlo" in text
    assert str(target) in text
    assert AssetData.read(target).kind is AssetKind.STABLEHLO
    assert_same_answers(memojax.load(policies.bundled("pendulum_ppo")), memojax.load(target), 2)
    assert "--batch-size needs --optimize" in run("package", "pendulum_ppo", target, "-N", "2", code=2).stderr


def test_several_policies_go_into_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    data = json_of("to-stablehlo", *NAMES, "--output", folder, "--platform", "cpu")
    assert [one["model"] for one in data["assets"]] == NAMES
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.crvo" for name in NAMES]
    for name in NAMES:
        assert_same_answers(memojax.load(policies.bundled(name)), memojax.load(folder / f"{name}.crvo"), 3)
    text = run("to-stablehlo", NAMES[0], "--output", folder, "--platform", "cpu").stdout
    assert str(folder / f"{NAMES[0]}.crvo") in text


def test_the_default_target_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("package", "acrobot_ppo")
    run("to-stablehlo", "pendulum_ppo", "--platform", "cpu")
    assert sorted(os.listdir()) == ["acrobot_ppo.crvo", "pendulum_ppo.crvo"]
    run("package", "acrobot_ppo", "--optimize")
    assert AssetData.read("acrobot_ppo.crvo").kind is AssetKind.STABLEHLO


def test_nothing_but_an_older_asset_is_overwritten(tmp_path: Path, files: dict[str, Path]) -> None:
    precious = tmp_path / "other.onnx"
    precious.write_bytes(b"a model of somebody's")
    for command in (("package", "acrobot_ppo", precious), ("to-stablehlo", "acrobot_ppo", "-o", precious)):
        assert "is not a CRVO asset" in run(*command, code=2).stderr
        assert precious.read_bytes() == b"a model of somebody's"
    for command in (
        ("package", files["crvo"], files["crvo"]),
        ("to-stablehlo", files["crvo"], "-o", files["crvo"], "--force"),
    ):
        before = files["crvo"].read_bytes()
        assert "written over itself" in run(*command, code=2).stderr
        assert files["crvo"].read_bytes() == before
    run("package", "acrobot_ppo", precious, "--force")
    assert AssetData.read(precious).kind is AssetKind.ONNX
    run("package", "pendulum_ppo", precious)
    assert AssetData.read(precious).data == policies.bundled("pendulum_ppo").read_bytes()


def test_targets_are_checked_before_anything_is_exported(tmp_path: Path) -> None:
    (tmp_path / "pendulum_ppo.crvo").write_text("notes")
    assert (
        "not a CRVO asset"
        in run("to-stablehlo", "acrobot_ppo", "pendulum_ppo", "-o", tmp_path, code=2).stderr
    )
    assert sorted(os.listdir(tmp_path)) == ["pendulum_ppo.crvo"]
    assert (
        "two models would be written"
        in run("to-stablehlo", "acrobot_ppo", "acrobot_ppo", "-o", tmp_path / "new", code=2).stderr
    )
    for command in (
        ("package", "acrobot_ppo", "/no/such/folder/x.crvo"),
        ("to-stablehlo", "acrobot_ppo", "-o", "/no/such/folder/x.crvo"),
    ):
        assert "the folder /no/such/folder does not exist: make it first" in run(*command, code=1).stderr


def test_a_failed_export_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    result = run(
        "to-stablehlo",
        broken,
        "acrobot_ppo",
        "-o",
        tmp_path / "new",
        "--platform",
        "cpu",
        "--json",
        "-",
        code=1,
    )
    assert [one["model"] for one in json.loads(result.stdout)["assets"]] == ["acrobot_ppo"]
    assert os.listdir(tmp_path / "new") == ["acrobot_ppo.crvo"]
    assert "1 of 2 models could not be exported" in result.stderr
    assert "broken.onnx: not an ONNX model" in result.stderr


def test_an_exported_policy_keeps_its_metadata(files: dict[str, Path], tmp_path: Path) -> None:
    run("to-stablehlo", files["stablehlo"], "-o", tmp_path / "again.crvo", "--platform", "cpu")
    for path in (files["stablehlo"], tmp_path / "again.crvo"):
        (one,) = json_of("evaluate", path, "--episodes", "1", "--max-steps", "2")["evaluations"]
        assert one["env_id"] == "Acrobot-v1"
        assert one["metadata"]["algorithm"] == "PPO"
        policy = memojax.load(path)
        assert policy.metadata == memojax.load(files["onnx"]).metadata
        assert "of policy.crvo" in repr(policy)


def test_a_damaged_program_is_named_by_its_file(files: dict[str, Path], tmp_path: Path) -> None:
    raw = bytearray(files["stablehlo"].read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bent.crvo").write_bytes(raw)
    (tmp_path / "odd.crvo").write_bytes(b"CRVO\0\0\0\x4agarbage")
    for name in ("bent.crvo", "odd.crvo"):
        assert f"{tmp_path / name}: " in run("api", tmp_path / name, code=1).stderr


# Every command, by content


@pytest.mark.parametrize("kind", KINDS)
def test_loading_looks_at_the_content(kind: str, files: dict[str, Path]) -> None:
    reference = memojax.load(policies.bundled("acrobot_ppo"))
    for source in (files[kind], str(files[kind]), files[kind].read_bytes()):
        assert_same_answers(reference, memojax.load(source), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_api_and_describe_look_at_the_content(kind: str, files: dict[str, Path]) -> None:
    data = json_of("api", files[kind])
    assert data["inputs"] == [{"name": "obs", "dtype": "float32", "shape": [6]}]
    assert data["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [3], "constant": False}]
    assert data["rows_mix"] == []
    assert bool(data["ops"]) == (kind != "stablehlo")
    assert "[n, 6]" in run("api", files[kind]).stdout
    about = json_of("describe", files[kind])
    assert about["parameters"] == 4815
    assert about["metadata"]["env_id"] == "Acrobot-v1"
    assert ("kind" in about) == (kind == "stablehlo")
    assert "metadata env_id" in run("describe", files[kind]).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_run_looks_at_the_content(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    rows = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 6)
    np.savez(tmp_path / "in.npz", obs=rows)
    run("run", files[kind], "--inputs", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    wanted = memojax.load(policies.bundled("acrobot_ppo")).infer_arrays({"obs": rows})["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], wanted, rtol=1e-6)


@needs_onnxruntime
@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_benchmark_look_at_the_content(kind: str, files: dict[str, Path]) -> None:
    onnx = ("--onnx", files["crvo"]) if kind == "stablehlo" else ()
    data = json_of("verify", files[kind], "--sizes", "1,3", *onnx)
    assert data["same"]
    assert [(check["size"], check["argmax_agreement"]) for check in data["checks"]] == [(1, 1), (3, 1)]
    timed = json_of("benchmark", files[kind], "-b", "1,2", "-c", "2", "--against", "onnxruntime", *onnx)
    assert [(one["runtime"], one["batch_size"]) for one in timed["results"]] == [
        ("memojax", 1),
        ("onnxruntime", 1),
        ("memojax", 2),
        ("onnxruntime", 2),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_looks_at_the_content(kind: str, files: dict[str, Path]) -> None:
    (one,) = json_of("evaluate", files[kind], "--env", "Acrobot-v1", "--episodes", "2", "--max-steps", "4")[
        "evaluations"
    ]
    assert one["lengths"] == [4, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_package_and_export_look_at_the_content(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    reference = memojax.load(policies.bundled("acrobot_ppo"))
    for index, arguments in enumerate((("package",), ("package", "-O"), ("to-stablehlo", "-o"))):
        target = tmp_path / f"{index}.crvo"
        run(arguments[0], files[kind], *arguments[1:], target)
        assert_same_answers(reference, memojax.load(target), 2)


# Policies without a graph, and for one size


@needs_onnxruntime
def test_verify_says_how_to_check_a_policy_without_a_graph(files: dict[str, Path]) -> None:
    for command in ("verify", "benchmark"):
        extra = ("--against", "onnxruntime")
        assert (
            "name the file from which it was made (--onnx FILE on the command line"
            in run(command, files["stablehlo"], *extra, code=1).stderr
        )
        stderr = run(command, files["stablehlo"], *extra, "--onnx", "pendulum_ppo", code=1).stderr
        assert "the reference has the inputs obs: float32[n, 3]" in stderr
        assert "the policy has obs: float32[n, 6]" in stderr
    with pytest.raises(IncompatibleModelError):
        memojax.verify(policies.bundled("acrobot_ppo"), [1], reference=policies.bundled("pendulum_ppo"))


@needs_onnxruntime
def test_verify_tells_another_policy_from_the_reference(tmp_path: Path, files: dict[str, Path]) -> None:
    typed = memojax.TypedModel.from_model(policies.bundled("acrobot_ppo"))
    other = typed.with_params({name: np.asarray(value) * 1.5 for name, value in typed.params.items()})
    memojax.to_stablehlo(other, platforms=["cpu"]).write(tmp_path / "other.crvo")
    assert not json_of("verify", tmp_path / "other.crvo", "--onnx", files["onnx"], code=1)["same"]
    assert not all(
        check.same for check in memojax.verify(other, [2], reference=policies.bundled("acrobot_ppo"))
    )


@needs_onnxruntime
def test_a_policy_for_one_size_is_run_at_that_size(fixed: Path) -> None:
    assert json_of("run", fixed)["batch_size"] == 4
    assert json_of("run", fixed, "-b", "3")["batch_size"] == 3
    assert [check["size"] for check in json_of("verify", fixed, "--onnx", "acrobot_ppo")["checks"]] == [4]
    assert [one["batch_size"] for one in json_of("benchmark", fixed, "-c", "2")["results"]] == [4]
    (one,) = json_of(
        "evaluate", fixed, "--env", "Acrobot-v1", "--episodes", "6", "--num-envs", "6", "--max-steps", "3"
    )["evaluations"]
    assert one["lengths"] == [3] * 6


def test_an_export_for_one_size_cannot_be_widened(
    fixed: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "out.crvo"
    assert "this model runs 4 rows only" in run("to-stablehlo", fixed, "-b", "2", "-o", target, code=1).stderr
    assert (
        "exported for cpu, not for cuda"
        in run("to-stablehlo", files["stablehlo"], "--platform", "cuda", "-o", target, code=1).stderr
    )
    assert not target.exists()
    assert (
        json_of("to-stablehlo", files["stablehlo"], "-b", "2", "-o", target)["assets"][0]["batch_size"] == 2
    )
    assert_same_answers(memojax.load(policies.bundled("acrobot_ppo")), memojax.load(target), 2)


# Damaged assets


@pytest.mark.parametrize("kind", ["crvo", "stablehlo"])
@pytest.mark.parametrize("length", [4, 7, 8, 11, 40, 0.5, -1])
def test_truncated_assets_are_an_error_of_one_line(
    kind: str, length: float, files: dict[str, Path], tmp_path: Path
) -> None:
    raw = files[kind].read_bytes()
    short = tmp_path / "short.crvo"
    short.write_bytes(raw[: int(length * len(raw)) if length == 0.5 else int(length)])
    target = tmp_path / "out.crvo"
    commands = (
        ("api",),
        ("describe",),
        ("run",),
        ("verify",),
        ("benchmark",),
        ("evaluate", "--env", "Acrobot-v1"),
    )
    for command in (*commands, ("package", target), ("to-stablehlo", "-o", target)):
        result = run(command[0], short, *command[1:], code=1)
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert result.stdout == ""
        assert not target.exists()


def test_foreign_assets_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for content, message in (
        (b"CRVO\x00\x00\x00\x02tar", "holds nnef: memojax reads ONNX"),
        (b"CRVO\x00\x00\x00\x09rest", "asset kind 9 is unknown"),
        (b"CRVO\x00\x01\x00\x01rest", "is compressed"),
        (b"CRVO\x00\x00\x00\x4aMJXA\xff\xff\xff\xff{}", "truncated"),
        (b"CRVO\x00\x00\x00\x01rest", "not an ONNX model"),
    ):
        path = tmp_path / "foreign.crvo"
        path.write_bytes(content)
        for command in (
            ("api",),
            ("run",),
            ("package", tmp_path / "out.crvo"),
            ("to-stablehlo", "-o", tmp_path / "out.crvo"),
        ):
            assert message in run(command[0], path, *command[1:], code=1).stderr.replace("\n", " ")
    assert not (tmp_path / "out.crvo").exists()
