"""Views of inferers as text, HTML and figures; a view computes and changes nothing."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import jax
import numpy as np
import pytest

import memojax as mj
from memojax.display.card import MOST_PLANS, Card
from memojax.errors import MissingPackageError

from ..helpers import mixing, policy, scaling

OBS = {"obs": np.ones((4, 3), np.float32)}


class Tags(HTMLParser):
    """Text and tags of well-formed HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def both(shown: Any) -> list[str]:
    """The text, and the text in the HTML."""
    return [repr(shown), Tags(shown._repr_html_()).text]


def test_an_inferer_without_plans_shows_its_api() -> None:
    inferer = mj.load(mj.policies.bundled("acrobot_ppo"))
    for text in both(inferer):
        for part in (
            "MemoizingDynamicInferer of acrobot_ppo.onnx",
            "obs     float32[n, 6]",
            "logits  float32[n, 3]",
            "axis (",
            "cpu",
        ):
            assert part in text
        assert "no plans yet" in text
    assert "\x1b" not in repr(inferer)
    assert inferer.cache_info().currsize == 0


def test_plans_are_a_table_with_a_bar_per_call_time() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling(), [2])
    for _ in range(17):
        inferer.infer_arrays(OBS)
    lines = repr(inferer).splitlines()
    head = next(index for index, line in enumerate(lines) if "compile ms" in line)
    assert lines[head].split() == ["size", "compile", "ms", "calls", "median", "us", "bytes"]
    two, four = lines[head + 1 : head + 3]
    assert two.split()[0] == "2"
    assert "▇" not in two
    assert (four.split()[0], four.split()[2]) == ("4", "17")
    assert four.count("▇") == 16
    html = inferer._repr_html_()
    assert html.count("currentColor") == 2
    assert "width: 0.00em" in html
    assert "width: 8.00em" in html


def test_colours_come_from_the_page() -> None:
    html = mj.MemoizingDynamicInferer(scaling(), [1])._repr_html_()
    assert set(re.findall(r"background: *([^;]+);", html)) == {"currentColor"}
    assert not re.search(r"[^-]color: *#|rgb\(|black|white", html)


def test_the_candidate_and_the_device_are_shown_where_they_differ() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling())
    inferer.infer_arrays({"obs": np.ones((4, 3), np.float32)})
    assert "batches" not in repr(inferer)
    inferer.preload(5, device=jax.devices()[0])
    assert "batches" not in repr(inferer), "on a CPU, arrays have the plans of NumPy rows"
    inferer.cache_clear(5)
    inferer._engine.on(jax.devices()[0]).cache.get(5)
    rows = [line.split() for line in repr(inferer).splitlines() if line.strip()[:1] in "45"]
    assert [(row[0], row[5]) for row in rows] == [("4", "NumPy"), ("5", "cpu:0")]


def test_the_busiest_of_many_plans_are_shown() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling())
    for n in range(1, MOST_PLANS + 4):
        for _ in range(1 + (n > 3)):
            inferer.infer_arrays({"obs": np.ones((n, 3), np.float32)})
    for text in both(inferer):
        assert "and 3 more" in text
    shown = [int(line.split()[0]) for line in repr(inferer).splitlines() if line.strip()[:1].isdigit()]
    assert shown == list(range(4, MOST_PLANS + 4))


HOSTILE = "<script>alert('x')</script>\x1b[31m\n&amp;\""


def test_hostile_names_are_escaped() -> None:
    typed = mj.TypedModel.from_function(lambda _, x: {HOSTILE: x[HOSTILE]}, (), {HOSTILE: ((3,), np.float32)})
    inferer = mj.MemoizingDynamicInferer(typed, [1])
    html = Tags(inferer._repr_html_())
    assert "script" not in html.tags
    assert "<script>alert('x')</script>\\x1b[31m\\n&amp;\"" in html.text
    text = repr(inferer)
    assert "\x1b" not in text
    assert len([line for line in text.splitlines() if "input" in line]) == 1


def test_long_names_are_cut() -> None:
    card = Card("x" * 10_000)
    assert len(card.text()) < 300
    assert len(card.html()) < 400


def test_the_warnings_that_matter() -> None:
    inferer = mj.MemoizingDynamicInferer(mixing())
    assert "!" not in repr(inferer), "the probe must not be run by a repr"
    assert inferer.mixing_outputs == ("centred",)
    for text in both(inferer):
        assert "rows influence each other (output centred)" in text

    wide = mj.TypedModel.from_function(lambda _, x: {"y": x["n"] * 2}, (), {"n": ((), np.int64)})
    assert "64-bit numbers in n, y" in repr(mj.BasicInferer(wide))

    drawn = mj.TypedModel.from_function(
        lambda _, x, key: x["obs"] + jax.random.normal(key, x["obs"].shape),
        (),
        {"obs": ((3,), np.float32)},
        random=True,
    )
    assert "random numbers" in repr(mj.MemoizingDynamicInferer(drawn))

    small = mj.MemoizingDynamicInferer(scaling(), maxsize=1)
    for n in (1, 2):
        small.infer_arrays({"obs": np.ones((n, 3), np.float32)})
    assert "1 plans were dropped (maxsize=1)" in repr(small)


