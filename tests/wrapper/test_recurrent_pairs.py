"""Which pairs of hidden state are found, and how pairs are given."""

from __future__ import annotations

from typing import Any

import pytest

from memojax import (
    BaseWrapper,
    RecurrentInfo,
    RecurrentTracker,
    RecurrentTrackerWrapper,
)
from memojax.errors import (
    IncompatibleModelError,
    UnknownInputError,
)
from memojax.wrapper.recurrent import find_pairs

from ..helpers import FakeInferer, model_api, track_stacked

PAIRS = [
    ({"h": (2,), "obs": (3,)}, {"h": (2,), "act": (3,)}, [("h", "h")]),
    ({"h": (2,), "h_in": (2,)}, {"h": (2,), "h_out": (2,)}, [("h", "h")]),
    (
        {"obs": (3,), "h_in": (2,), "c_in": (2,)},
        {"act": (1,), "h_out": (2,), "c_out": (2,)},
        [("h_in", "h_out"), ("c_in", "c_out")],
    ),
    ({"obs": (3,), "state_ins": ()}, {"output": (2,), "state_outs": ()}, [("state_ins", "state_outs")]),
    (
        {"obs": (3,), "recurrent_in": (1, 8)},
        {"action": (3,), "recurrent_out": (1, 8)},
        [("recurrent_in", "recurrent_out")],
    ),
    ({"in_h": (2,), "x": (1,)}, {"out_h": (2,)}, [("in_h", "out_h")]),
    (
        {"h_in_0": (2,), "h_in_1": (2,), "x": (1,)},
        {"h_out_1": (2,), "h_out_0": (2,)},
        [("h_in_0", "h_out_0"), ("h_in_1", "h_out_1")],
    ),
    (
        {"mix": (4,), "conv_cache": (2, 3)},
        {"enh": (4,), "conv_cache_out": (2, 3)},
        [("conv_cache", "conv_cache_out")],
    ),
    ({"x": (4,), "core": (2,)}, {"y": (4,), "next_core": (2,)}, [("core", "next_core")]),
    ({"x": (4,), "core": (2,)}, {"y": (4,), "new_core": (2,)}, [("core", "new_core")]),
    ({"x": (4,), "h": (2,)}, {"y": (4,), "h_next": (2,)}, [("h", "h_next")]),
    ({"x": (4,), "h": (2,)}, {"y": (4,), "h_new": (2,)}, [("h", "h_new")]),
    (
        {"x": (4,), "h0": (2,), "c_0": (2,)},
        {"y": (4,), "hn": (2,), "c_n": (2,)},
        [("h0", "hn"), ("c_0", "c_n")],
    ),
    ({"input": (512,), "state": (2, 128)}, {"output": (1,), "stateN": (2, 128)}, [("state", "stateN")]),
    (
        {"input_1": (3, 41), "input_2": (64,)},
        {"output_1": (1,), "output_2": (64,)},
        [("input_2", "output_2")],
    ),
]


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    PAIRS,
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_pairs_are_found(inputs: Any, outputs: Any, pairs: list[tuple[str, str]]) -> None:
    assert find_pairs(model_api(inputs, outputs)) == [RecurrentInfo(*pair) for pair in pairs]
    tracker = RecurrentTracker.wrap(FakeInferer(inputs=inputs, outputs=outputs))
    assert [name for name, _ in tracker.input_shapes()] == [
        name for name in inputs if name not in dict(pairs)
    ]
    assert [name for name, _ in tracker.output_shapes()] == [
        name for name in outputs if name not in dict(pairs).values()
    ]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"a": (2, 1), "b": (2, 3)}, {"c": (2, 1), "d": (2, 3)}),
        ({"h": (2,)}, {"h": (3,)}),
        ({"h_in": (2,)}, {"h_out": (3,)}),
        ({"in": (4,)}, {"out": (4,)}),
        ({"input": (4,)}, {"output": (4,)}),
        ({"input_1": (4,), "input_2": (4,)}, {"output_1": (4,), "output_2": (4,)}),
        ({"within": (4,)}, {"without": (4,)}),
    ],
    ids=str,
)
def test_without_pairs_the_error_lists_all_names(inputs: Any, outputs: Any) -> None:
    for wrap in (RecurrentTracker.wrap, track_stacked):
        with pytest.raises(IncompatibleModelError) as caught:
            wrap(FakeInferer(inputs=inputs, outputs=outputs))
        assert all(name in str(caught.value) for name in (*inputs, *outputs, "RecurrentInfo"))


@pytest.mark.parametrize(
    ("infos", "error", "message"),
    [
        ([("g_in", "h_out")], UnknownInputError, "'g_in'.*'obs', 'h_in'"),
        ([("h_in", "g_out")], IncompatibleModelError, "g_out.*h_out"),
        ([("obs", "h_out")], IncompatibleModelError, "shape"),
        ([("h_in", "h_out"), ("h_in", "other")], UnknownInputError, "h_in"),
    ],
)
def test_pairs_that_do_not_fit_are_named(
    infos: list[tuple[str, str]], error: type[Exception], message: str
) -> None:
    fake = FakeInferer(inputs={"obs": (3,), "h_in": (2,)}, outputs={"h_out": (2,), "other": (2,)})
    pairs = [RecurrentInfo(*info) for info in infos]
    with pytest.raises(error, match=message):
        RecurrentTracker(fake, pairs)
    with pytest.raises(error, match=message):
        RecurrentTrackerWrapper(BaseWrapper(), fake, pairs)


def test_explicit_pairs() -> None:
    fake = FakeInferer(
        lambda view: view.set_output(0, view.input_slot(0) + 1),
        inputs={"memory": (2,)},
        outputs={"thought": (2,)},
    )
    tracker = RecurrentTracker(fake, [RecurrentInfo("memory", "thought")])
    assert (tracker.input_shapes(), tracker.output_shapes()) == ([], [])
    tracker.begin_agent(0)
    assert tracker.infer_batch({0: {}}) == {0: {}}
    assert tracker.states(0)["memory"].tolist() == [1, 1]
