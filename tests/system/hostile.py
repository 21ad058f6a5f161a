"""The kinds of hostile and broken files that once crashed, hung or used up memory: a small file of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.system.odd_models import (
    BOOL,
    FLOAT,
    INT64,
    STRING,
    attribute_of,
    body,
    chain,
    damaged,
    doubling,
    endless,
    filled,
    filled_tensor,
    function,
    greatest_taken_off,
    laughs,
    layers,
    looped,
    loops_in_loops,
    many_loops,
    matching,
    model,
    nested,
    node,
    odd_attribute,
    padded,
    products,
    reshaped,
    sparse,
    strings,
    tree_of_targets,
    weights_alone,
    wide_calls,
    with_external,
)

IF = node(
    "If",
    ["c"],
    ["y"],
    then_branch=body([node("Neg", ["x"], ["z"])], [], ["z"]),
    else_branch=body([node("Abs", ["x"], ["z"])], [], ["z"]),
)
SCAN = [("s", FLOAT, ["n", 4]), ("r", FLOAT, ["n", 4])]


def _opset() -> onnx.OperatorSetIdProto:
    return helper.make_opsetid("", 20)


def _with_metadata(key: str, value: str) -> onnx.ModelProto:
    made = model([node("Neg", ["x"], ["y"])])
    made.metadata_props.add(key=key, value=value)
    return made


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
    "chain_long": lambda: chain(9000),
    "products_of_one_weight": lambda: products(2000),
    "layers_of_one_weight": lambda: layers(3000),
    "greatest_taken_off": lambda: greatest_taken_off(300),
    "greatest_taken_off_often": lambda: greatest_taken_off(1000),
    "tree_of_targets": lambda: tree_of_targets(1 << 30),
    "adds_of_all": lambda: model(
        [
            node("Identity", ["x"], ["v0"]),
            *[node("Sum", [f"v{j}" for j in range(i + 1)], [f"v{i + 1}"]) for i in range(100)],
            node("Tanh", ["v100"], ["y"]),
        ]
    ),
    "wide_calls": lambda: wide_calls(6, 40),
    "ring_of_functions": lambda: model(
        [node("F0", ["x"], ["y"], domain="f")],
        functions=[function(f"F{i}", [node(f"F{(i + 1) % 9}", ["a"], ["b"], domain="f")]) for i in range(9)],
    ),
    "function_of_an_operator": lambda: model(
        [node("Neg", ["x"], ["y"])],
        functions=[helper.make_function("", "Neg", ["a"], ["b"], [node("Abs", ["a"], ["b"])], [_opset()])],
    ),
    # Bombs of one operator
    "pad_reflect": lambda: padded([0, 1 << 21, 0, 1 << 21], "reflect"),
    "pad_wrap": lambda: padded([0, 1 << 20, 0, 1 << 20], "wrap"),
    "pad_negative": lambda: padded([0, -9, 0, -9], "constant"),
    "pad_overflow": lambda: padded([0, 1 << 62, 0, 1 << 62], "edge"),
    "resize_scale": lambda: reshaped(
        "Resize", "", "s", mode="linear", weights={"s": np.array([1, 1, 1e6, 1e6], np.float32)}
    ),
    "resize_nan": lambda: reshaped(
        "Resize", "", "s", mode="linear", weights={"s": np.array([1, 1, np.nan, np.inf], np.float32)}
    ),
    "resize_sizes": lambda: reshaped(
        "Resize", "", "", "s", weights={"s": np.array([1, 1, 1 << 20, 1 << 20])}
    ),
    "convolution_pads": lambda: reshaped(
        "Conv", "w", pads=[1 << 16] * 4, weights={"w": np.ones((1, 1, 2, 2), np.float32)}
    ),
    "convolution_strides": lambda: reshaped(
        "ConvTranspose", "w", strides=[1 << 20] * 2, weights={"w": np.ones((1, 1, 2, 2), np.float32)}
    ),
    "unpooled": lambda: reshaped("DepthToSpace", blocksize=0),
    "random_huge": lambda: model(
        [
            node("RandomNormal", [], ["r"], shape=[1 << 20, 1 << 20]),
            node("ReduceMax", ["r"], ["m"], keepdims=0),
            node("Add", ["x", "m"], ["y"]),
        ]
    ),
    "einsum_outer": lambda: model(
        [
            node("Einsum", ["w"] * 4, ["r"], equation="ab,cd,ef,gh->abcdefgh"),
            node("ReduceMax", ["r"], ["m"], keepdims=0),
            node("Add", ["x", "m"], ["y"]),
        ],
        w=np.ones((64, 64), np.float32),
    ),
    "scan_growth": lambda: looped(
        node("Expand", ["s", "big"], ["e"]),
        node("Identity", ["s"], ["t"]),
        trips=1000,
        scan=["e"],
        big=np.array([1 << 14, 1, 4]),
    ),
    "loop_growth": lambda: looped(
        node("Concat", ["s", "one"], ["t"], axis=0), trips=20_000, one=np.ones((1, 4), np.float32)
    ),
    "loops_deep": lambda: many_loops(8),
    "loop_without_output": lambda: model(
        [
            node(
                "Loop",
                ["M", ""],
                ["y"],
                body=body([node("Identity", ["c"], ["g"])], [("i", INT64, []), ("c", BOOL, [])], ["g"]),
            )
        ],
        M=np.array(3),
    ),
    # Values that no array of numbers is
    "optional_without_value": lambda: odd_attribute("Optional", [], type={"type": 3, "s": b"no"}),
    "text_output": lambda: odd_attribute("Constant", [], value_string={"type": 3, "s": b"\xff\xfe"}),
    "sparse_attribute": lambda: odd_attribute(
        "Softmax", ["x"], axis={"type": 11, "sparse_tensor": onnx.SparseTensorProto()}
    ),
    "graph_attribute": lambda: odd_attribute("Cast", ["x"], to={"type": 5, "g": onnx.GraphProto()}),
    "unseen_names": lambda: model(
        [node("Neg", ["x"], ["y\0"]), node("Abs", ["x"], ["y\u200b"])], outputs=("y\0", "y\u200b")
    ),
    "megabyte_names": lambda: model([node("N" * 3_000_000, ["x"], ["y"])]),
    "megabyte_inputs": lambda: model(
        [node("Neg", ["N" * 3_000_000], ["y"])], inputs=[("N" * 3_000_000, FLOAT, ["n", 4])]
    ),
    "megabytes_of_metadata": lambda: _with_metadata("x" * 100_000, "\x1b[31m" * 100_000),
    # Content that does not fit
    "weight_short": lambda: filled_tensor(FLOAT, [4], b"\0" * 15),
    "weight_long": lambda: filled_tensor(FLOAT, [4], b"\0" * 99),
    "weight_overflow": lambda: filled_tensor(FLOAT, [1 << 62, 4], b""),
    "weight_int4_short": lambda: filled_tensor(TensorProto.UINT4, [9], b"\0"),
    "weight_float8": lambda: filled_tensor(TensorProto.FLOAT8E4M3FN, [4], b"\xff" * 4),
    "weight_undefined": lambda: filled_tensor(TensorProto.UNDEFINED, [4], b"\0" * 16),
    "varint_without_end": lambda: b"\x3a" + b"\xff" * 1000 + b"\x01",
    "length_beyond_the_end": lambda: b"\x3a\xff\xff\xff\xff\x0f",
    "opset_999": lambda: model([node("Neg", ["x"], ["y"])], opset=999),
    "opset_negative": lambda: model([node("Neg", ["x"], ["y"])], opset=-5),
    "dimension_of_powers": lambda: model(
        [node("Neg", ["x"], ["y"])], inputs=[("x", FLOAT, ["n", "9**9**9"])]
    ),
    "dimensions_by_the_dozen": lambda: model(
        [node("Neg", ["x"], ["y"])], inputs=[("x", FLOAT, [f"s{i}" for i in range(64)])]
    ),
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
