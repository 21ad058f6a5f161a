"""An index out of range that depends on data: NaN, an error with `checked=True`, never another entry."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import memojax
from memojax.errors import IndexRangeError, LoweringError
from memojax.lowering.batch_axis import BatchedFunction
from memojax.lowering.graph_function import GraphFunction
from memojax.lowering.index_checks import RowChecks
from memojax.lowering.typed_model import TypedModel
from memojax.model import load_model

TABLE = np.arange(20, dtype=np.float32).reshape(5, 4) + 1


def model(graph: str, **weights: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    return made


def onnx_runtime(made: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


EMBEDDING = model("g (int64[batch,2] i) => (float[batch,2,4] y) { y = Gather (t, i) }", t=TABLE)
ELEMENTS = model(
    "g (int64[batch,2] i, float[batch,5] x) => (float[batch,2] y) { y = GatherElements <axis = 1> (x, i) }"
)
TUPLES = model("g (int64[batch,2] i) => (float[batch] y) { y = GatherND (t, i) }", t=TABLE)
PER_ROW = model(
    "g (int64[batch,1] i, float[batch,5] x) => (float[batch] y) { y = GatherND <batch_dims = 1> (x, i) }"
)
FIXED_BATCH = model("g (int64[1,2] i) => (float[1,2,4] y) { y = Gather (t, i) }", t=TABLE)


def feeds_of(made: onnx.ModelProto, indices: Any) -> dict[str, np.ndarray]:
    indices = np.array(indices)
    feeds = {"i": indices}
    if any(value.name == "x" for value in made.graph.input):
        feeds["x"] = np.arange(5 * len(indices), dtype=np.float32).reshape(-1, 5)
    return feeds


@pytest.mark.parametrize(
    ("made", "good", "bad", "spoilt"),
    [
        (EMBEDDING, [[0, 4], [-1, -5]], [[0, 5], [-6, 1]], [[False, True], [True, False]]),
        (ELEMENTS, [[0, 4], [-1, -5]], [[0, 99], [-6, 1]], [[False, True], [True, False]]),
        (TUPLES, [[0, 3], [-5, -4]], [[0, 4], [5, 0]], [True, True]),
        (TUPLES, [[4, 3], [-1, 0]], [[4, 3], [-6, 0]], [False, True]),
        (PER_ROW, [[4], [-5]], [[5], [-5]], [True, False]),
    ],
)
def test_out_of_range_is_nan_and_in_range_equals_onnx_runtime(
    made: onnx.ModelProto, good: Any, bad: Any, spoilt: Any
) -> None:
    policy = memojax.load(made)
    fn, params = memojax.to_jax(made)
    for answer in (
        policy.infer_arrays,
        lambda given: memojax.run(made, given),
        lambda given: jax.jit(fn)(params, given),
    ):
        np.testing.assert_array_equal(
            answer(feeds_of(made, good))["y"], onnx_runtime(made, feeds_of(made, good))
        )
        broken = np.isnan(np.asarray(answer(feeds_of(made, bad))["y"]))
        broken = broken.reshape(*np.shape(spoilt), -1)
        np.testing.assert_array_equal(broken.all(-1), spoilt)
        np.testing.assert_array_equal(broken.any(-1), spoilt)
    with pytest.raises(Exception, match="(?i)index|indices|bounds"):
        onnx_runtime(made, feeds_of(made, bad))


@pytest.mark.parametrize(("dtype", "filled"), [("int32", -(2**31)), ("int64", -(2**63)), ("uint8", 255)])
def test_whole_numbers_become_the_fill_value(dtype: str, filled: int) -> None:
    made = model(
        f"g (int64[batch,1] i) => ({dtype}[batch,1] y) {{ y = Gather (t, i) }}", t=np.arange(3, dtype=dtype)
    )
    answer = memojax.load(made).infer_arrays({"i": np.array([[2], [-3], [3]])})["y"]
    np.testing.assert_array_equal(answer, np.array([[2], [0], [filled]], dtype))


def test_an_index_computed_from_a_wrong_index_is_wrong_too() -> None:
    made = model(
        "g (int64[batch,1] i) => (float[batch,1,4] y) { j = Gather (chain, i)\n y = Gather (t, j) }",
        chain=np.arange(5)[::-1].copy(),
        t=TABLE,
    )
    answer = memojax.load(made).infer_arrays({"i": np.array([[1], [5]])})["y"]
    np.testing.assert_array_equal(answer[0, 0], TABLE[3])
    assert np.isnan(answer[1]).all()


KNOWN = {
    "argmax": "a = ArgMax <axis = 1, keepdims = 0> (x)\n y = Gather (t, a)",
    "topk": "two = Constant <value_ints = [2]> ()\n v, a = TopK (x, two)\n y = GatherElements <axis = 1> "
    "(x, a)",
    "clip": "a = Clip (i, zero, four)\n y = Gather (t, a)",
    "negative": "a = Clip (i, low, minus)\n y = Gather (t, a)",
    "min and max": "l = Min (i, four)\n a = Max (l, zero)\n y = Gather (t, a)",
    "mod": "a = Mod (i, five)\n y = Gather (t, a)",
    "boolean": "b = Cast <to = 9> (i)\n a = Cast <to = 6> (b)\n y = Gather (t, a)",
    "sum": "a = ArgMax <axis = 1> (x)\n b = Sub (a, one)\n y = Gather (t, b)",
    "where": "b = Cast <to = 9> (i)\n a = Where (b, four, zero)\n y = Gather (t, a)",
    "shape": "a = ArgMax <axis = 1> (x)\n s = Constant <value_ints = [-1, 1, 1]> ()\n r = Reshape (a, s)\n "
    "y = GatherND (t, r)",
}
UNKNOWN = {
    "input": "y = Gather (t, i)",
    "clip too far": "a = Clip (i, zero, five)\n y = Gather (t, a)",
    "half a clip": "a = Clip (i, zero)\n y = Gather (t, a)",
    "sum too far": "a = ArgMax <axis = 1> (x)\n b = Add (a, one)\n y = Gather (t, b)",
    "product": "a = Mul (i, zero)\n b = Add (a, i)\n y = Gather (t, b)",
    "of a float": "f = Cast <to = 1> (i)\n a = Cast <to = 7> (f)\n y = Gather (t, a)",
    "gathered": "a = Gather (chain, i)\n y = Gather (t, a)",
}
NUMBERS: dict[str, Any] = {"zero": 0, "one": 1, "four": 4, "five": 5, "low": -5, "minus": -1}


@pytest.mark.parametrize(
    ("nodes", "known"), [*((n, True) for n in KNOWN.values()), *((n, False) for n in UNKNOWN.values())]
)
def test_an_index_known_to_be_in_range_costs_nothing(nodes: str, known: bool) -> None:
    numbers = {
        name: np.array(value)
        for name, value in NUMBERS.items()
        if name in nodes.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    extra = {"t": TABLE} if "(t," in nodes else {}
    if "chain" in nodes:
        extra["chain"] = np.arange(5)
    made = model(f"g (float[batch,5] x, int64[batch,1] i) => (float[] y) {{ {nodes} }}", **numbers, **extra)
    function = GraphFunction(load_model(made).graph)
    inputs = {value.name: value for value in function.graph.inputs}
    feeds = {"x": np.array([[1, 5, 2, 3, 4], [5, 1, 2, 3, 4]], np.float32), "i": np.array([[1], [3]])}
    with jax.enable_x64(True):
        checks: Any = {}
        text = str(
            jax.make_jaxpr(lambda given: function(function.params, given, checks=checks))(
                {n: feeds[n] for n in inputs}
            )
        )
    last_gather = text.rsplit("mode=GatherScatterMode.", 1)[1]
    assert last_gather.startswith("CLIP" if known else "FILL_OR_DROP")
    assert bool(checks) is not known
    answer = memojax.run(made, {name: feeds[name] for name in inputs})["y"]
    np.testing.assert_array_equal(answer, onnx_runtime(made, {name: feeds[name] for name in inputs}))


def test_names_that_two_branches_share_prove_nothing() -> None:
    made = model(
        """g (bool c, int64[batch,1] i) => (float[batch,1,4] y) {
            y = If (c) <then_branch = a () => (float[batch,1,4] t1) { j = Identity (i)
 t1 = Gather (t, j) },
                        else_branch = b () => (float[batch,1,4] t2) { j = Clip (i, zero, four)
 t2 = Gather (t, j) }>
        }""",
        t=TABLE,
        zero=np.array(0),
        four=np.array(4),
    )
    fn, params = memojax.to_jax(made)
    answer = jax.jit(fn)(params, {"c": np.array(True), "i": np.array([[7]])})["y"]
    assert np.isnan(answer).all()
    answer = jax.jit(fn)(params, {"c": np.array(False), "i": np.array([[7]])})["y"]
    np.testing.assert_array_equal(answer, TABLE[[[4]]])


def test_an_index_in_a_loop_becomes_nan_too() -> None:
    made = model(
        """g (int64[1] i, float[4] x) => (float[4] y) {
            y = Loop (n, yes, x) <body = l (int64 k, bool go, float[4] old) => (bool on, float[4] new) {
                on = Identity (go)
                j = Add (i, k)
                row = Gather (t, j)
                flat = Reshape (row, four)
                new = Add (old, flat)
            }>
        }""",
        t=TABLE,
        n=np.array(20),
        yes=np.array(True),
        four=np.array([4]),
    )
    assert np.isnan(memojax.run(made, {"i": np.array([0]), "x": np.zeros(4, np.float32)})["y"]).all()
    assert np.isnan(
        memojax.run(made, {"i": np.array([0]), "x": np.zeros(4, np.float32)}, checked=True)["y"]
    ).all()


def test_checked_raises_with_node_index_and_place() -> None:
    made = model("g (int64[batch,2] i) => (float[batch,2,4] y) { [embed] y = Gather (t, i) }", t=TABLE)
    assert memojax.run(made, {"i": np.array([[0, -5]])}, checked=True)["y"].shape == (1, 2, 4)
    with pytest.raises(
        IndexRangeError, match=r"node 'embed' \(Gather\): index 5 \(at \[1, 0\] of its indices\)"
    ) as caught:
        memojax.run(made, {"i": np.array([[0, 1], [5, 9]])}, checked=True)
    assert (caught.value.index, caught.value.place, caught.value.agent) == (5, (1, 0), None)


@pytest.mark.parametrize("made", [EMBEDDING, FIXED_BATCH])
def test_checked_rows_name_the_agent(made: onnx.ModelProto) -> None:
    typed = TypedModel.from_model(made)
    assert isinstance(typed.fn, BatchedFunction)
    checks = RowChecks(typed.fn)
    checks(typed.params, [np.array([[0, 1], [4, -5]])])
    with pytest.raises(IndexRangeError, match="index -6 .* for agent 70") as caught:
        checks(typed.params, [np.array([[0, 1], [0, -6], [8, 8]])], [7, 70, 700])
    assert caught.value.agent == 70


def test_a_known_index_out_of_range_is_refused_at_once() -> None:
    for node in (
        "y = GatherElements <axis = 1> (x, at)",
        "y = GatherND <batch_dims = 1> (x, at)",
        "y = Gather <axis = 1> (x, at)",
    ):
        made = model(f"g (float[1,5] x) => (float[] y) {{ {node} }}", at=np.array([[5]]))
        with pytest.raises(LoweringError, match="index 5 is out of range for the 5 entries of axis 1"):
            memojax.run(made, {"x": np.zeros((1, 5), np.float32)})
