"""Builders of small models, whole and broken, for the tests of hostile files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL
node = helper.make_node
X = [("x", FLOAT, ["n", 4])]
LINEAR = [node("MatMul", ["x", "w"], ["y"])]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Any]] = X,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    functions: Sequence[onnx.FunctionProto] = (),
    sparse: Sequence[onnx.SparseTensorProto] = (),
    **weights: Any,
) -> onnx.ModelProto:
    """A model of these nodes, with weights by name."""
    graph = helper.make_graph(
        list(nodes),
        "hostile",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        sparse_initializer=list(sparse),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def body(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[tuple[str, int, Any]], outputs: Sequence[str]
) -> onnx.GraphProto:
    """A subgraph."""
    return helper.make_graph(
        list(nodes),
        "body",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )


def function(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str] = ("a",),
    outputs: Sequence[str] = ("b",),
) -> Any:
    """A function of the domain `f`."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, list(inputs), list(outputs), list(nodes), opsets)


def attribute_of(broken: onnx.ModelProto, kind: str, **fields: Any) -> onnx.ModelProto:
    """`broken`, with other attributes for the first node of an operator."""
    found = next(node for node in broken.graph.node if node.op_type == kind)
    del found.attribute[:]
    found.attribute.extend(onnx.AttributeProto(**{"name": key, **value}) for key, value in fields.items())
    return broken


