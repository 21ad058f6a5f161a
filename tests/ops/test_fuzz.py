"""Random small graphs against onnxruntime: elementwise, shape, reduction and product operators.

Each value has a known bound, and a power of two of which it is a multiple. Operators with jumps (Floor,
ArgMax, Less, ...) only get values that are exact in both runtimes, so no graph compares rounding errors.
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
    except NotImplemented:  # Some version of onnxruntime has no kernel for this type.
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
