"""Seconds to load and trace graphs of 50, 500 and 5,000 nodes: `python benchmarks/tracing.py`.

Each graph has layers of a small MLP with exporters' shape arithmetic (Shape, Gather, Unsqueeze, Concat,
Reshape), 10 nodes per layer. Times are CPU seconds of this process, the best of a few runs, so other load on
the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memojax.lowering.graph_function import GraphFunction
from memojax.model import load_model

SIZES = (50, 500, 5_000)
WIDTH = 16


def layered(n_nodes: int) -> onnx.ModelProto:
    """`n_nodes` / 10 layers of Gemm, Relu, scale and residual, with a reshape to a computed shape in each."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights = {
        "w": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH,
        "b": np.zeros(WIDTH, np.float32),
        "half": np.array(0.5, np.float32),
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([WIDTH]),
    }
    x = "x"

    def add(op_type: str, *inputs: str, **attributes: object) -> str:
        nodes.append(
            helper.make_node(op_type, inputs, [f"v{len(nodes)}"], name=f"node{len(nodes)}", **attributes)
        )
        return nodes[-1].output[0]

    while len(nodes) < n_nodes:
        hidden = add("Relu", add("Gemm", x, "w", "b"))
        rows = add("Gather", add("Shape", x), "zero", axis=0)
        shape = add("Concat", add("Unsqueeze", rows, "axis"), "rest", axis=0)
        x = add("Add", add("Reshape", hidden, shape), add("Mul", add("Tanh", hidden), "half"))
    graph = helper.make_graph(
        nodes,
        "layered",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def best(task: Callable[[], object], repeats: int = 3) -> float:
    """Fewest CPU seconds of `task`."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        task()
        times.append(time.process_time() - started)
    return min(times)


def measure(n_nodes: int, repeats: int = 3) -> tuple[float, float, float]:
    """Seconds to load, to prepare and to trace a graph of `n_nodes`."""
    proto = layered(n_nodes)
    raw = proto.SerializeToString()
    model = load_model(raw)
    function = GraphFunction(model.graph)
    rows = {"x": jax.ShapeDtypeStruct((8, WIDTH), np.float32)}

    def trace() -> object:
        with jax.enable_x64(True):
            return jax.make_jaxpr(lambda inputs: function(function.params, inputs))(rows)

    trace()
    return (
        best(lambda: load_model(raw), repeats),
        best(lambda: GraphFunction(model.graph), repeats),
        best(trace, repeats),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| nodes | load ms | prepare ms | trace ms | trace us per node |\n|---:|---:|---:|---:|---:|")
    totals = []
    for size in SIZES:
        load, prepare, trace = measure(size, options.repeats)
        totals.append(load + prepare + trace)
        print(
            f"| {size:,} | {load * 1e3:.1f} | {prepare * 1e3:.1f} | {trace * 1e3:.1f} | "
            f"{trace / size * 1e6:.0f} |"
        )
    slope = np.polyfit(np.log(SIZES), np.log(totals), 1)[0]
    print(f"\nTime grows as nodes^{slope:.2f} (1 is linear).")


if __name__ == "__main__":
    main()
