"""Nodes that are alike share one lowering in traces that are only read, which tell the same of the rows."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import memojax
from memojax.lowering import shared_steps

from ..helpers import make_model, node


@pytest.fixture
def counted() -> Iterator[list[tuple[int, ...]]]:
    """The shapes for which an operator of the test was traced."""
    shapes: list[tuple[int, ...]] = []

    @memojax.ops.register("Counted", domain="test.shared", since=1)
    def counted(x, *, alpha=1.0):  # pyright: ignore[reportUnusedFunction]
        shapes.append(x.shape)
        return jnp.tanh(x) * alpha

    yield shapes
    memojax.ops.registry.remove("test.shared", "Counted")


def _chain(count: int, **attributes: float) -> list[onnx.NodeProto]:
    names = ["x", *(f"v{i}" for i in range(1, count)), "y"]
    return [node("Counted", [a], [b], domain="test.shared", **attributes) for a, b in zip(names, names[1:])]
