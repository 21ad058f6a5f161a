"""`memojax cache`: the content of the folder of compiled plans, and the effect of clearing."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import memojax
from memojax import policies
from memojax.cli.main import cli
from memojax.plans.disk_cache import DiskCache
from memojax.plans.tuning_log import Choices


def run(*arguments: Any, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["cache", *map(str, arguments)], input=answer)
    assert result.exit_code == code, result.output + "".join(map(str, result.exc_info or ()))
    assert "Traceback" not in result.stderr
    return result


def json_of(*arguments: Any) -> Any:
    return json.loads(run(*arguments, "--json", "-").stdout)


def key(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "model": "digest"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three plans of two models, a choice for one of them, and foreign files."""
    cache, choices = DiskCache(tmp_path), Choices(tmp_path)
    for name, size, payload in (("walk.onnx", 8, 100), ("walk.onnx", 16, 200), ("run.onnx", 8, 400)):
        cache.put(key(name, size), bytes(payload))
    for age, entry in enumerate(sorted(cache.entries(), key=lambda entry: entry.bytes)):
        os.utime(entry.path, (1_700_000_000 + age, 1_700_000_000 + age))
    choices.put(key("walk.onnx", 8), "v256", 1.5)
    for name, content in FOREIGN.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


FOREIGN = {
    "notes.txt": b"mine",
    "holiday.plan": b"to the sea",
    f"{'ab' * 32}.plan": b"not an entry, whatever its name",
    f"{'cd' * 32}.plan": b"MEMOJAX\x01" + bytes(72) + b"the key in the header is another",
    "tmpx1y2.tmp": b"half an entry of a process that is at work",
}


def foreign_is_there(folder: Path) -> bool:
    return all((folder / name).read_bytes() == content for name, content in FOREIGN.items())


def test_list_tells_every_plan(folder: Path) -> None:
    data = json_of("list", "--dir", folder)
    assert [(one["model"], one["batch_size"]) for one in data["entries"]] == [
        ("run.onnx", 8),
        ("walk.onnx", 16),
        ("walk.onnx", 8),
    ]
    assert data["bytes"] == sum((folder / one["file"]).stat().st_size for one in data["entries"])
    assert data["autotuned"] == ["walk.onnx x 8"]
    text = run("list", "--dir", folder).stdout
    rows = [line.split()[0] for line in text.splitlines() if ".onnx" in line]
    assert rows == ["run.onnx", "walk.onnx", "walk.onnx"]
    assert f"3 plans ({data['bytes']:,} bytes), 1 autotuned choice in {folder}" in text
    assert "holiday" not in text
    assert len(json_of("list", "--dir", folder, "--model", "walk")["entries"]) == 2
    assert len(json_of("list", "--dir", folder, "--model", "walk.onnx")["entries"]) == 2
    assert json_of("list", "--dir", folder, "--model", "wal")["entries"] == []


def test_size_adds_up_by_model(folder: Path) -> None:
    data = json_of("size", "--dir", folder)
    assert [(one["model"], one["plans"]) for one in data["models"]] == [("run.onnx", 1), ("walk.onnx", 2)]
    assert data["bytes"] == sum(one["bytes"] for one in data["models"])
    assert (data["plans"], data["autotuned"]) == (3, 1)
    assert "walk.onnx       2" in run("size", "--dir", folder).stdout


def test_clear_removes_entries_and_nothing_else(folder: Path) -> None:
    text = run("clear", "--dir", folder, "--yes").stdout
    assert text.startswith("removed: 3 plans (")
    assert sorted(os.listdir(folder)) == sorted(FOREIGN)
    assert foreign_is_there(folder)
    assert json_of("clear", "--dir", folder)["removed"] == 0


def test_clear_one_model(folder: Path) -> None:
    data = json_of("clear", "--dir", folder, "--model", "walk", "--yes")
    assert (data["removed"], data["autotuned_removed"]) == (2, 1)
    assert [one["model"] for one in json_of("list", "--dir", folder)["entries"]] == ["run.onnx"]
    assert foreign_is_there(folder)
    assert json_of("clear", "--dir", folder, "--model", "nobody", "--yes")["removed"] == 0


