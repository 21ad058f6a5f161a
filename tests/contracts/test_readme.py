"""Every code block of README.md and docs/ runs, in the order of its page, in a folder with the files that the
pages name.

Python blocks of one section share a namespace; a `text` block right after one is its output, word for word.
Lines of `sh` blocks that call `memojax` run in this process, the others are commands that CI runs itself
(`main-command`, `test-command`) or installs. A comment `<!-- needs: PACKAGE ... -->` above a block says what
must be installed for it.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import memojax
from memojax.cli.main import COMMANDS, cli

from .. import doc_models

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- ([\w-]+(?:: [^>]*)?) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SKIPPED_SHELL = ("pip ", "python", ".venv/", "git ", "pre-commit", "PYTHONPATH")
"""Beginnings of shell lines that are not run here: installing, the test suite, and what CI runs verbatim."""


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    text: str


def sections(page: Path) -> dict[str, list[Block]]:
    """Blocks that run together: a whole page, or a section of the recipes, which stand alone."""
    text = page.read_text()
    parts = re.split(r"^## ", text, flags=re.MULTILINE) if page.name == "recipes.md" else [text]
    found = {}
    for part in parts:
        name = page.name if len(parts) == 1 else f"{page.name}: {part.splitlines()[0]}"
        if blocks := [Block(*match) for match in _BLOCK.findall(part)]:
            found[name] = blocks
    return found


SECTIONS = {name: blocks for page in PAGES for name, blocks in sections(page).items()}


@pytest.mark.parametrize("name", SECTIONS)
def test_code_blocks_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    doc_models.write(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    missing: list[str] = []
    printed = ""
    try:
        for number, block in enumerate(SECTIONS[name]):
            needs = block.mark.removeprefix("needs: ").split() if block.mark.startswith("needs: ") else []
            if absent := [package for package in needs if importlib.util.find_spec(package) is None]:
                missing += absent
            elif block.language == "python" and block.mark != "many-actors":  # test_many_actors.py runs that
                capsys.readouterr()
                exec(compile(block.text, f"{name} block {number}", "exec"), namespace)
                printed = capsys.readouterr().out
            elif block.language == "text" and number and SECTIONS[name][number - 1].language == "python":
                assert printed == block.text
            elif block.language == "sh" and not block.mark:
                run_shell(block.text, monkeypatch)
    finally:
        memojax.ops.registry.remove("my.domain", "Snake")
    if missing:
        pytest.skip(f"the rest needs {', '.join(dict.fromkeys(missing))}")


def run_shell(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        with monkeypatch.context() as environment:
            while words and "=" in words[0]:
                environment.setenv(*words.pop(0).split("=", 1))
            if words[:1] == ["memojax"]:
                result = CliRunner().invoke(cli, words[1:])
                assert result.exit_code == 0, f"{line}\n{result.output}"
            else:
                assert not words or line.startswith(SKIPPED_SHELL), f"nothing runs the line {line!r}"


def test_most_pages_have_blocks() -> None:
    """After a change of the pattern, the tests above must still run blocks."""
    languages = [block.language for blocks in SECTIONS.values() for block in blocks]
    assert languages.count("python") > 25
    assert languages.count("sh") > 6
    assert README.count("\n```") == 2 * sum(1 for _ in _BLOCK.finditer(README))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize(
    "page", [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")], ids=str
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for marker in ("main-command", "test-command"):
        assert f"<!-- {marker} -->\n```sh\n" in README
        assert f"readme_command {marker}" in script


def test_every_command_is_listed() -> None:
    section = README.split("\n## Command line\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `memojax ([a-z-]+)", section, re.MULTILINE)) == sorted(COMMANDS)


def test_the_benchmark_blocks_match_the_results() -> None:
    """`benchmarks/report.py` writes them from the files in benchmarks/results."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert f"<!-- benchmarks -->\n{module.report()}\n<!-- /benchmarks -->" in page
    assert f"<!-- speed -->\n{module.summary()}\n<!-- /speed -->" in README
