"""Small builders of hostile and broken files, one for each kind that once crashed, hung or used up memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL
node = helper.make_node
X = [("x", FLOAT, ["n", 4])]


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


LINEAR = [node("MatMul", ["x", "w"], ["y"])]
IF = node(
    "If",
    ["c"],
    ["y"],
    then_branch=body([node("Neg", ["x"], ["z"])], [], ["z"]),
    else_branch=body([node("Abs", ["x"], ["z"])], [], ["z"]),
)
SCAN = [("s", FLOAT, ["n", 4]), ("r", FLOAT, ["n", 4])]

KINDS: Mapping[str, Callable[[], onnx.ModelProto | bytes]] = {
    # Names
    "undefined": lambda: model([node("Add", ["x", "nowhere"], ["y"])]),
    "undefined_in_body": lambda: model(
        [
            node(
                "If",
                ["c"],
                ["y"],
                then_branch=body([node("Neg", ["?"], ["z"])], [], ["z"]),
                else_branch=body([node("Neg", ["x"], ["z"])], [], ["z"]),
            )
        ],
        c=np.array(True),
    ),
    "missing_output_of_body": lambda: model(
        [node("If", ["c"], ["y"], then_branch=body([], [], ["z"]), else_branch=body([], [], ["z"]))],
        c=np.array(True),
    ),
    "cycle": lambda: model(
        [node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["b"], ["y"])]
    ),
    "cycle_in_body": lambda: model(
        [
            node(
                "If",
                ["c"],
                ["y"],
                then_branch=body([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])], [], ["b"]),
                else_branch=body([node("Neg", ["x"], ["z"])], [], ["z"]),
            )
        ],
        c=np.array(True),
    ),
    "twice": lambda: model([node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])]),
    "own_output": lambda: model([node("Add", ["x", "y"], ["y"])]),
    "empty_output_name": lambda: model([node("Neg", ["x"], [""])], outputs=("",)),
    "no_outputs": lambda: model([node("Neg", ["x"], ["y"])], outputs=()),
    "no_inputs": lambda: model([node("Neg", ["w"], ["y"])], inputs=(), w=np.ones((2, 3), np.float32)),
    "no_inputs_no_nodes": lambda: model([], inputs=(), outputs=("w",), w=np.ones(3, np.float32)),
    "not_utf8": lambda: damaged(
        model([node("Neg", ["x"], ["hidden"]), node("Abs", ["hidden"], ["y"])]), b"hidden", b"hi\xff\xfeen"
    ),
    "operator_not_utf8": lambda: damaged(model([node("Relu", ["x"], ["y"])]), b"Relu", b"Re\xff\xfe"),
    "control_characters": lambda: model(
        [node("Neg", ["x\x1b[31m\x00\r"], ["y"])], inputs=[("x\x1b[31m\x00\r", FLOAT, ["n\x1b[2J", 4])]
    ),
    "control_characters_unknown": lambda: model(
        [node("\x1b]0;gone\x07", ["x"], ["y\u202e"], domain="\x1b[2J")], outputs=("y\u202e",)
    ),
    "long_names": lambda: model([node("Nothing" * 500, ["x"], ["y"], name="n" * 100_000)]),
    # Functions
    "function_undefined": lambda: model(
        [node("F", ["x"], ["y"], domain="f")], functions=[function("F", [node("Add", ["a", "zz"], ["b"])])]
    ),
    "function_without_output": lambda: model(
        [node("F", ["x"], ["y"], domain="f")], functions=[function("F", [node("Neg", ["a"], ["c"])])]
    ),
    "function_unordered": lambda: model(
        [node("F", ["x"], ["y"], domain="f")],
        functions=[function("F", [node("Neg", ["m"], ["b"]), node("Abs", ["a"], ["m"])])],
    ),
    "function_twice": lambda: model(
        [node("F", ["x"], ["y"], domain="f")],
        functions=[function("F", [node("Neg", ["a"], ["b"]), node("Abs", ["a"], ["b"])])],
    ),
    "function_many_inputs": lambda: model(
        [node("F", ["x", "x", "x"], ["y"], domain="f")],
        functions=[function("F", [node("Neg", ["a"], ["b"])])],
    ),
    "function_calls_itself": lambda: model(
        [node("F", ["x"], ["y"], domain="f")],
        functions=[function("F", [node("F", ["a"], ["b"], domain="f")])],
    ),
    "laughs": lambda: laughs(30),
    "laughs_some": lambda: laughs(12),
    # Attributes
    "value_int": lambda: attribute_of(
        model([node("Constant", [], ["w"], value_int=1), node("Add", ["x", "w"], ["y"])]),
        "Constant",
        value={"type": 2, "i": 3},
    ),
    "value_text": lambda: attribute_of(
        model([node("Constant", [], ["w"], value_int=1), node("Add", ["x", "w"], ["y"])]),
        "Constant",
        value={"type": 3, "s": b"no"},
    ),
    "axis_text": lambda: attribute_of(
        model([node("Softmax", ["x"], ["y"], axis=1)]), "Softmax", axis={"type": 3, "s": b"1"}
    ),
    "axis_far": lambda: model([node("Softmax", ["x"], ["y"], axis=1 << 62)]),
    "perm_wrong": lambda: model([node("Transpose", ["x"], ["y"], perm=[0, 7])]),
    "no_branches": lambda: attribute_of(model([IF], c=np.array(True)), "If"),
    "branch_int": lambda: attribute_of(
        model([IF], c=np.array(True)), "If", then_branch={"type": 2, "i": 1}, else_branch={"type": 2, "i": 1}
    ),
    "loop_without_body": lambda: model([node("Loop", ["", "", "x"], ["y"])]),
    "loop_body_too_small": lambda: model(
        [node("Loop", ["M", "", "x"], ["y"], body=body([node("Neg", ["x"], ["z"])], [], ["z"]))],
        M=np.array(3),
    ),
    "scan_body_too_small": lambda: model(
        [
            node(
                "Scan",
                ["x", "x"],
                ["y"],
                body=body([node("Neg", ["s"], ["z"])], SCAN[:1], ["z"]),
                num_scan_inputs=9,
            )
        ]
    ),
    "type_unknown": lambda: attribute_of(
        model([node("Softmax", ["x"], ["y"], axis=1)]), "Softmax", axis={"type": 0, "i": 1}
    ),
    "missing_input": lambda: model([node("MatMul", ["x", ""], ["y"])]),
    "too_many_inputs": lambda: model([node("Neg", ["x"] * 40, ["y"])]),
    "rank_70": lambda: model([node("Neg", ["x"], ["y"])], inputs=[("x", FLOAT, ["n", *[1] * 70])]),
    "huge_dimension": lambda: model([node("Neg", ["x"], ["y"])], inputs=[("x", FLOAT, ["n", 1 << 62])]),
    "opset_huge": lambda: model([node("Neg", ["x"], ["y"])], opset=(1 << 62)),
    "text_input": lambda: model(
        [node("RegexFullMatch", ["t"], ["m"], pattern="a"), node("Cast", ["m"], ["y"], to=FLOAT)],
        inputs=[("t", STRING, ["n"])],
    ),
    # Memory
    "concat_doubling": lambda: doubling(40),
    "concat_doubling_constant": lambda: doubling(30, "w", w=np.ones((1, 4), np.float32)),
    "concat_near_limit": lambda: doubling(23),
    "fill_near_limit": lambda: filled([1 << 13, 1 << 13], 1.0, node("Cos", ["c"], ["r"])),
    "fill_many": lambda: filled(
        [1 << 24],
        np.float32(1),
        *[node("Cos", [f"r{i}" if i else "c"], [f"r{i + 1}"]) for i in range(40)],
        node("Identity", ["r40"], ["r"]),
    ),
    "fill_outer_product": lambda: filled(
        [1 << 15, 1], np.float32(1), node("Transpose", ["c"], ["t"]), node("Mul", ["c", "t"], ["r"])
    ),
    "fill_product": lambda: filled([1 << 12, 1 << 12], 1, node("MatMul", ["c", "c"], ["r"])),
    "eye": lambda: filled(
        [1 << 13, 1 << 13], np.float32(1), node("EyeLike", ["c"], ["r"], dtype=TensorProto.DOUBLE)
    ),
    "range": lambda: model(
        [
            node("Range", ["a", "b", "a"], ["r"]),
            node("ReduceSum", ["r"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        a=np.float32(1),
        b=np.float32(3e8),
    ),
    "tile": lambda: filled(
        [1 << 10],
        np.float32(1),
        node("Constant", [], ["n"], value=numpy_helper.from_array(np.array([1 << 20]))),
        node("Tile", ["c", "n"], ["r"]),
    ),
    "expand": lambda: model(
        [
            node("Expand", ["x", "shape"], ["e"]),
            node("ReduceSum", ["e"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        shape=np.array([1 << 20, 1, 4]),
    ),
    "pad": lambda: model(
        [
            node("Pad", ["x", "pads"], ["p"]),
            node("ReduceMax", ["p"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        pads=np.array([0, 1 << 28, 0, 1 << 28]),
    ),
    "one_hot": lambda: model(
        [
            node("OneHot", ["i", "d", "v"], ["o"]),
            node("ReduceSum", ["o"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        i=np.zeros(64, np.int64),
        d=np.array(1 << 26),
        v=np.array([0, 1], np.float32),
    ),
    "window": lambda: model(
        [
            node("HannWindow", ["size"], ["r"]),
            node("ReduceSum", ["r"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        size=np.array(1 << 27),
    ),
    "sparse_huge": lambda: sparse([0, 1], [1 << 40]),
    "sparse_outside": lambda: sparse([0, 9], [4]),
    "sparse_negative": lambda: sparse([-1, 0], [4]),
    "sparse_uneven": lambda: sparse([0, 1, 2], [4]),
    "texts": lambda: strings(40),
    "weights_alone": lambda: weights_alone(20),
    # Time
    "endless": lambda: endless(None),
    "endless_counted": lambda: endless((1 << 63) - 1),
    "loops_in_loops": lambda: loops_in_loops(4, 1 << 12),
    "loops_written_out": lambda: loops_in_loops(7, 8),
    "branches_in_branches": lambda: nested(10),
    "regex_nested": lambda: matching("(a+)+b", "a" * 40),
    "regex_either": lambda: matching("(a|a)*b", "a" * 60),
    "regex_long": lambda: matching("a*" * 20 + "b", "a" * 60),
    "regex_broken": lambda: matching("(a", "a"),
    "regex_plain": lambda: matching("[a-z]+", "abc"),
    "chain": lambda: chain(1000),
    "chain_of_weights": lambda: chain(1500, weight=True),
    # External data
    "external_missing": lambda: with_external(location="missing.bin"),
    "external_outside": lambda: with_external(location="../outside.bin"),
    "external_absolute": lambda: with_external(location=os.path.abspath(os.sep) + "etc/hostname"),
    "external_windows": lambda: with_external(location="..\\outside.bin"),
    "external_nul": lambda: with_external(location="a\0b"),
    "external_long": lambda: with_external(location="x" * 5000),
    "external_digits": lambda: with_external(location="w.bin", offset="9" * 5000),
    "external_words": lambda: with_external(location="w.bin", offset="abc"),
    "external_negative": lambda: with_external(location="w.bin", length="-4"),
    "external_far": lambda: with_external(location="w.bin", offset=str(1 << 62)),
}
"""Name -> builder of one file."""


def write(name: str, folder: Path) -> Path:
    """The file of one kind, in `folder`."""
    made = KINDS[name]()
    path = folder / f"{name}.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path
