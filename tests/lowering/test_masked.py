"""Boolean indexing as exporters write it, in inferers and under `jit`, against ONNX Runtime row by row."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import memojax
from memojax.errors import LoweringError, MemojaxError
from memojax.lowering.typed_model import TypedModel

RNG = np.random.default_rng(0)


def model(graph: str, **weights: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}')
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    return made


def onnx_runtime(made: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


NUMBERS: dict[str, Any] = {
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "last": np.array([-1]),
    "row": np.array([1, -1]),
    "column": np.array([-1, 1]),
    "first": np.array(0),
}

# Each graph maps x, float[batch, 4], to y; its nodes work for one row or for many.
PICKED = "m = Greater (x, zero)\n c = NonZero (m)\n i = Transpose <perm = [1, 0]> (c)\n"
ROW_WISE = {
    "x[m] = number, by the newest exporter": """m = Greater (x, zero)
        s = Shape (x)
        e = Expand (m, s)
        c = NonZero (e)
        i = Transpose <perm = [1, 0]> (c)
        flat = Reshape (m, last)
        ints = Cast <to = 7> (flat)
        n = ReduceSum <keepdims = 1> (ints)
        rest = Slice (s, i2, i2, i0)
        shape = Concat <axis = 0> (n, rest)
        v = Expand (half, shape)
        f = Reshape (v, last)
        y = ScatterND (x, i, f)""",
    "x[m] += number": PICKED
    + """s = Shape (i)
        n = Gather (s, i0)
        v = Expand (half, n)
        y = ScatterND <reduction = "add"> (x, i, v)""",
    "x[m] = f(x[m])": PICKED
    + "g = GatherND (x, i)\n t = Tanh (g)\n h = Mul (t, half)\n y = ScatterND (x, i, h)",
    "x[m] = f(z[m])": PICKED + "z = Exp (x)\n g = GatherND (z, i)\n h = Sqrt (g)\n y = ScatterND (x, i, h)",
    "two masks that are computed alike": """m = Greater (x, zero)
        c = NonZero (m)
        i = Transpose <perm = [1, 0]> (c)
        g = GatherND (x, i)
        h = Neg (g)
        m2 = Greater (x, zero)
        c2 = NonZero (m2)
        j = Transpose <perm = [1, 0]> (c2)
        y = ScatterND (x, j, h)""",
    "one column by its places": """left = Gather <axis = 1> (x, first)
        m = Greater (left, zero)
        c = NonZero (m)
        t = Transpose <perm = [1, 0]> (c)
        k = Squeeze (t, i1)
        z = Exp (x)
        picked = Gather (z, k)
        up = Unsqueeze (k, i1)
        y = ScatterND (x, up, picked)""",
    "whole rows: x[left > 0] = number": """left = Gather <axis = 1> (x, first)
        m = Greater (left, zero)
        wide = Unsqueeze (m, last)
        s = Shape (x)
        e = Expand (wide, s)
        c = NonZero (e)
        i = Transpose <perm = [1, 0]> (c)
        flat = Reshape (m, last)
        ints = Cast <to = 7> (flat)
        n = ReduceSum <keepdims = 1> (ints)
        rest = Slice (s, i1, i2, i0)
        shape = Concat <axis = 0> (n, rest)
        v = Expand (w, shape)
        f = Reshape (v, last)
        y = ScatterND (x, i, f)""",
    "a layer over picked rows": """left = Gather <axis = 1> (x, first)
        m = Greater (left, zero)
        c = NonZero (m)
        i = Transpose <perm = [1, 0]> (c)
        g = GatherND (x, i)
        p = MatMul (g, weights)
        b = Add (p, w)
        r = Relu (b)
        q = Gemm <transB = 1, alpha = 0.5> (r, weights, w)
        y = ScatterND (x, i, q)""",
    "compress and count": """m = Greater (x, zero)
        f = Cast <to = 1> (m)
        y = Add (x, f)""",
}
SINGLE = {
    "mean of what is picked": PICKED + "g = GatherND (x, i)\n y = ReduceMean <keepdims = 0> (g)",
    "largest of what is picked": PICKED + "g = GatherND (x, i)\n y = ReduceMax <keepdims = 1> (g)",
    "root of squares": PICKED + "g = GatherND (x, i)\n h = Mul (g, half)\n y = ReduceL2 (h, i0)",
    "logarithm of exponentials": PICKED + "g = GatherND (x, i)\n y = ReduceLogSumExp (g)",
    "how many": PICKED + "s = Shape (i)\n n = Gather (s, first)\n f = Cast <to = 1> (n)\n y = Mul (f, half)",
    "how many in all": PICKED + "s = Size (i)\n y = Cast <to = 1> (s)",
    "sum of the columns that are picked": PICKED
    + "k = Gather <axis = 1> (i, i1)\n f = Cast <to = 1> (k)\n y = ReduceSum (f)",
    "compressed columns": """r = Reshape (x, last)
        m = Greater (r, zero)
        p = Compress <axis = 1> (x, m)
        y = ReduceSum (p, i1)""",
    "compressed to a list": """r = Reshape (x, last)
        m = Greater (r, zero)
        p = Compress (x, m)
        y = ReduceMin (p)""",
    "masked scatter": """m = Greater (x, zero)
        c = NonZero (m)
        i = Transpose <perm = [1, 0]> (c)
        z = Exp (x)
        list = Reshape (z, last)
        s = Shape (i)
        n = Gather (s, i0)
        cut = Slice (list, i0, n, i0)
        y = ScatterND (x, i, cut)""",
    "products over the other axis": """left = Reshape (x, column)
        m2 = Greater (left, zero)
        m = Squeeze (m2, i1)
        c = NonZero (m)
        k = Squeeze (c, i0)
        table = Transpose (weights)
        g = Gather (table, k)
        q = ReduceProd <keepdims = 0> (g, i1)
        y = ReduceSum (q)""",
}
WEIGHTS = {
    "w": np.array([0.5, -1, 2, 3], np.float32),
    "weights": RNG.standard_normal((4, 4)).astype(np.float32),
}


def made_of(nodes: str, batch: Any) -> onnx.ModelProto:
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in {**NUMBERS, **WEIGHTS}.items() if name in words}
    return model(
        f"g (float[{batch},4] x) => (float[] y) {{ {nodes} }}", **{k: np.asarray(v) for k, v in used.items()}
    )


X = RNG.standard_normal((6, 4)).astype(np.float32)
X[3] = [-1, -2, -3, -4]
X[4] = [1, 2, 3, 4]
X[:, 0] = np.abs(X[:, 0]) * [1, -1, 1, -1, 1, -1]
SOME = [0, 1, 2, 4, 5]
"""Rows of which the mask picks entries: some reductions of no entries have no value."""


@pytest.mark.parametrize("nodes", ROW_WISE.values(), ids=ROW_WISE)
def test_rows_of_any_number(nodes: str) -> None:
    made = made_of(nodes, "batch")
    session = onnx_runtime(made)
    policy = memojax.load(made)
    assert policy.typed.rule.startswith("axis")
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in X])
    for n in (1, 2, 6):
        np.testing.assert_allclose(policy.infer_arrays({"x": X[:n]})["y"], alone[:n], rtol=1e-5)
    assert policy.mixing_outputs == ()
    fn, params = memojax.to_jax(made)
    np.testing.assert_allclose(jax.jit(fn)(params, {"x": X})["y"], session.run(None, {"x": X})[0], rtol=1e-5)


@pytest.mark.parametrize("nodes", [*SINGLE.values(), *ROW_WISE.values()], ids=[*SINGLE, *ROW_WISE])
def test_one_row_a_run(nodes: str) -> None:
    made = made_of(nodes, 1)
    session = onnx_runtime(made)
    rows = X[SOME]
    alone = np.stack([session.run(None, {"x": row[None]})[0] for row in rows])
    answer = memojax.load(made).infer_arrays({"x": rows})["y"]
    np.testing.assert_allclose(answer.reshape(len(rows), -1), alone.reshape(len(rows), -1), rtol=1e-5)
    fn, params = memojax.to_jax(made)
    one = jax.jit(fn)(params, {"x": rows[:1]})["y"]
    assert one.shape == alone[0].shape
    np.testing.assert_allclose(one, alone[0], rtol=1e-5)
    np.testing.assert_allclose(memojax.run(made, {"x": rows[:1]})["y"], alone[0], rtol=1e-5)


def test_boolean_assignment_is_a_where() -> None:
    made = made_of(ROW_WISE["x[m] = number, by the newest exporter"], "batch")
    fn, params = memojax.to_jax(made)
    program = str(jax.make_jaxpr(fn)(params, {"x": X}))
    assert "select_n" in program
    assert "scatter" not in program
    assert "gather" not in program


def test_a_mask_that_picks_no_entry() -> None:
    x = np.array([[-1, -2, -3, -4]], np.float32)
    for name, expected in (("how many", 0.0), ("root of squares", 0.0)):
        answer = memojax.load(made_of(SINGLE[name], 1)).infer_arrays({"x": x})["y"]
        np.testing.assert_array_equal(answer.ravel(), [expected])
    answer = memojax.load(made_of(SINGLE["mean of what is picked"], 1)).infer_arrays({"x": x})["y"]
    assert np.isnan(answer).all()


LISTED = (
    PICKED
    + """s = Shape (i)
    n = Gather (s, i0)
    v = Expand (w, n)
    y = ScatterND (x, i, v)"""
)


def test_a_list_of_another_length_is_nan() -> None:
    policy = memojax.load(made_of(LISTED, 1))
    four = np.array([[1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(policy.infer_arrays({"x": four})["y"], [WEIGHTS["w"]])
    three = np.array([[1, -2, 3, 4]], np.float32)
    np.testing.assert_array_equal(
        np.isnan(policy.infer_arrays({"x": three})["y"]), [[True, False, True, True]]
    )


REFUSED = {
    "the entries themselves": (PICKED + "y = GatherND (x, i)", "output 'y' has as many entries as a mask"),
    "sorted": (PICKED + "g = GatherND (x, i)\n v, y = TopK (g, i1)", "TopK cannot take entries"),
    "the first entry": (
        PICKED + "g = GatherND (x, i)\n y = Gather (g, first)",
        "its index picks entries of a mask",
    ),
    "two masks": (
        PICKED
        + "n2 = Neg (x)\n m2 = Greater (n2, zero)\n c2 = NonZero (m2)\n j = Transpose <perm = [1, 0]> (c2)\n"
        "g = GatherND (x, i)\n y = ScatterND (x, j, g)",
        "entries of different masks",
    ),
    "a matrix of itself": (
        PICKED + "f = Cast <to = 1> (i)\n t = Transpose (f)\n y = MatMul (t, f)",
        "it sums over entries that a mask picks",
    ),
}


@pytest.mark.parametrize(("nodes", "message"), REFUSED.values(), ids=REFUSED)
def test_an_operator_that_needs_the_number_of_entries_is_refused(nodes: str, message: str) -> None:
    made = made_of(nodes, 1)
    fn, params = memojax.to_jax(made)
    with pytest.raises(LoweringError, match=message):
        jax.jit(fn)(params, {"x": X[:1]})
    with pytest.raises(MemojaxError):
        TypedModel.from_model(made, strict=True)
    if "different" not in message:
        assert memojax.run(made, {"x": X[:1]})["y"].dtype in (np.float32, np.int64)


def test_a_mask_known_while_tracing_picks_at_once() -> None:
    made = made_of(
        "m = Greater (w, zero)\n c = NonZero (m)\n k = Squeeze (c, i0)\n y = Gather <axis = 1> (x, k)",
        "batch",
    )
    answer = memojax.load(made).infer_arrays({"x": X})["y"]
    np.testing.assert_array_equal(answer, X[:, [0, 2, 3]])
