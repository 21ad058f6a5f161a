"""Plans with kernels give the same numbers as plans without, and name their candidate."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.kernels.direct import Direct
from memojax.kernels.program import Program
from memojax.lowering.row_probe import random_rows
from memojax.plans.candidates import DEFAULT, KERNELS
from memojax.plans.compiler import PlanCompiler
from memojax.xla.cpu_client import cpu_device

from ..helpers import mostly_slow

rng = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("with_kernels")


def weight(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def file(
    nodes: Sequence[Any], weights: dict[str, np.ndarray], inputs: dict[str, list[int]], outputs: Sequence[str]
) -> bytes:
    """An ONNX file whose inputs have a free first dimension; the outputs' shapes are left open."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    )
    return model.SerializeToString()


def agree(
    content: bytes, sizes: Sequence[int], weights: Any = "auto", expects: str | None = "kernels"
) -> None:
    """Compile each size with kernels, and compare its rows with one plan of all rows without them."""
    inferer = memojax.load(content)
    compiler = PlanCompiler(inferer.typed, cpu_device(), weights)
    draw = np.random.default_rng(0)
    rows = [random_rows(draw, max(sizes), spec) for spec in inferer.typed.api.inputs]
    expected = [np.array(value) for value in compiler.lower(max(sizes), DEFAULT).compile()(rows)]
    for size in sizes:
        plan = compiler.lower(size, KERNELS).compile()
        assert expects is None or plan.executable.candidate == expects
        for _ in range(2):
            for given, whole in zip(plan([value[:size] for value in rows]), expected, strict=True):
                np.testing.assert_allclose(given, whole[:size], rtol=1e-5, atol=2e-5)


def mlp(activation: str, **attributes: Any) -> bytes:
    weights = {"w0": weight(33, 19), "b0": weight(33), "w1": weight(5, 33), "b1": weight(5)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["g"], transB=1),
        helper.make_node(activation, ["g"], ["h"], **attributes),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["y"], transB=1),
    ]
    return file(nodes, weights, {"x": [19]}, ["y"])


@pytest.mark.parametrize(
    "activation",
    [
        "Relu",
        "Tanh",
        "Sigmoid",
        "Elu",
        "LeakyRelu",
        "Softplus",
        "Softsign",
        "HardSigmoid",
        "Selu",
        "Softmax",
        "LogSoftmax",
        "Erf",
    ],
)
def test_networks_of_dense_layers(activation: str) -> None:
    agree(mlp(activation), (1, 2, 7, 64))


@pytest.mark.parametrize("weights", ["constant", "argument"])
def test_weights_as_constants_and_as_arguments(weights: str) -> None:
    agree(mlp("Relu"), (1, 5), weights)


CONVOLUTIONS: list[tuple[list[int], list[int], dict[str, Any]]] = [
    ([3, 17, 13], [16, 3, 8, 4], {"strides": [4, 2]}),
    ([4, 9, 9], [33, 4, 3, 3], {"pads": [1, 1, 1, 1]}),
    ([4, 9, 7], [8, 4, 3, 3], {"pads": [2, 0, 1, 3], "strides": [2, 1]}),
    ([4, 12, 12], [64, 4, 3, 3], {"dilations": [2, 3]}),
    ([8, 6, 6], [32, 4, 2, 2], {"group": 2}),
    ([1, 5, 5], [5, 1, 5, 5], {}),
    ([5, 11], [17, 5, 3], {"pads": [1, 1], "strides": [2]}),
    ([5, 11], [70, 5, 1], {}),
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), CONVOLUTIONS)
def test_convolutions(shape: list[int], kernel: list[int], attributes: dict[str, Any]) -> None:
    weights = {
        "k0": weight(*kernel),
        "b0": weight(kernel[0]),
        "k1": weight(9, kernel[0], *[1 for _ in kernel[2:]]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k0", "b0"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["r"]),
        # Reads the output of the first one, which has its channels innermost.
        helper.make_node("Conv", ["r", "k1"], ["d"]),
        helper.make_node("Flatten", ["d"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": shape}, ["y", "r"]), (1, 2, 9))


def test_convolutions_with_long_sums() -> None:
    """The first convolution reads the file's images, and the second one images with channels last."""
    weights = {"k0": weight(70, 64, 3, 3), "b0": weight(70), "k1": weight(20, 70, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "k0", "b0"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "k1"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [64, 9, 9]}, ["y"]), [1, 3])


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
def test_pooling_between_a_convolution_and_a_dense_layer(kind: str) -> None:
    pooled = (
        {} if kind.startswith("Global") else {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
    )
    weights = {"k": weight(20, 3, 3, 3), "b": weight(20)}
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(kind, ["c"], ["p"], **pooled),
        helper.make_node("Tanh", ["p"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [3, 10, 8]}, ["y"]), (1, 2, 5))


def test_a_flattened_image_meets_a_dense_layer_and_a_residual_sum() -> None:
    weights = {"k": weight(8, 2, 3, 3), "s": weight(1, 8, 1, 1), "w": weight(8 * 36, 24), "b": weight(24)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["g"]),
        helper.make_node("Split", ["g"], ["y", "z"], axis=1),
    ]
    agree(file(nodes, weights, {"x": [2, 6, 6]}, ["y", "z"]), (1, 3, 16))


def test_a_large_dense_layer_behind_a_convolution() -> None:
    """One program has two sections: a few images per pass, then all rows of the large layer."""
    weights = {"k": weight(32, 3, 3, 3), "w": weight(32 * 64, 70), "b": weight(70), "v": weight(70, 9)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [3, 8, 8]}, ["y"]), (1, 2, 5, 70))


