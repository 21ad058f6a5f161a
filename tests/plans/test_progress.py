"""Progress bars: in a terminal, in a notebook (without ipywidgets), and nowhere else."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import rich.console

import memojax as mj
from memojax.plans.progress import progress_bar

from ..helpers import scaling


class Display:
    """The arguments of `IPython.display.display`, and the later updates."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Display:
        assert raw
        assert display_id
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        self.shown.append(bundle)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Display:
    display = Display()
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    return display


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"background": True}])
def test_preload_shows_a_bar_in_a_terminal(
    options: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    mj.MemoizingDynamicInferer(scaling()).preload([1, 2], progress=True, **options).wait()
    shown = capsys.readouterr().err
    assert "compiling" in shown
    assert "2/2" in shown


@pytest.mark.parametrize("options", [{}, {"background": True}])
def test_preload_shows_a_bar_in_a_notebook(options: Any, notebook: Display) -> None:
    handle = mj.MemoizingDynamicInferer(scaling()).preload([1, 2, 3], progress=True, **options)
    handle.wait(progress=None if options else False)
    assert notebook.shown[0]["text/plain"].startswith("compiling 0/3")
    assert '<progress value="3" max="3">' in notebook.shown[-1]["text/html"]


def test_nothing_is_shown_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    mj.MemoizingDynamicInferer(scaling()).preload([1, 2], progress=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err.strip() == ""


def test_nothing_is_shown_unless_asked(notebook: Display) -> None:
    mj.MemoizingDynamicInferer(scaling()).preload([1, 2], background=True).wait()
    assert notebook.shown == []


def test_a_notebook_bar_is_escaped_and_stays(notebook: Display) -> None:
    with pytest.raises(KeyboardInterrupt), progress_bar("<b>", 4) as report:
        report(2, "& more")
        raise KeyboardInterrupt
    assert "<b>" not in notebook.shown[-1]["text/html"]
    assert "&lt;b&gt; 2/4 &amp; more" in notebook.shown[-1]["text/html"]


def test_terminal_notes_are_not_read_as_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("[/red]", 1) as report:
        report(1, "[/]")
    assert "[/red]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bar_works_in_a_real_notebook_kernel() -> None:
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    source = (
        "import memojax\npolicy = memojax.load('acrobot_ppo')\npolicy.preload([1, 2], progress=True)\npolicy"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    bar, shown = notebook.cells[0].outputs
    assert '<progress value="2" max="2">' in bar["data"]["text/html"]
    assert "acrobot_ppo.onnx" in shown["data"]["text/html"]
    assert "logits  float32[n, 3]" in shown["data"]["text/plain"]
