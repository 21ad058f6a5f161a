"""Every Python block of the README runs, in order, in one namespace, from the repository's root."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import memojax
from memojax.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_code_blocks_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {}
    assert len(BLOCKS) >= 5
    try:
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md block {number}", "exec"), namespace)
    finally:
        memojax.ops.registry.remove("my.domain", "Snake")
    assert "[('obs', [6])] [('logits', [3])]" in capsys.readouterr().out


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for marker in ("main-command", "test-command"):
        assert f"<!-- {marker} -->\n```sh\n" in README
        assert f"readme_command {marker}" in script


def test_every_command_is_listed() -> None:
    section = README.split("\n## Command line\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `memojax ([a-z-]+)", section, re.MULTILINE)) == sorted(COMMANDS)


def test_the_benchmark_block_is_what_was_measured() -> None:
    """`benchmarks/report.py` writes it from the files in benchmarks/results."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"<!-- benchmarks -->\n{module.report()}\n<!-- /benchmarks -->" in README
