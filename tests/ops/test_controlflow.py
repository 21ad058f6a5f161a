"""If, Loop, Scan and SequenceMap at every opset, against onnxruntime, with x64 and without."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from memojax.errors import LoweringError, StaticInputError
from memojax.lowering import oneshot
from memojax.lowering.graph_function import GraphFunction
from memojax.model import load_model
from tests.ops.version_cases import OPSET_IR

F32 = np.float32


def model(text: str, opset: int) -> onnx.ModelProto:
    """A model in ONNX's text format, in which `_` is an absent input."""
    made = parser.parse_model(
        f'<ir_version: {max(4, OPSET_IR.get(opset, 12))}, opset_import: ["": {opset}]>\n{text}'
    )
    for node in made.graph.node:
        for index, name in enumerate(node.input):
            if name == "_":
                node.input[index] = ""
    return made


def expected(made: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, feeds)


def check(made: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    """Compare with onnxruntime under x64; without x64, compare values under jit, without a warning."""
    want = expected(made, feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = list(oneshot.run(made, feeds).values())
        narrow = narrow_run(made, feeds)
    for one, other, small in zip(got, want, narrow, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert small.shape == other.shape
        np.testing.assert_allclose(small, other, rtol=1e-4, atol=1e-5)


def narrow_run(
    made: onnx.ModelProto, feeds: dict[str, Any], key: jax.Array | None = None
) -> list[np.ndarray]:
    function = GraphFunction(load_model(made).graph)
    static = {name: np.asarray(feeds[name]) for name in function.static_inputs}
    moving = {name: value for name, value in feeds.items() if name not in static}
    outputs: list[Any] = []

    def run(params: Any, inputs: Any) -> list[Any]:
        results = function(params, {**static, **inputs}, key)
        outputs[:] = results.values()
        return [value for value in results.values() if isinstance(value, jax.Array)]

    computed = iter(jax.jit(run)(function.params, moving))
    return [np.asarray(next(computed) if isinstance(value, jax.Array) else value) for value in outputs]


IF = """agraph (bool cond, float[2,3] x) => (float[2,3] y) {
  y = If (cond) <then_branch = t () => (float[2,3] a) { a = Neg(x) },
                 else_branch = e () => (float[2,3] b) { b = Mul(x, x) }>
}"""


@pytest.mark.parametrize("opset", range(7, 25))
@pytest.mark.parametrize("cond", [True, False])
def test_if(opset: int, cond: bool) -> None:
    check(model(IF, opset), {"cond": np.array(cond), "x": np.arange(6, dtype=F32).reshape(2, 3)})


def test_if_with_branches_of_different_shapes_makes_its_condition_static() -> None:
    made = model(
        IF.replace("float[2,3] b) { b = Mul(x, x) }", "float[6] b) { b = Flatten<axis = 0>(x) }").replace(
            "=> (float[2,3] y)", "=> (float y)"
        ),
        13,
    )
    assert load_and_static(made) == ("cond",)


def test_if_whose_shape_depends_on_data_is_refused() -> None:
    text = IF.replace("Mul(x, x)", "Transpose(x)").replace("=> (float[2,3]", "=> (float[N,M]")
    x = np.arange(6, dtype=F32).reshape(2, 3)
    np.testing.assert_array_equal(oneshot.run(model(text, 13), {"cond": np.array(False), "x": x})["y"], x.T)
    by_data = model(
        text.replace("bool cond", "float switch").replace("{\n", "{\n  cond = Cast<to = 9>(switch)\n", 1), 13
    )
    with pytest.raises(LoweringError, match="depends on data"):
        oneshot.run(by_data, {"switch": np.array(1, F32), "x": x})


def load_and_static(made: onnx.ModelProto) -> tuple[str, ...]:
    return GraphFunction(load_model(made).graph).static_inputs


COUNTED = """agraph (float[2] x, float[2] w) => (float[2] y, float[k,2] ys)
<int64 m = {TRIPS}, bool go = {1}> {
  y, ys = Loop (m, go, x) <body = b (int64 i, bool c, float[2] s)
    => (bool c_out, float[2] s_out, float[2] row) {
    f = Cast<to = 1>(i)
    sw = Mul(s, w)
    s_out = Add(sw, f)
    row = Sub(s_out, x)
    c_out = Identity(c)
  }>
}"""


@pytest.mark.parametrize("opset", range(7, 25))
@pytest.mark.parametrize("trips", [0, 1, 3, 20])
def test_counted_loop(opset: int, trips: int) -> None:
    feeds = {"x": np.array([1, -2], F32), "w": np.array([0.5, 0.9], F32)}
    check(model(COUNTED.replace("TRIPS", str(trips)), opset), feeds)


def test_long_counted_loop_is_one_scan() -> None:
    function = GraphFunction(load_model(model(COUNTED.replace("TRIPS", "20"), 17)).graph)
    x = np.ones(2, F32)
    jaxpr = str(jax.make_jaxpr(lambda inputs: function({}, inputs))({"x": x, "w": x}))
    assert (jaxpr.count("scan["), jaxpr.count("mul")) == (1, 1)


def test_counted_loop_whose_trip_count_is_an_input() -> None:
    text = COUNTED.replace("float[2] w)", "float[2] w, int64 m)").replace("int64 m = {TRIPS}, ", "")
    made = model(text, 17)
    assert load_and_static(made) == ("m",)
    check(made, {"x": np.ones(2, F32), "w": np.array([0.5, 0.9], F32), "m": np.array(12)})


WHILE = """agraph (float[2] x) => (float[2] y, int64 n)
<int64 m = {TRIPS}, int64 zero = {0}, float limit = {100.0}, int64 one = {1}, float[2] two = {2.0, 2.0}> {
  total0 = ReduceSum<keepdims = 0>(x)
  go = Less(total0, limit)
  y, n = Loop (M, GO, x, zero) <body = b (int64 i, bool c, float[2] s, int64 count)
    => (bool c_out, float[2] s_out, int64 next) {
    s_out = Mul(s, two)
    total = ReduceSum<keepdims = 0>(s_out)
    c_out = Less(total, limit)
    next = Add(count, one)
  }>
}"""


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize(
    ("trips", "m", "go"),
    [(4, "m", "go"), (50, "m", "go"), (2**63 - 1, "m", "go"), (1, "_", "go"), (50, "m", "_"), (1, "_", "_")],
)
@pytest.mark.parametrize("start", [1.0, 30.0, 80.0])
def test_loop_whose_condition_depends_on_data(opset: int, trips: int, m: str, go: str, start: float) -> None:
    text = WHILE.replace("TRIPS", str(trips)).replace("(M, GO,", f"({m}, {go},")
    check(model(text, opset), {"x": np.array([start, start], F32)})


def test_loop_whose_trip_count_depends_on_data() -> None:
    text = """agraph (int64[n] v, float[2] x) => (float[2] y) <float[2] two = {2.0, 2.0}> {
      m = ReduceSum<keepdims = 0>(v)
      y = Loop (m, _, x) <body = b (int64 i, bool c, float[2] s) => (bool c_out, float[2] s_out) {
        c_out = Identity(c)
        s_out = Mul(s, two)
      }>
    }"""
    check(model(text, 17), {"v": np.array([1, 2, 4]), "x": np.array([1, 3], F32)})


def test_scan_outputs_make_the_trip_count_static() -> None:
    text = """agraph (int64[n] v, float[2] x) => (float[k,2] y) {
      m = ReduceSum<keepdims = 0>(v)
      big = Less(m, m)
      y = Loop (_, big) <body = b (int64 i, bool c) => (bool c_out, float[2] row) {
        c_out = Identity(c)
        row = Neg(x)
      }>
    }"""
    function = GraphFunction(load_model(model(text, 17)).graph)
    assert function.static_inputs == ("v",)
    with pytest.raises(StaticInputError, match="'v' decides a shape"):
        jax.jit(lambda v: function({}, {"v": v, "x": np.zeros(2, F32)}))(np.array([1]))


@pytest.mark.parametrize("trips", [3, 12])
def test_loop_that_grows_its_state(trips: int) -> None:
    text = """agraph (float[1] x) => (float[k] y) <int64 m = {TRIPS}> {
      y = Loop (m, _, x) <body = b (int64 i, bool c, float[a] s) => (bool c_out, float[d] s_out) {
        c_out = Identity(c)
        f = Cast<to = 1>(i)
        g = Add(f, x)
        s_out = Concat<axis = 0>(s, g)
      }>
    }"""
    check(model(text.replace("TRIPS", str(trips)), 13), {"x": np.array([0.5], F32)})


@pytest.mark.parametrize("trips", [3, 12])
def test_loop_that_slices_by_its_step_number(trips: int) -> None:
    text = """agraph (float[30] x) => (float[k,2] y)
    <int64 m = {TRIPS}, int64[1] two = {2}, int64[1] one = {1}> {
      y = Loop (m, _) <body = b (int64 i, bool c) => (bool c_out, float[2] row) {
        c_out = Identity(c)
        begin = Reshape(i, one)
        end = Add(begin, two)
        row = Slice(x, begin, end)
      }>
    }"""
    check(model(text.replace("TRIPS", str(trips)), 13), {"x": np.arange(30, dtype=F32)})


def test_loop_whose_static_condition_ends_it() -> None:
    text = """agraph (float[2] x) => (float[2] y, float[k,2] ys) <int64 m = {100}, int64 last = {10}> {
      y, ys = Loop (m, _, x) <body = b (int64 i, bool c, float[2] s)
        => (bool c_out, float[2] s_out, float[2] row) {
        c_out = Less(i, last)
        s_out = Add(s, x)
        row = Identity(s_out)
      }>
    }"""
    check(model(text, 17), {"x": np.ones(2, F32)})


def test_loop_over_static_values_stays_static() -> None:
    text = """agraph (float[12] x) => (float[a,b] y)
    <int64 m = {20}, int64 zero = {0}, int64 four = {4}, int64[1] one = {1}, int64[1] rest = {-1}> {
      rows = Loop (m, _, zero) <body = b (int64 i, bool c, int64 s) => (bool c_out, int64 s_out) {
        s_out = Min(i, four)
        c_out = Identity(c)
      }>
      first = Reshape(rows, one)
      shape = Concat<axis = 0>(first, rest)
      y = Reshape(x, shape)
    }"""
    check(model(text, 13), {"x": np.arange(12, dtype=F32)})


def test_nested_loops() -> None:
    text = """agraph (float[2] x) => (float[2] y)
    <int64 m = {10}, int64 n = {9}, float[2] half = {0.5, 0.25}> {
      y = Loop (m, _, x) <body = outer (int64 i, bool c, float[2] s) => (bool c_out, float[2] s_out) {
        c_out = Identity(c)
        f = Cast<to = 1>(i)
        s_out = Loop (n, c, s) <body = inner (int64 j, bool d, float[2] t) => (bool d_out, float[2] t_out) {
          d_out = Identity(d)
          g = Cast<to = 1>(j)
          h = Add(f, g)
          u = Mul(t, half)
          t_out = Add(u, h)
        }>
      }>
    }"""
    check(model(text, 17), {"x": np.ones(2, F32)})


@pytest.mark.parametrize("trips", [4, 20])
def test_each_step_draws_its_own_random_numbers(trips: int) -> None:
    text = """agraph (float[2] x) => (float[k,2] y) <int64 m = {TRIPS}> {
      y = Loop (m, _) <body = b (int64 i, bool c) => (bool c_out, float[2] row) {
        c_out = Identity(c)
        row = RandomUniformLike(x)
      }>
    }"""
    made = model(text.replace("TRIPS", str(trips)), 17)
    (rows,) = oneshot.run(made, {"x": np.zeros(2, F32)}, seed=3).values()
    assert rows.shape == (trips, 2)
    assert len(np.unique(rows)) == 2 * trips


def test_loops_can_be_batched_and_differentiated() -> None:
    function = GraphFunction(load_model(model(COUNTED.replace("TRIPS", "20"), 17)).graph)
    xs = np.linspace(-1, 1, 8, dtype=F32).reshape(4, 2)

    def last(x: Any) -> Any:
        return function({}, {"x": x, "w": np.array([0.5, 0.9], F32)})["y"].sum()

    np.testing.assert_allclose(jax.vmap(last)(xs), [last(x) for x in xs], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(last)(xs[0]), np.array([0.5, 0.9]) ** 20, rtol=1e-4)


SCAN = """agraph (float[3] s0, float[SHAPE] x, float[4,LENGTH] z)
  => (float[3] s, float[a,b] p, float[c,d] q) {
  s, p, q = Scan <num_scan_inputs = 2, ATTRIBUTES
      body = b (float[3] s_in, float[3] xi, float[4] zi) => (float[3] s_out, float[3] pi, float[4] qi) {
    t = Mul(s_in, xi)
    s_out = Tanh(t)
    pi = Sub(s_out, xi)
    qi = Neg(zi)
  }> (s0, x, z)
}"""


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 16, 19, 21, 23, 24])
@pytest.mark.parametrize("length", [1, 5, 20])
@pytest.mark.parametrize(
    "back",
    ["", "scan_input_directions = [0, 1], scan_output_directions = [1, 0], scan_output_axes = [1, 0],"],
)
def test_scan(opset: int, length: int, back: str) -> None:
    axes = "[0, -1]" if opset >= 11 else "[0, 1]"
    text = (
        SCAN.replace("SHAPE", f"{length},3")
        .replace("LENGTH", str(length))
        .replace("ATTRIBUTES", f"scan_input_axes = {axes}, {back}")
    )
    rng = np.random.default_rng(0)
    check(
        model(text, opset),
        {"s0": rng.random(3, F32), "x": rng.random((length, 3), F32), "z": rng.random((4, length), F32)},
    )


@pytest.mark.parametrize("lengths", [None, [5, 2, 1]])
@pytest.mark.parametrize("directions", ["", "directions = [0, 1],"])
def test_scan_8(lengths: list[int] | None, directions: str) -> None:
    text = """agraph (LENS float[3,2] s0, float[3,5,2] x, float[3,5,2] z) => (float[3,2] s, float[3,5,2] p) {
      s, p = Scan <num_scan_inputs = 2, DIRECTIONS
          body = b (float[2] s_in, float[2] xi, float[2] zi) => (float[2] s_out, float[2] pi) {
        t = Mul(s_in, xi)
        s_out = Sub(t, zi)
        pi = Neg(s_out)
      }> (FIRST, s0, x, z)
    }"""
    text = (
        text.replace("LENS", "int64[3] lens," if lengths else "")
        .replace("FIRST", "lens" if lengths else "_")
        .replace("DIRECTIONS", directions)
    )
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "s0": rng.random((3, 2), F32),
        "x": rng.random((3, 5, 2), F32),
        "z": rng.random((3, 5, 2), F32),
    }
    if lengths:
        feeds["lens"] = np.array(lengths)
    check(model(text, 8), feeds)


@pytest.mark.parametrize("opset", [17, 21])
def test_sequence_map(opset: int) -> None:
    text = """agraph (float[6] x, float[1] w) => (float[a] y) {
      s = SplitToSequence<axis = 0>(x)
      t = SequenceMap (s, s, w) <body = b (float[1] p, float[1] q, float[1] r) => (float[1] o) {
        pq = Mul(p, q)
        o = Add(pq, r)
      }>
      y = ConcatFromSequence<axis = 0>(t)
    }"""
    check(model(text, opset), {"x": np.arange(6, dtype=F32), "w": np.array([0.5], F32)})