def test_clear_asks_first(folder: Path) -> None:
    for answer in ("n\n", ""):
        result = run("clear", "--dir", folder, code=1, answer=answer)
        assert "Remove 3 plans (" in result.stderr
        assert result.stdout == ""
        assert json_of("size", "--dir", folder)["plans"] == 3
    result = run("clear", "--dir", folder, "--json", "-", answer="y\n")
    assert json.loads(result.stdout)["removed"] == 3


def test_the_folder_of_the_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMOJAX_CACHE_DIR", raising=False)
    for command in ("list", "size", "clear"):
        assert "give --dir FOLDER, or set MEMOJAX_CACHE_DIR" in run(command, code=2).stderr
        assert "does not exist" in run(command, "--dir", tmp_path / "nowhere", code=2).stderr
    monkeypatch.setenv("MEMOJAX_CACHE_DIR", str(folder))
    assert json_of("size")["plans"] == 3
    monkeypatch.setenv("MEMOJAX_CACHE_DIR", str(tmp_path / "not made yet"))
    assert json_of("size")["plans"] == 0
    assert "0 plans (0 bytes)" in run("list").stdout


def test_real_plans_are_listed_and_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memojax.load(policies.bundled("acrobot_ppo"), preload=[2, 3], cache_dir=tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("an entry was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    entries = json_of("list", "--dir", tmp_path)["entries"]
    assert {(one["model"], one["batch_size"]) for one in entries} == {
        ("acrobot_ppo.onnx", 2),
        ("acrobot_ppo.onnx", 3),
    }
    run("size", "--dir", tmp_path)
    run("clear", "--dir", tmp_path, "--model", "acrobot_ppo", "--yes")
    monkeypatch.undo()
    again = memojax.load(policies.bundled("acrobot_ppo"), preload=[2], cache_dir=tmp_path)
    assert again.cache_info().disk_hits == 0
    assert again.infer_arrays({"obs": np.zeros((2, 6), np.float32)})["logits"].shape == (2, 3)


def test_damaged_entries_are_listed_without_a_name_and_cleared(folder: Path) -> None:
    entry = DiskCache(folder).entries("run")[0].path
    entry.write_bytes(entry.read_bytes()[:100])
    hostile = DiskCache(folder).entries("walk")[0].path
    raw = hostile.read_bytes()
    text = b"\x1b[31m[red]bad[/] x 7"
    hostile.write_bytes(raw[:80] + raw[80:-13] + text + bytes([len(text)]))
    shown = run("list", "--dir", folder).stdout
    assert "\x1b" not in shown
    assert {(one["model"], one["batch_size"]) for one in json_of("list", "--dir", folder)["entries"]} >= {
        ("?", None)
    }
    assert json_of("clear", "--dir", folder, "--yes")["removed"] == 3
    assert foreign_is_there(folder)


def test_links_are_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    entry = DiskCache(folder).entries("run")[0].path
    elsewhere = tmp_path_factory.mktemp("elsewhere") / entry.name
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    assert json_of("size", "--dir", folder)["plans"] == 2
    assert json_of("clear", "--dir", folder, "--yes")["removed"] == 2
    assert entry.is_symlink()


def test_a_file_of_choices_that_is_not_ours_stays(folder: Path) -> None:
    path = Choices(folder).path
    path.write_text('{"somebody": "else"}')
    assert json_of("clear", "--dir", folder, "--yes")["autotuned_removed"] == 0
    assert json.loads(path.read_text()) == {"somebody": "else"}


def test_entries_that_cannot_be_removed_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def stubborn(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".plan":
            raise PermissionError(13, "no", str(self))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stubborn)
    result = run("clear", "--dir", folder, "--yes", code=1)
    assert result.stdout.startswith("removed: 0 plans")
    assert "3 entries could not be removed" in result.stderr


def test_each_command_has_an_example_and_json() -> None:
    for command in ("list", "size", "clear"):
        text = run(command, "--help").output
        assert f"memojax cache {command}" in text
        assert "--json FILE|-" in text