@pytest.mark.parametrize(
    ("inferer", "part"),
    [
        (lambda: mj.BasicInferer(scaling()), "BasicInferer"),
        (lambda: mj.FixedBatchInferer(scaling(), [2, 4]), "sizes=[4, 2]"),
        (lambda: mj.DynamicInferer(scaling(), 4), "capacity=4"),
        (
            lambda: mj.MemoizingDynamicInferer(scaling(), on_miss="error", maxsize=3),
            "on_miss='error', maxsize=3",
        ),
    ],
)
def test_each_kind_shows_its_options(inferer: Any, part: str) -> None:
    for text in both(inferer()):
        assert part in text


def test_wrappers_show_the_inferer_inside() -> None:
    inferer = mj.MemoizingDynamicInferer(policy())
    both_wrapped = mj.EpsilonInjector(
        mj.RecurrentTracker.wrap(inferer), "epsilon", mj.ConstantGenerator.zeros()
    )
    for text in both(both_wrapped):
        for part in (
            "EpsilonInjector",
            "RecurrentTrackerWrapper(BaseWrapper(), 'h_in' <- 'h_out'",
            "MemoizingDynamicInferer",
            "filled in",
        ):
            assert part in text
    lines = repr(both_wrapped).splitlines()
    assert lines[1].split()[:3] == ["input", "obs", "float32[n,"]
    assert [line for line in lines if line.startswith("    input")] != []


def test_batched_and_runtime_show_waiting_agents() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling())
    batched = inferer.into_batched()
    batched.push(1, {"obs": np.ones(3)})
    for text in both(batched):
        assert re.search(r"agents that wait\s+1\b", text)
        assert "MemoizingDynamicInferer" in text
    runtime = mj.Runtime()
    brain = runtime.add_inferer(inferer)
    runtime.push(brain, 5, {"obs": np.ones(3)})
    for text in both(runtime):
        assert "Runtime of 1 models" in text
        assert "MemoizingDynamicInferer, 1 agents wait" in text


def test_a_view_compiles_nothing_and_counts_no_call() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling(), [4])
    with mj.forbid_compile():
        for _ in range(5):
            both(inferer)
        inferer.infer_arrays(OBS)
        both(inferer)
    (plan,) = inferer.plans()
    assert plan.calls == 1
    assert plan.median_us is not None, "the first call is timed, however often somebody looked before"


def test_half_made_inferers_do_not_raise() -> None:
    for kind in (mj.MemoizingDynamicInferer, mj.EpsilonInjector, mj.Batched, mj.Runtime):
        made = kind.__new__(kind)
        assert kind.__name__ in repr(made)
        assert kind.__name__ in Tags(made._repr_html_()).text


def test_a_oneshot_names_its_breaks() -> None:
    model = mj.OneShot(mj.policies.bundled("acrobot_ppo"))
    assert repr(model) == "OneShot(obs -> logits; 0 plans)"


def _medians(figure: Any) -> list[tuple[int, float]]:
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    return list(zip(line.get_xdata(), line.get_ydata()))


def test_plot_draws_medians_and_the_sizes_seen() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    inferer = mj.MemoizingDynamicInferer(scaling(), [2, 100])
    for n in (1, 4, 4, 8):
        inferer.infer_arrays({"obs": np.ones((n, 3), np.float32)})
    figure = inferer.plot()
    assert _medians(figure) == [(plan.size, plan.median_us) for plan in inferer.plans() if plan.calls]
    (hollow,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert list(hollow.get_xdata()) == [2, 100]
    assert hollow.get_markerfacecolor() == "none"
    (bars,) = figure.axes[1].collections
    assert [(x, top) for (x, _), (_, top) in bars.get_segments()] == [(1, 1), (4, 2), (8, 1)]
    assert figure.axes[0].get_xscale() == "log"
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba()).std() > 0
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_plot_draws_into_the_users_axes_and_leaves_pyplot_alone() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    before = "matplotlib.pyplot" in sys.modules
    inferer = mj.MemoizingDynamicInferer(scaling(), [1])
    inferer.infer_arrays(OBS)
    figure = Figure()
    axes = figure.add_subplot()
    assert inferer.plot(ax=axes) is figure
    assert axes.get_xlabel() == "batch size"
    assert inferer.plot() is not figure
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_plot_without_plans_says_so() -> None:
    pytest.importorskip("matplotlib")
    figure = mj.MemoizingDynamicInferer(scaling()).plot()
    assert "no plans yet" in figure.axes[0].texts[0].get_text()


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in ("memojax.display.figure", "memojax.display.latency"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingPackageError, match=r"pip install 'memojax\[plot\]'"):
        mj.MemoizingDynamicInferer(scaling()).plot()