def test_biases_and_relu_behind_a_reshape() -> None:
    weights = {"k": weight(6, 4, 1, 3), "b": weight(6, 1), "squeeze": np.array([0, 6, 8]), "b2": weight(6, 8)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Reshape", ["c", "squeeze"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["r", "b2"], ["y"]),  # not one number for each column
    ]
    agree(file(nodes, weights, {"x": [4, 1, 10]}, ["y"]), (1, 2, 6))


def test_rows_of_one_number_are_one_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code over one column reads adjacent numbers, as the loops over long rows want them."""
    operands: list[Any] = []
    emit = Program.elementwise

    def noted(program: Program, rows: int, columns: int, inputs: Any, outputs: Any, code: Any) -> None:
        operands.extend((one.row_stride, one.step) for one in (*inputs, *outputs))
        emit(program, rows, columns, inputs, outputs, code)

    monkeypatch.setattr(Program, "elementwise", noted)
    weights = {"w": weight(10, 1), "b": weight(1), "scale": weight(1)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Mul", ["scale", "noise"], ["n"]),
        helper.make_node("Add", ["g", "n"], ["a"]),
        helper.make_node("Exp", ["a"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [10], "noise": [1]}, ["y"]), (1, 2, 6, 300))
    steps = [step for row, step in operands if row]
    assert steps
    assert all(steps)


def test_a_product_absorbs_the_steps_after_it() -> None:
    """A product with bias and relu is one step, in every spelling of the file."""
    for content in (mlp("Relu"), _fixed_batch()):
        inferer = memojax.load(content)
        compiler = PlanCompiler(inferer.typed, cpu_device())
        rewritten, _ = compiler._with_kernels(4, compiler.trace(4), KERNELS)
        (call,) = rewritten.steps
        assert call.params["program"][6] == 3  # the beginning of a section, two products


def _fixed_batch() -> bytes:
    """A network with its batch fixed to 1: it is vectorized, with reshapes between all steps."""
    model = onnx.ModelProto.FromString(mlp("Relu"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model.SerializeToString()


def test_two_products_in_one_sum() -> None:
    weights = {"v": weight(9, 20), "w": weight(5, 20), "b": weight(20)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["g"]),
        helper.make_node("MatMul", ["h", "w"], ["i"]),
        helper.make_node("Add", ["g", "i"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [9], "h": [5]}, ["y"]), (1, 2, 6))
    agree(file(nodes, weights, {"x": [9], "h": [5]}, ["y", "g"]), (1, 3))  # The first sum is an output, too.


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_one_step_of_a_recurrent_cell(kind: str) -> None:
    gates = 4 if kind == "LSTM" else 3
    weights = {
        "w": weight(1, gates * 9, 7),
        "r": weight(1, gates * 9, 9),
        "b": weight(1, 2 * gates * 9),
        "first": np.array([0]),
    }
    states = ["h"] + (["c"] if kind == "LSTM" else [])
    nodes = [helper.make_node("Unsqueeze", [name, "first"], [f"{name}_1"]) for name in ("x", *states)]
    cell = ["x_1", "w", "r", "b", "", *(f"{name}_1" for name in states)]
    nodes.append(helper.make_node(kind, cell, ["", *(f"{name}_2" for name in states)], hidden_size=9))
    nodes += [helper.make_node("Squeeze", [f"{name}_2", "first"], [f"{name}_out"]) for name in states]
    inputs = {"x": [7], **{name: [9] for name in states}}
    agree(file(nodes, weights, inputs, [f"{name}_out" for name in states]), (1, 2, 8))


def test_layer_normalization_and_gelu() -> None:
    weights = {
        "w": weight(20, 12),
        "s": weight(20),
        "b": weight(20),
        "half": np.float32([0.5]),
        "one": np.float32([1]),
        "root": np.float32([2**0.5]),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], transB=1),
        helper.make_node("LayerNormalization", ["g", "s", "b"], ["n"]),
        helper.make_node("Div", ["n", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["n", "a"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [12]}, ["y"]), (1, 2, 30))


def test_nan_and_infinity_arrive_as_from_xla() -> None:
    inferer = memojax.load(mlp("Relu"))
    compiler = PlanCompiler(inferer.typed, cpu_device())
    rows = rng.standard_normal((6, 19)).astype(np.float32)
    rows[1, 3], rows[2, 0], rows[4, 7] = np.nan, np.inf, -np.inf
    given, expected = (compiler.lower(6, one).compile()([rows]) for one in (KERNELS, DEFAULT))
    np.testing.assert_allclose(given[0], expected[0], rtol=1e-5, atol=1e-5)
    assert np.isnan(given[0][1]).all()
    assert np.isfinite(given[0][0]).all()


def test_a_network_without_products_stays_with_xla() -> None:
    agree(file([helper.make_node("Tanh", ["x"], ["y"])], {}, {"x": [5]}, ["y"]), (3,), expects="default")


def test_a_mistake_in_the_rewrite_leaves_the_plan_to_xla(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("mistake")

    monkeypatch.setattr("memojax.plans.compiler.rewrite", broken)
    agree(mlp("Relu"), (2,), expects="default")
    assert "mistake" in caplog.text


def test_other_weights_reach_the_kernels() -> None:
    inferer = memojax.load(mlp("Relu"))
    rows = {"x": rng.standard_normal((4, 19)).astype(np.float32)}
    inferer.infer_arrays(rows)
    inferer.update_params({"w1": np.zeros((5, 33), np.float32), "b1": np.arange(5, dtype=np.float32)})
    (given,) = inferer.infer_arrays(rows).values()
    np.testing.assert_allclose(given, np.tile(np.arange(5), (4, 1)))


def test_rows_on_the_users_own_cpu_device() -> None:
    inferer = memojax.load(mlp("Tanh"))
    rows = rng.standard_normal((4, 19)).astype(np.float32)
    (expected,) = inferer.infer_arrays({"x": rows}).values()
    (given,) = inferer.infer_arrays({"x": jax.device_put(rows, jax.devices("cpu")[0])}).values()
    np.testing.assert_allclose(np.asarray(given), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_call_fails_with_a_message() -> None:
    call = jax.ffi.ffi_call("memojax_program", jax.ShapeDtypeStruct((2,), np.float32))
    with pytest.raises(Exception, match="other kernels"):
        jax.jit(lambda x: call(x, program=np.zeros(8, np.int64)))(np.zeros(2, np.float32)).block_until_ready()


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


_STORED = """
import memojax, numpy as np
inferer = memojax.load({path!r}, cache_dir={folder!r})
(y,) = inferer.infer_arrays({{"x": np.linspace(-1, 1, 57, dtype=np.float32).reshape(3, 19)}}).values()
print(inferer.plans()[0].candidate, y.tobytes().hex())
"""


@pytest.mark.slow
def test_a_stored_plan_finds_its_weights_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(mlp("Relu"))
    code = _STORED.format(path=str(path), folder=str(tmp_path / "cache"))
    first, second = _run(code), _run(code)
    assert first == second
    assert first.startswith("kernels ")
    narrow = _run(code, MEMOJAX_KERNELS_ISA="portable")
    assert narrow.startswith("kernels ")
    assert _run(code, MEMOJAX_KERNELS="0").startswith("default ")


_FORKED = """
import os, sys, numpy as np
from memojax.kernels.library import opened
from memojax.kernels.packing import pack_matrix
from memojax.kernels.program import ABSENT, Place, Product, Program
n = 256
program = Program(n, 3)
none = ((1, 0), (1, 0), (1, 0))
places = Place(0, 0, n), Place(1), ABSENT, Place(2, 0, n)
program.product(Product(*places, 1, (1, 1), n, n, none, (n, 0, 0), (n, n, n)))
x, w, y = np.ones((n, n), np.float32), np.eye(n, dtype=np.float32), np.zeros((n, n), np.float32)
arrays = [x, pack_matrix(w, opened().panel), y]
for _ in range(5):
    opened().run(program.array(), arrays)
