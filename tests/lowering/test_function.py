"""A graph as a pure function: static values stay exact; scopes, errors, keys, weights and structure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.errors import LoweringError, StaticInputError, UnsupportedOpError
from memojax.lowering.graph_function import GraphFunction
from memojax.model import load_model

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"the_{op_type}", **attributes)


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, Any] = {},
) -> onnx.GraphProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    infos = [[onnx.ValueInfoProto(name=name) for name in names] for names in (inputs, outputs)]
    return helper.make_graph(nodes, "body", *infos, initializers)


def function(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple],
    outputs: Sequence[str],
    weights: Mapping[str, Any] = {},
    opset: int = 17,
) -> GraphFunction:
    graph = body(nodes, [], outputs, weights)
    graph.input.extend(
        helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()
    )
    return GraphFunction(
        load_model(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        ).graph
    )


def jaxpr_of(fn: GraphFunction, **inputs: Any) -> str:
    return str(jax.make_jaxpr(lambda params, given: fn(params, given))(fn.params, inputs))


X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("x64", [False, True])
def test_shape_arithmetic_is_exact_in_64_bits(x64: bool) -> None:
    """Bounds work that no 32-bit integer can hold, even if the caller's JAX has only 32 bits."""
    top = np.iinfo(np.int64).max
    fn = function(
        [
            node("Sub", ["top", "three"], ["end"]),
            node("Slice", ["x", "one", "end", "axes"], ["rows"]),
            node("Mul", ["top", "minus"], ["bottom"]),
            node("Slice", ["rows", "minus", "bottom", "axes", "minus"], ["y"]),
            node("Div", ["end", "three"], ["third"]),
            node("Gather", ["third", "zero"], ["n"]),
        ],
        {"x": (FLOAT, [3, 4])},
        ["y", "third", "n"],
        {"top": [top], "three": [3], "one": [1], "minus": [-1], "axes": [0], "zero": 0},
    )
    with jax.enable_x64(x64):
        out = fn(fn.params, {"x": X})
    np.testing.assert_array_equal(out["y"], X[:0:-1])
    assert isinstance(out["third"], np.ndarray)
    assert out["third"].dtype == np.int64
    assert out["n"] == (top - 3) // 3


def test_shapes_of_traced_values_are_folded() -> None:
    """Shape, Gather, Concat, Reshape: only the reshape is left in the jaxpr."""
    fn = function(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "one"], ["columns"]),
            node("Concat", ["columns", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        {"x": (FLOAT, ["n", 4])},
        ["y"],
        {"one": [1], "rest": [-1]},
    )
    text = jaxpr_of(fn, x=jnp.asarray(X))
    assert "reshape" in text
    assert all(name not in text for name in ("gather", "concatenate", "slice"))
    np.testing.assert_array_equal(fn(fn.params, {"x": X})["y"], X.reshape(4, -1))


def test_an_operator_without_a_numpy_form_can_still_decide_a_shape() -> None:
    fn = function(
        [node("ReduceSumSquare", ["sides"], ["area"], axes=[0]), node("Expand", ["x", "area"], ["y"])],
        {"x": (FLOAT, [1])},
        ["y"],
        {"sides": [3, 4]},
        opset=13,
    )
    assert jax.jit(fn)(fn.params, {"x": X[0, :1]})["y"].shape == (25,)


def if_model(cond: Mapping[str, Any], weights: Mapping[str, Any]) -> GraphFunction:
    then = body([node("Mul", ["x", "scale"], ["t"])], [], ["t"])
    other = body([node("Reshape", ["x", "impossible"], ["e"])], [], ["e"], {"impossible": [7, 7]})
    return function(
        [node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": (FLOAT, [3, 4]), **cond},
        ["y"],
        weights,
    )


def test_a_static_if_takes_one_branch_and_does_not_trace_the_other() -> None:
    fn = if_model({}, {"cond": True, "scale": np.float32(2)})
    assert "cond" not in jaxpr_of(fn, x=X)
    np.testing.assert_array_equal(fn(fn.params, {"x": X})["y"], 2 * X)


def test_a_traced_if_traces_both() -> None:
    fn = if_model({"cond": (BOOL, [])}, {"scale": np.float32(2)})
    with pytest.raises(LoweringError, match="the_Reshape"):
        jax.jit(fn)(fn.params, {"x": X, "cond": np.array(True)})


def test_a_body_sees_names_around_it() -> None:
    """The body reads x and scale through two levels."""
    inner = body([node("Mul", ["x", "scale"], ["t"])], [], ["t"])
    same = body([node("Identity", ["x"], ["e"])], [], ["e"])
    outer = body(
        [node("If", ["cond"], ["u"], then_branch=inner, else_branch=same), node("Add", ["u", "x"], ["s"])],
        [],
        ["s"],
    )
    fn = function(
        [node("If", ["cond"], ["y"], then_branch=outer, else_branch=same)],
        {"x": (FLOAT, [3, 4]), "cond": (BOOL, [])},
        ["y"],
        {"scale": np.float32(2)},
    )
    for cond, expected in ((True, 3 * X), (False, X)):
        np.testing.assert_array_equal(jax.jit(fn)(fn.params, {"x": X, "cond": np.array(cond)})["y"], expected)


@pytest.mark.parametrize("static", [False, True])
def test_names_of_a_body_hide_outer_names_and_do_not_leak(static: bool) -> None:
    """The body's own `step` and `x` are not the graph's, which are unchanged after the loop."""
    loop = body(
        [node("Add", ["x", "step"], ["next"]), node("Identity", ["going"], ["still"])],
        ["i", "going", "x"],
        ["still", "next"],
        {"step": np.float32(10)},
    )
    fn = function(
        [node("Loop", ["count", "", "x"], ["end"], body=loop), node("Add", ["x", "step"], ["after"])],
        {"x": (FLOAT, [3, 4]), **({} if static else {"count": (INT64, [])})},
        ["end", "after"],
        {"step": np.float32(1), **({"count": np.int64(3)} if static else {})},
    )
    out = jax.jit(fn)(fn.params, {"x": X, **({} if static else {"count": np.int64(3)})})
    np.testing.assert_array_equal(out["end"], X + 30)
    np.testing.assert_array_equal(out["after"], X + 1)


def test_errors_name_the_node_its_operator_and_its_inputs() -> None:
    fn = function(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["n", "m"])},
        ["y"],
        {"w": np.ones((5, 2), np.float32)},
    )
    with pytest.raises(
        LoweringError,
        match=r"node 'the_MatMul' \(MatMul, opset 17; inputs x: float32\[3, 4\], w: float32\[5, 2\]\)",
    ):
        fn(fn.params, {"x": X})


