"""The networks to time: built here with `onnx.helper`, bundled with memojax, or in ../shared/models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from onnx import TensorProto, helper, numpy_helper

import memojax

POLICIES = Path(memojax.__file__).parent / "policies"
SHARED = Path(__file__).parents[2] / "shared" / "models"
FROM_SHARED = ("mjpg_g1", "rlsar_go2w", "mlagents_walker", "mlagents_gridfoodcollector", "ten_vad")


@dataclass(frozen=True)
class Case:
    """A network to time.

    Attributes:
        name: name in tables.
        content: the ONNX file.
        written: the network written by hand, from rows in the model's order to a tuple of outputs; or None.
        largest: largest batch size to time; beyond it, a call takes too long.
    """

    name: str
    content: bytes
    written: Callable[..., Any] | None = None
    largest: int = 512


def mlp(sizes: Sequence[int], activation: str = "Relu") -> Case:
    """Gemm layers in PyTorch's export form (weights [out, in], transB=1), with activations between them."""
    rng = np.random.default_rng(0)
    weights, nodes, flow = {}, [], "x"
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = (rng.standard_normal((b, a)) / np.sqrt(a)).astype(np.float32)
        weights[f"b{i}"] = (rng.standard_normal(b) / 8).astype(np.float32)
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [flow, f"w{i}", f"b{i}"], ["y" if last else f"g{i}"], transB=1))
        flow = f"h{i}"
        if not last:
            nodes.append(helper.make_node(activation, [f"g{i}"], [flow]))
    act = {"Relu": jax.nn.relu, "Tanh": jnp.tanh}[activation]
    layers = [(weights[f"w{i}"].T.copy(), weights[f"b{i}"]) for i in range(len(sizes) - 1)]

    def written(x: Any) -> tuple[Any, ...]:
        for i, (w, b) in enumerate(layers):
            x = x @ w + b
            x = act(x) if i < len(layers) - 1 else x
        return (x,)

    name = f"MLP {'-'.join(map(str, sizes))}"
    return Case(name, _file(nodes, weights, {"x": [sizes[0]]}, {"y": [sizes[-1]]}), written)


def nature_cnn() -> Case:
    """The convolutional network of Mnih et al. (2015), 84x84x4 frames to 6 actions."""
    rng = np.random.default_rng(0)
    weights, nodes, flow = {}, [], "x"

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        return name

    convolutions = [(32, 4, 8, 4), (64, 32, 4, 2), (64, 64, 3, 1)]
    for i, (out, given, kernel, stride) in enumerate(convolutions):
        inputs = [flow, weight(f"k{i}", out, given, kernel, kernel), weight(f"c{i}", out)]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{i}"], strides=[stride, stride]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"r{i}"]))
        flow = f"r{i}"
    nodes.append(helper.make_node("Flatten", [flow], ["flat"]))
    nodes.append(
        helper.make_node("Gemm", ["flat", weight("w0", 512, 3136), weight("b0", 512)], ["g0"], transB=1)
    )
    nodes.append(helper.make_node("Relu", ["g0"], ["h0"]))
    nodes.append(helper.make_node("Gemm", ["h0", weight("w1", 6, 512), weight("b1", 6)], ["y"], transB=1))
    fully = [(weights[f"w{i}"].T.copy(), weights[f"b{i}"]) for i in range(2)]

    def written(x: Any) -> tuple[Any, ...]:
        for i, (_, _, _, stride) in enumerate(convolutions):
            x = jax.lax.conv(x, jnp.asarray(weights[f"k{i}"]), (stride, stride), "VALID")
            x = jax.nn.relu(x + weights[f"c{i}"].reshape(1, -1, 1, 1))
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ fully[0][0] + fully[0][1])
        return (x @ fully[1][0] + fully[1][1],)

    return Case(
        "Nature CNN 84x84x4", _file(nodes, weights, {"x": [4, 84, 84]}, {"y": [6]}), written, largest=128
    )


def dense_layer(width: int) -> bytes:
    """One square Gemm with bias and relu."""
    rng = np.random.default_rng(0)
    weights = {
        "w": (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32),
        "b": rng.standard_normal(width).astype(np.float32),
    }
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"]), helper.make_node("Relu", ["g"], ["y"])]
    return _file(nodes, weights, {"x": [width]}, {"y": [width]})