if os.fork() == 0:
    y[...] = 0
    for _ in range(5):
        opened().run(program.array(), arrays)
    os._exit(0 if (y == 1).all() else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
opened().run(program.array(), arrays)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.slow
def test_a_forked_child_does_not_wait_for_missing_threads() -> None:
    assert _run(_FORKED, MEMOJAX_KERNELS_THREADS="3") == "done\n"


@pytest.mark.parametrize("times", mostly_slow([3, 17], [1, 16, 70]))
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_part_of_a_program(times: int, heads: int) -> None:
    """The columns of a product fill a part of a panel of packed weights, one panel, or several."""
    width = 6 * heads
    weights: dict[str, np.ndarray] = {name: weight(8, width) for name in ("wq", "wk", "wv")}
    weights["split"] = np.array([0, times, heads, 6], np.int64)
    weights["joined"] = np.array([0, times * width], np.int64)
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [name], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=3),
        helper.make_node("MatMul", ["p", "v"], ["each"]),
        helper.make_node("Transpose", ["each"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "joined"], ["y"]),
    ]
    content = file(nodes, weights, {"x": [times, 8]}, ["y"])
    agree(content, [1, 2, 5, 33])
    compiler = PlanCompiler(memojax.load(content).typed, cpu_device())
    assert isinstance(compiler.lower(5, KERNELS).compile().executable.made.program, Direct)