def test_errors_in_bodies_name_the_innermost_node_once() -> None:
    with pytest.raises(LoweringError) as caught:
        if_fn = if_model({}, {"cond": False, "scale": np.float32(2)})
        if_fn(if_fn.params, {"x": X})
    assert "'the_Reshape' (Reshape" in str(caught.value)
    assert "the_If" not in str(caught.value)


def test_a_shape_that_depends_on_data_is_traced_back_to_its_origin() -> None:
    fn = function(
        [node("Abs", ["s"], ["size"]), node("Reshape", ["x", "size"], ["y"])],
        {"x": (FLOAT, [3, 4]), "s": (INT64, [1])},
        ["y"],
    )
    assert fn.static_inputs == ("s",)
    with pytest.raises(StaticInputError, match="'s' decides a shape"):
        jax.jit(fn)(fn.params, {"x": X, "s": np.array([12])})
    assert jax.jit(lambda x: fn(fn.params, {"x": x, "s": np.array([12])}))(X)["y"].shape == (12,)

    nodes = [
        node("RandomUniform", [], ["r"], shape=[1]),
        node("Cast", ["r"], ["k"], to=INT64),
        node("TopK", ["x", "k"], ["y", "where"]),
    ]
    fn = function(nodes, {"x": (FLOAT, [3, 4])}, ["y"])
    with pytest.raises(
        StaticInputError,
        match=r"'the_TopK'.*'K' decides a shape.*'k', computed by node 'the_Cast' \(Cast\) from 'r'",
    ):
        fn(fn.params, {"x": X}, jax.random.key(0))


def test_all_unknown_operators_are_listed_at_once() -> None:
    nodes = [node("Foo", ["x"], ["a"]), node("Bar", ["a"], ["b"]), node("Foo", ["b"], ["y"])]
    with pytest.raises(UnsupportedOpError) as caught:
        function(nodes, {"x": (FLOAT, [1])}, ["y"])
    assert {(item.op_type, len(item.nodes)) for item in caught.value.missing} == {("Foo", 2), ("Bar", 1)}