def external(location: str, **entries: str) -> onnx.TensorProto:
    """A tensor of four floats in an external file."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return tensor


def with_external(**entries: str) -> onnx.ModelProto:
    """A model with an attribute of a Constant in an external file."""
    return model([node("Constant", [], ["w"], value=external(**entries)), node("Add", ["x", "w"], ["y"])])


def doubling(times: int, start: str = "x", **weights: Any) -> onnx.ModelProto:
    """Concats of a value with itself, many times."""
    nodes = [node("Concat", [f"d{i}" if i else start] * 2, [f"d{i + 1}"], axis=-1) for i in range(times)]
    total = node("ReduceSum", [f"d{times}"], ["s"], keepdims=0)
    return model([*nodes, total, node("Add", ["x", "s"], ["y"])], **weights)


def laughs(depth: int) -> onnx.ModelProto:
    """Functions, each of which calls the one before twice."""
    functions = [function("F0", [node("Neg", ["a"], ["b"])])]
    for i in range(1, depth):
        calls = [node(f"F{i - 1}", ["a"], ["m"], domain="f"), node(f"F{i - 1}", ["m"], ["b"], domain="f")]
        functions.append(function(f"F{i}", calls))
    return model([node(f"F{depth - 1}", ["x"], ["y"], domain="f")], functions=functions)


def endless(trips: int | None) -> onnx.ModelProto:
    """A loop that runs while its input is above -1, which is for ever for most inputs."""
    step = body(
        [
            node("Add", ["s", "one"], ["t"]),
            node("ReduceMax", ["s"], ["m"], keepdims=0),
            node("Greater", ["m", "low"], ["g"]),
        ],
        [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, ["n", 4])],
        ["g", "t"],
    )
    loop = node("Loop", ["M" if trips else "", "", "x"], ["y"], body=step)
    limit = {"M": np.array(trips)} if trips else {}
    return model([loop], one=np.float32(1), low=np.float32(-1e30), **limit)


def nested(depth: int) -> onnx.ModelProto:
    """Branches within branches."""
    inner = body([node("Neg", ["x"], ["z"])], [], ["z"])
    for i in range(depth):
        inner = body([node("If", ["c"], [f"z{i}"], then_branch=inner, else_branch=inner)], [], [f"z{i}"])
    choice = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"])]
    return model(
        [*choice, node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], zero=np.float32(0)
    )


def loops_in_loops(depth: int, trips: int) -> onnx.ModelProto:
    """Nested loops whose known numbers of trips multiply."""
    inner = [node("Add", [f"s{depth}", "one"], [f"t{depth}"]), node("Identity", ["yes"], [f"g{depth}"])]
    for i in reversed(range(1, depth + 1)):
        inputs = [(f"i{i}", INT64, []), (f"c{i}", BOOL, []), (f"s{i}", FLOAT, ["n", 4])]
        step = body(inner, inputs, [f"g{i}", f"t{i}"])
        outer = "x" if i == 1 else f"s{i - 1}"
        target = "y" if i == 1 else f"t{i - 1}"
        inner = [node("Loop", ["M", "", outer], [target], body=step)]
        if i > 1:
            inner.append(node("Identity", ["yes"], [f"g{i - 1}"]))
    return model(inner, one=np.float32(1), yes=np.array(True), M=np.array(trips))


def filled(shape: Sequence[int], value: Any, *after: onnx.NodeProto) -> onnx.ModelProto:
    """A tensor made from its shape alone, and a node on it: `c` is the tensor, `r` the result."""
    make = node("ConstantOfShape", ["shape"], ["c"], value=numpy_helper.from_array(np.array([value])))
    tail = [
        node("ReduceSum", ["r"], ["s"], keepdims=0),
        node("Cast", ["s"], ["f"], to=FLOAT),
        node("Add", ["x", "f"], ["y"]),
    ]
    return model([make, *after, *tail], shape=np.array(shape))


def sparse(indices: Any, dims: Sequence[int], values: Sequence[float] = (1.0, 2.0)) -> onnx.ModelProto:
    """A model with a sparse weight."""
    stored = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(indices)),
        list(dims),
    )
    return model([node("Add", ["x", "w"], ["y"])], sparse=[stored])


def matching(pattern: str, text: str) -> onnx.ModelProto:
    """A regular expression that matches while the model loads."""
    nodes = [
        node("RegexFullMatch", ["text"], ["m"], pattern=pattern),
        node("Cast", ["m"], ["f"], to=FLOAT),
        node("Add", ["x", "f"], ["y"]),
    ]
    made = model(nodes)
    made.graph.initializer.append(helper.make_tensor("text", STRING, [1], [text.encode()]))
    return made


def strings(times: int) -> onnx.ModelProto:
    """A text that doubles with each node."""
    nodes = [node("StringConcat", [f"t{i}"] * 2, [f"t{i + 1}"]) for i in range(times)]
    match = [node("RegexFullMatch", [f"t{times}"], ["m"], pattern="b"), node("Cast", ["m"], ["f"], to=FLOAT)]
    made = model([*nodes, *match, node("Add", ["x", "f"], ["y"])])
    made.graph.initializer.append(helper.make_tensor("t0", STRING, [1], [b"aaaaaaaa"]))
    return made


def products(count: int) -> onnx.ModelProto:
    """A chain of products with one weight."""
    nodes = [node("MatMul", [f"v{i}" if i else "x", "w"], [f"v{i + 1}"]) for i in range(count)]
    return model([*nodes, node("Identity", [f"v{count}"], ["y"])], w=np.eye(4, dtype=np.float32))


def greatest_taken_off(count: int) -> onnx.ModelProto:
    """A chain in which each value is read by the search for its maximum and by the difference to it."""
    nodes = []
    for i in range(count):
        value = f"v{i}" if i else "x"
        nodes += [
            node("ArgMax", [value], [f"i{i}"], axis=1, keepdims=1),
            node("GatherElements", [value, f"i{i}"], [f"m{i}"], axis=1),
            node("Sub", [value, f"m{i}"], [f"v{i + 1}"]),
        ]
    return model([*nodes, node("Identity", [f"v{count}"], ["y"])])


def layers(count: int) -> onnx.ModelProto:
    """A chain of products with one weight, each before a Relu."""
    nodes = []
    for i in range(count):
        nodes += [
            node("MatMul", [f"v{i}" if i else "x", "w"], [f"p{i}"]),
            node("Relu", [f"p{i}"], [f"v{i + 1}"]),
        ]
    return model([*nodes, node("Identity", [f"v{count}"], ["y"])], w=np.eye(4, dtype=np.float32))


def tree_of_targets(count: int) -> onnx.ModelProto:
    """A tree of one leaf with `count` targets."""
    tree = node(
        "TreeEnsembleRegressor",
        ["x"],
        ["r"],
        domain="ai.onnx.ml",
        n_targets=count,
        nodes_treeids=[0],
        nodes_nodeids=[0],
        nodes_featureids=[0],
        nodes_modes=["LEAF"],
        nodes_values=[0.0],
        nodes_truenodeids=[0],
        nodes_falsenodeids=[0],
        target_ids=[0],
        target_nodeids=[0],
        target_treeids=[0],
        target_weights=[1.0],
    )
    return model([tree, node("ReduceMax", ["r"], ["m"], keepdims=0), node("Add", ["x", "m"], ["y"])])


def weights_alone(count: int) -> onnx.ModelProto:
    """Many large values made of one weight."""
    nodes = [node("Cos", [f"w{i}" if i else "w"], [f"w{i + 1}"]) for i in range(count)]
    nodes += [node("MatMul", [f"h{i}" if i else "x", f"w{i + 1}"], [f"h{i + 1}"]) for i in range(count)]
    weight = np.ones((1024, 1024), np.float32)
    return model([*nodes, node("Identity", [f"h{count}"], ["y"])], [("x", FLOAT, ["n", 1024])], w=weight)


def chain(length: int, weight: bool = False) -> onnx.ModelProto:
    """A chain of nodes, on the input or on a weight."""
    kinds = ("Neg", "Abs", "Tanh")
    nodes = [node(kinds[i % 3], [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    nodes.append(node("Add", ["x", f"v{length}"], ["y"]))
    if weight:
        return model(nodes, v0=np.ones((1, 4), np.float32))
    return model([node("Identity", ["x"], ["v0"]), *nodes])


def damaged(made: onnx.ModelProto, old: bytes, new: bytes) -> bytes:
    """The bytes of a model, with `old` replaced by other bytes of the same length."""
    assert len(old) == len(new)
    raw = made.SerializeToString()
    assert old in raw
    return raw.replace(old, new)


def without(made: onnx.ModelProto, **cleared: str) -> onnx.ModelProto:
    """A model without one repeated field of its graph."""
    for field in cleared.values():
        made.graph.ClearField(field)
    return made


def reshaped(op: str, *inputs: str, opset: int = 20, **attributes: Any) -> onnx.ModelProto:
    """An operator of images over the input as images of two by two; `n` floats are `v`, four integers `s`."""
    weights = attributes.pop("weights", {})
    nodes = [
        node("Reshape", ["x", "shape"], ["im"]),
        node(op, ["im", *inputs], ["r"], **attributes),
        node("ReduceMax", ["r"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["y"]),
    ]
    return model(nodes, opset=opset, shape=np.array([-1, 1, 2, 2]), **weights)


def padded(pads: Sequence[int], mode: str) -> onnx.ModelProto:
    """Pad in any mode."""
    nodes = [node("Pad", ["x", "pads"], ["p"], mode=mode), node("ReduceMax", ["p"], ["m"], keepdims=0)]
    return model([*nodes, node("Add", ["x", "m"], ["y"])], pads=np.array(pads))


def looped(*nodes: onnx.NodeProto, trips: int, scan: Sequence[str] = (), **weights: Any) -> onnx.ModelProto:
    """A loop over `s`, which becomes `t`; its last output goes on."""
    step = body(
        [node("Identity", ["c"], ["g"]), *nodes],
        [("i", INT64, []), ("c", BOOL, []), ("s", FLOAT, None)],
        ["g", "t", *scan],
    )
    made = ["z", *(f"scan{index}" for index in range(len(scan)))]
    tail = [node("ReduceSum", [made[-1]], ["m"], keepdims=0), node("Add", ["x", "m"], ["y"])]
    return model([node("Loop", ["M", "", "x"], made, body=step), *tail], M=np.array(trips), **weights)


def wide_calls(depth: int, width: int) -> onnx.ModelProto:
    """Functions that each call the one before many times."""
    functions = [function("F0", [node("Neg", ["a"], ["b"])])]
    for level in range(1, depth):
        names = ["a", *(f"m{i}" for i in range(width - 1)), "b"]
        calls = [node(f"F{level - 1}", [names[i]], [names[i + 1]], domain="f") for i in range(width)]
        functions.append(function(f"F{level}", calls))
    return model([node(f"F{depth - 1}", ["x"], ["y"], domain="f")], functions=functions)


def many_loops(depth: int) -> onnx.ModelProto:
    """Loops in loops, of two trips each, that hand out what they scan."""
    inner, name = [node("Neg", ["x"], ["y0"])], "y0"
    for i in range(depth):
        inputs = [(f"i{i}", INT64, []), (f"c{i}", BOOL, [])]
        step = body([node("Identity", [f"c{i}"], [f"g{i}"]), *inner], inputs, [f"g{i}", name])
        inner, name = [node("Loop", ["M", ""], [f"l{i}"], body=step)], f"l{i}"
    tail = [node("ReduceSum", [name], ["m"], keepdims=0), node("Add", ["x", "m"], ["y"])]
    return model([*inner, *tail], M=np.array(2))


def filled_tensor(kind: int, dims: Sequence[int], raw: bytes, **fields: Any) -> onnx.ModelProto:
    """A model with a weight whose content may not fit what it says of itself."""
    cast = [node("Cast", ["w"], ["f"], to=FLOAT), node("ReduceMax", ["f"], ["m"], keepdims=0)]
    made = model([*cast, node("Add", ["x", "m"], ["y"])])
    made.graph.initializer.append(
        onnx.TensorProto(name="w", data_type=kind, dims=dims, raw_data=raw, **fields)
    )
    return made


def odd_attribute(op: str, inputs: Sequence[str], **fields: Any) -> onnx.ModelProto:
    """An operator whose attribute is of a kind that it does not take."""
    made = onnx.NodeProto(op_type=op, input=inputs, output=["y"])
    made.attribute.extend(onnx.AttributeProto(**{"name": key, **value}) for key, value in fields.items())
    return model([made])
