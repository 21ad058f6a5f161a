"""Nodes alike share one lowering in traces that are only read, and these tell the same of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper

import memojax
from memojax.errors import LoweringError
from memojax.lowering import batch_axis, find_batch, shared_steps

from .test_batch_evidence import f32, in_file, model_of, op

ROWS, ANSWERS = {"x": ["batch", 4]}, {"y": ["batch", 4]}


def chain(count: int, *kinds: Any) -> list[onnx.NodeProto]:
    """Nodes one after the other, in turn of each kind: (operator, further inputs, attributes)."""
    names = ["x", *(f"v{i}" for i in range(1, count)), "y"]
    made = []
    for i in range(count):
        kind, more, attributes = kinds[i % len(kinds)]
        made.append(op(kind, f"{names[i]} {more}", names[i + 1], **attributes))
    return made


@pytest.fixture
def traces() -> Iterator[list[float]]:
    """The attribute of each trace of an operator of the test."""
    seen: list[float] = []

    @memojax.ops.register("Counted", domain="test.shared", since=1)
    def counted(x: Any, *, alpha: float = 1.0) -> Any:  # pyright: ignore[reportUnusedFunction]
        seen.append(alpha)
        return jnp.tanh(x) * alpha

    yield seen
    memojax.ops.registry.remove("test.shared", "Counted")


def loaded(nodes: list[onnx.NodeProto], **initializers: np.ndarray) -> Any:
    return memojax.load(in_domain(nodes, **initializers))


def in_domain(nodes: list[onnx.NodeProto], **initializers: np.ndarray) -> Any:
    model = model_of(nodes, ROWS, ANSWERS, **initializers)
    model.opset_import.append(helper.make_opsetid("test.shared", 1))
    return model


def test_an_operator_is_traced_few_times_for_many_nodes_alike(traces: list[float]) -> None:
    policy = loaded(chain(300, ("Counted", "", {"domain": "test.shared", "alpha": 0.5})))
    assert len(traces) == len(batch_axis.PROBE_SIZES) * (shared_steps._ALIKE + 1)
    del traces[:]
    x = want = f32(3, 4)
    got = policy.infer_arrays({"x": x})["y"]
    assert len(traces) == 300  # an executable is lowered node by node
    for _ in range(300):
        want = np.tanh(want) * np.float32(0.5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-30)


def test_nodes_of_other_attributes_are_not_alike(traces: list[float]) -> None:
    some = [("Counted", "", {"domain": "test.shared", "alpha": alpha}) for alpha in (0.0, -0.0, 1.0)]
    loaded(chain(60, *some))
    each = len(batch_axis.PROBE_SIZES) * (shared_steps._ALIKE + 1)
    assert [sum(str(seen) == alpha for seen in traces) for alpha in ("0.0", "-0.0", "1.0")] == [each] * 3


SCALARS = {f"s{i}": np.array(i / 7, np.float32) for i in range(4)}
ADDED = [("Add", f"s{i}", {}) for i in range(4)]
GRAPHS = {
    "weights": (chain(40, ("Add", "w", {}), ("Relu", "", {})), {"w": f32(4)}),
    "constants": (chain(40, *ADDED), SCALARS),
    "identities": (chain(40, ("Identity", "", {}), ("Neg", "", {})), {}),
    "products": (chain(40, ("Gemm", "w", {}), ("LeakyRelu", "", {"alpha": 0.125})), {"w": f32(4, 4)}),
    "softmax": (chain(40, ("Softmax", "", {"axis": -1}), ("Clip", "s1", {})), SCALARS),
    "mixed by softmax": (chain(40, ("Softmax", "", {"axis": 0})), {}),
    "mixed by sums": (chain(40, ("CumSum", "first", {})), {"first": np.array(0, np.int64)}),
    "mixed at the end": (
        [*chain(40, ("Neg", "", {}))[:-1], op("ReduceMean", "v39", "m", axes=[0]), op("Add", "v39 m", "y")],
        {},
    ),
    "shapes between": (
        [
            *chain(40, ("Neg", "", {}))[:-1],
            *(op("Shape", f"v{i}", f"shape{i}") for i in range(1, 20)),
            op("Reshape", "v39 shape7", "y"),
        ],
        {},
    ),
    "a mean by hand": (
        [
            *chain(40, ("Neg", "", {}))[:-1],
            op("Shape", "x", "shape"),
            op("Gather", "shape zero", "n", axis=0),
            op("Cast", "n", "rows", to=1),
            *(op("Div", f"v{i} rows", f"d{i}") for i in range(1, 20)),
            op("Sum", " ".join(f"d{i}" for i in range(1, 20)), "y"),
        ],
        {"zero": np.array(0, np.int64)},
    ),
    "two of each": (
        [
            *(helper.make_node("Split", ["x"], [f"a{i}", f"b{i}"], axis=1) for i in range(20)),
            *(op("Concat", f"b{i} a{i}", f"c{i}", axis=1) for i in range(20)),
            op("Sum", " ".join(f"c{i}" for i in range(20)), "y"),
        ],
        {},
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_trace_of_shared_steps_tells_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, initializers = GRAPHS[case]
    seen: list[Any] = []

    def native_rows(traced: batch_axis.Traced) -> batch_axis.NativeRows:
        seen.append([traced.trace(n) for n in batch_axis.PROBE_SIZES])
        seen.append(batch_axis.native_rows(traced))
        return seen[-1]

    monkeypatch.setattr(find_batch, "native_rows", native_rows)
    model = in_domain(nodes, **initializers)
    for alike in (0, 3, 1 << 30):
        monkeypatch.setattr(shared_steps, "_ALIKE", alike)
        memojax.load(model)
    traces, found = seen[::2], seen[1::2]
    assert found[0] == found[1] == found[2]
    for some in traces[:2]:
        for mine, plain in zip(some, traces[2], strict=True):
            # Nodes that wait come later in a trace.
            assert Counter(mine.numbers) == Counter(plain.numbers)
            assert Counter(mine.passed) == Counter(plain.passed)
            assert mine.states == plain.states
            assert mine.sizes.keys() == plain.sizes.keys()


def test_a_node_that_fails_among_many_alike_is_named() -> None:
    nodes = chain(30, ("Neg", "", {}))
    nodes[20:20] = [op("Concat", "v20 x", "wide", axis=1)]
    nodes[-1] = op("MatMul", "wide wide", "y")
    nodes[-1].name = "the_product"
    with pytest.raises(
        LoweringError, match=r"'the_product' \(MatMul, opset 17; inputs wide: float32\[1, 8\]"
    ):
        memojax.load(in_domain(nodes), batch_axis="batch")


def in_if(condition: str) -> list[onnx.NodeProto]:
    out = helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, ["batch", 4])
    body = helper.make_graph([op("Add", "v15 v20", "inner")], "body", [], [out])
    other = helper.make_graph([op("Sub", "v15 v20", "inner")], "other", [], [out])
    return [op("If", condition, "made", then_branch=body, else_branch=other)]


def in_loop() -> list[onnx.NodeProto]:
    go, more = (helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in ("go", "more"))
    trip = helper.make_tensor_value_info("trip", onnx.TensorProto.INT64, [])
    old, new = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in ("old", "new")
    )
    nodes = [op("Identity", "go", "more"), op("Sum", "old v15 v20", "new")]
    step = helper.make_graph(nodes, "step", [trip, go, old], [more, new])
    return [helper.make_node("Loop", ["trips", "", "v10"], ["made"], body=step)]


CHOSEN = [op("ReduceMax", "flags", "chosen", keepdims=0), op("Cast", "chosen", "choice", to=9)]


@pytest.mark.parametrize(
    "holders", [in_if("flag"), [*CHOSEN, *in_if("choice")], in_loop()], ids=["known if", "if", "loop"]
)
def test_a_body_and_later_nodes_read_values_of_nodes_that_wait(holders: list[onnx.NodeProto]) -> None:
    nodes = chain(40, ("Neg", "", {}), ("Relu", "", {}), ("Tanh", "", {}))
    nodes[-1] = op("Sum", "made v15 v20 v39", "y")
    nodes[-1:-1] = holders
    read = {name for one in holders for name in one.input}
    values = {"flag": np.array(False), "trips": np.array(3), "flags": f32(3)}
    model = in_domain(nodes, **{name: value for name, value in values.items() if name in read})
    x = f32(3, 4)
    np.testing.assert_allclose(
        memojax.load(model).infer_arrays({"x": x})["y"], in_file(model, {"x": x})["y"], atol=1e-6
    )