def test_a_reshape_may_join_what_a_transpose_has_moved() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = {"w": weight(7, 3), "shape": np.array([0, 5, 7], np.int64)}
    agree(file(nodes, weights, {"x": [5, 7]}, ["y"]), [1, 4])


def test_a_part_without_elements_is_joined() -> None:
    weights = {"none": np.array([0]), "axis": np.array([1]), "w": weight(4, 3)}
    nodes = [
        helper.make_node("Slice", ["x", "none", "none", "axis"], ["empty"]),
        helper.make_node("Concat", ["x", "empty"], ["whole"], axis=1),
        helper.make_node("MatMul", ["whole", "w"], ["y"]),
    ]
    agree(file(nodes, weights, {"x": [4]}, ["y"]), (1, 3))


@pytest.mark.slow
def test_a_network_of_more_weights_than_a_program_takes_is_several_programs() -> None:
    layers, flag_until = 300, 240
    weights = {
        **{f"w{i}": np.eye(4, dtype=np.float32) + 0.01 * weight(4, 4) for i in range(layers)},
        **{f"b{i}": 0.01 * weight(4) for i in range(layers)},
        "zero": np.float32([0]),
    }
    # The flag has no form outside of a program, so the cut comes after its last reader.
    nodes = [helper.make_node("Greater", ["x", "zero"], ["flag"])]
    for i in range(layers):
        nodes.append(helper.make_node("Gemm", ["x" if i == 0 else f"h{i}", f"w{i}", f"b{i}"], [f"g{i}"]))
        if i in (0, flag_until):
            nodes.append(helper.make_node("Where", ["flag", f"g{i}", "x"], [f"h{i + 1}"]))
        else:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"h{i + 1}"]))
    content = file(nodes, weights, {"x": [4]}, [f"h{layers}"])
    agree(content, (1, 7))
    inferer = memojax.load(content)
    compiler = PlanCompiler(inferer.typed, cpu_device())
    text = compiler.lower(7, KERNELS).compile().executable.compiled.as_text()
    assert text.count('custom_call_target="memojax_program"') == 2