def test_initializers_are_weights_structure_or_constants() -> None:
    """Weights are floats of rank 1 and more, and large tables; other initializers are structure."""
    weights = {
        "kernel": np.ones((4, 4), np.float32),
        "half": np.ones(4, np.float16),
        "table": np.zeros(5000, np.int64),
        "scalar": np.float32(2),
        "small": np.array([0, 2]),
        "mask": np.array([True, False, True, True]),
        "scales": np.array([1.0, 2.0], np.float32),
    }
    nodes = [
        node("MatMul", ["x", "kernel"], ["a"]),
        node("Cast", ["half"], ["h"], to=FLOAT),
        node("Add", ["a", "h"], ["b"]),
        node("Mul", ["b", "scalar"], ["c"]),
        node("Where", ["mask", "c", "a"], ["d"]),
        node("Gather", ["d", "small"], ["e"], axis=1),
        node("Gather", ["table", "small"], ["t"]),
        node("Resize", ["e", "", "scales"], ["y"]),
        node("Constant", [], ["bias"], value=numpy_helper.from_array(np.ones(4, np.float32))),
        node("Add", ["a", "bias"], ["z"]),
    ]
    fn = function(nodes, {"x": (FLOAT, [3, 4])}, ["y", "t", "z"], weights)
    assert set(fn.params) == {"kernel", "half", "table", "bias"}
    assert set(fn.constants) == {"scalar", "small", "mask", "scales"}
    out = jax.jit(fn)(fn.params, {"x": X})
    assert out["y"].shape == (3, 4)
    doubled = {name: 2 * value for name, value in fn.params.items()}
    np.testing.assert_array_equal(fn(doubled, {"x": X})["z"], 2 * np.asarray(out["z"]))


def noise(**attributes: Any) -> GraphFunction:
    nodes = [node("RandomNormal", [], [name], shape=[8], **attributes) for name in ("a", "b")]
    return function([*nodes, node("Add", ["a", "x"], ["c"])], {"x": (FLOAT, [8])}, ["a", "b", "c"])


def test_keys_differ_by_node_and_repeat_by_seed() -> None:
    fn = noise()
    assert fn.random
    x = np.zeros(8, np.float32)
    one, again, other = (jax.jit(fn)(fn.params, {"x": x}, jax.random.key(seed)) for seed in (0, 0, 1))
    assert not np.array_equal(one["a"], one["b"])
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
    with pytest.raises(LoweringError, match="PRNG key"):
        fn(fn.params, {"x": x})


def test_each_step_of_a_loop_draws_anew() -> None:
    step = body(
        [node("RandomNormal", [], ["n"], shape=[4]), node("Identity", ["going"], ["still"])],
        ["i", "going"],
        ["still", "n"],
    )
    for trips in (3, 40):
        fn = function([node("Loop", ["count", ""], ["y"], body=step)], {}, ["y"], {"count": np.int64(trips)})
        rows = np.asarray(fn(fn.params, {}, jax.random.key(0))["y"])
        assert rows.shape == (trips, 4)
        assert len(np.unique(rows)) == rows.size


def test_random_operators_run_under_to_jax() -> None:
    proto = onnx.helper.make_model(
        body([node("Relu", ["x"], ["y"])], ["x"], ["y"]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    fn, params = memojax.to_jax(proto)
    assert params == {}
    np.testing.assert_array_equal(fn(params, {"x": -X})["y"], 0 * X)


def test_tracing_is_fast_and_its_cost_per_node_flat() -> None:
    """The test uses CPU time, for a busy machine; `benchmarks/tracing.py` measures up to 5,000 nodes."""

    def layers(count: int) -> GraphFunction:
        nodes = []
        for index in range(0, count, 5):
            x, a, b, s, t, y = (
                f"{name}{index + (5 if name == 'x' and part else 0)}" for part, name in enumerate("xabstx")
            )
            nodes += [
                helper.make_node("Gemm", [x, "w", "b"], [a]),
                helper.make_node("Relu", [a], [b]),
                helper.make_node("Shape", [b], [s]),
                helper.make_node("Reshape", [b, s], [t]),
                helper.make_node("Add", [t, a], [y]),
            ]
        return function(
            nodes,
            {"x0": (FLOAT, ["n", 4])},
            [f"x{count}"],
            {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)},
        )

    def calls(count: int) -> int:
        fn, found = layers(count), 0

        def count_call(frame: Any, event: str, argument: Any) -> None:
            nonlocal found
            found += event == "call"

        sys.setprofile(count_call)
        try:
            jax.make_jaxpr(lambda x: fn(fn.params, {"x0": x}))(X)
        finally:
            sys.setprofile(None)
        return found

    calls(50)
    few, many = calls(500), calls(3000)
    assert many / 3000 < 1.2 * few / 500