def conv_layer(shape: tuple[int, int, int], channels: int, window: int, stride: int) -> bytes:
    """One convolution of [channels, height, width] images without padding, with bias and relu.

    The result has its channels last, as the kernels keep what lies between layers.
    """
    rng = np.random.default_rng(0)
    depth, *sides = shape
    kernel = rng.standard_normal((channels, depth, window, window)) / np.sqrt(depth * window * window)
    weights = {"k": kernel.astype(np.float32), "b": rng.standard_normal(channels).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], strides=[stride, stride]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]),
    ]
    made = [*((side - window) // stride + 1 for side in sides), channels]
    return _file(nodes, weights, {"x": list(shape)}, {"y": made})


def lstm(hidden: int) -> Case:
    """One step of an LSTM whose state goes in and out, and a linear head."""
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(hidden)
    weights = {
        "w": (rng.standard_normal((1, 4 * hidden, hidden)) * scale).astype(np.float32),
        "r": (rng.standard_normal((1, 4 * hidden, hidden)) * scale).astype(np.float32),
        "b": (rng.standard_normal((1, 8 * hidden)) * scale).astype(np.float32),
        "wo": (rng.standard_normal((4, hidden)) * scale).astype(np.float32),
        "bo": np.zeros(4, np.float32),
        "first": np.array([0], np.int64),
    }
    nodes = [helper.make_node("Unsqueeze", [name, "first"], [f"{name}_1"]) for name in ("x", "h_in", "c_in")]
    nodes += [
        helper.make_node(
            "LSTM", ["x_1", "w", "r", "b", "", "h_in_1", "c_in_1"], ["", "h_1", "c_1"], hidden_size=hidden
        ),
        helper.make_node("Squeeze", ["h_1", "first"], ["h_out"]),
        helper.make_node("Squeeze", ["c_1", "first"], ["c_out"]),
        helper.make_node("Gemm", ["h_out", "wo", "bo"], ["y"], transB=1),
    ]
    both = np.concatenate([weights["w"][0], weights["r"][0]], 1).T.copy()
    bias = weights["b"][0, : 4 * hidden] + weights["b"][0, 4 * hidden :]

    def written(x: Any, h: Any, c: Any) -> tuple[Any, ...]:
        i, o, f, g = jnp.split(jnp.concatenate([x, h], 1) @ both + bias, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h @ weights["wo"].T + weights["bo"], h, c

    states = {name: [hidden] for name in ("x", "h_in", "c_in")}
    content = _file(nodes, weights, states, {"y": [4], "h_out": [hidden], "c_out": [hidden]})
    return Case(f"LSTM {hidden}", content, written)


def dictionary_policy() -> tuple[Case, dict[str, list[int]]]:
    """A small policy with three inputs, as for dictionaries of agents, and the shapes of these."""
    shapes = {"obs": [8], "goal": [3], "image": [4, 4]}
    rng = np.random.default_rng(0)
    weights = {
        "w0": (rng.standard_normal((27, 64)) / 5).astype(np.float32),
        "w1": (rng.standard_normal((64, 4)) / 8).astype(np.float32),
        "flat": np.array([-1, 16]),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
        helper.make_node("Concat", ["obs", "goal", "pixels"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w0"], ["g0"]),
        helper.make_node("Tanh", ["g0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["y"]),
    ]
    return Case("three inputs", _file(nodes, weights, shapes, {"y": [4]})), shapes


def built(quick: bool = False) -> list[Case]:
    """The synthetic cases of issue 4."""
    small = [mlp([8, 64, 64, 4], "Tanh"), mlp([376, 256, 256, 17])]
    return (
        small
        if quick
        else [*small, mlp([512, 1024, 1024, 1024, 64]), nature_cnn(), *map(lstm, (16, 64, 256))]
    )


def bundled() -> list[Case]:
    """The bundled policies."""
    return [Case(path.stem, path.read_bytes()) for path in sorted(POLICIES.glob("*.onnx"))]


def shared() -> list[Case]:
    """Real policies from ../shared/models; none without that folder."""
    return [
        Case(name, (SHARED / f"{name}.onnx").read_bytes())
        for name in FROM_SHARED
        if (SHARED / f"{name}.onnx").exists()
    ]


def _file(
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
) -> bytes:
    given, results = (
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in values.items()
        ]
        for values in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "benchmark", given, results, tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
