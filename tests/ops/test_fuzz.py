"""Random small graphs, here and in onnxruntime: elementwise, shape, reduction and product operators, composed
and broadcast at will.

A value's magnitude and the power of two that it is a multiple of are tracked, so that a graph never compares
rounding errors: operators with jumps (Floor, ArgMax, Less, ...) only take values that are exact in both
runtimes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented

from memojax.lowering import oneshot
from tests.ops.test_versions import assert_same, onnxruntime_session

from .fuzz_graphs import FLOATS, OPSETS, Builder
from .fuzz_nodes import STEPS, matmul, unary


@st.composite
def graphs(draw: Callable[[st.SearchStrategy], Any]) -> Builder:
    """A graph of up to a dozen nodes."""
    builder = Builder(
        draw, draw(st.sampled_from(OPSETS)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    )
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=4, max_size=14)):
        step(builder)
    if not builder.nodes:
        matmul(builder)
        unary(builder)
    return builder


def check(builder: Builder) -> None:
    model = builder.model()
    note("\n".join(f"{n.op_type}({', '.join(n.input)}) -> {', '.join(n.output)}" for n in model.graph.node))
    try:
        expected = onnxruntime_session(model).run(None, builder.inputs)
    except NotImplemented:  # a type that some version of onnxruntime has no kernel for
        reject()
    scale = max(1.0, *(term.bound for term in builder.terms if term.dtype in FLOATS), 1.0)
    assert_same(oneshot.run(model, builder.inputs).values(), expected, atol=1e-5 * scale)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_random_graphs(builder: Builder) -> None:
    check(builder)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_many_random_graphs(builder: Builder) -> None:
    check(builder)
