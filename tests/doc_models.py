"""Stand-ins for the files that README and docs name: what a reader would bring, small and made here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memojax import policies

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write(folder: Path) -> None:
    """Write all of them."""
    for name in ("my_policy", "old", "new"):
        shutil.copy(policies.bundled("acrobot_ppo"), folder / f"{name}.onnx")
    (folder / "exported").mkdir()
    onnx.save(_rsl_rl(), folder / "exported" / "policy.onnx")
    onnx.save(_ml_agents(), folder / "Agent.onnx")
    onnx.save(_godot(), folder / "godot.onnx")


def _model(nodes: list, inputs: dict, outputs: dict, weights: dict, opset: int) -> onnx.ModelProto:
    def values(specs: dict) -> list:
        return [helper.make_tensor_value_info(name, *spec) for name, spec in specs.items()]

    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "policy", values(inputs), values(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _rsl_rl() -> onnx.ModelProto:
    """Isaac Lab's exporter: a batch of one, Gemm and Elu."""
    nodes = [
        helper.make_node("Gemm", ["obs", "w0"], ["h"]),
        helper.make_node("Elu", ["h"], ["e"]),
        helper.make_node("Gemm", ["e", "w1"], ["actions"]),
    ]
    weights = {"w0": _weight(48, 16), "w1": _weight(16, 12)}
    return _model(nodes, {"obs": (FLOAT, [1, 48])}, {"actions": (FLOAT, [1, 12])}, weights, 11)


def _ml_agents() -> onnx.ModelProto:
    """ML-Agents: sensors and a mask in; a constant, a drawn action and the best action out."""
    nodes = [
        helper.make_node("Gemm", ["obs_0", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        helper.make_node("Mul", ["p", "action_masks"], ["allowed"]),
        helper.make_node("ArgMax", ["allowed"], ["deterministic_discrete_actions"], axis=1),
        helper.make_node("Log", ["allowed"], ["log_p"]),
        helper.make_node("Multinomial", ["log_p"], ["discrete_actions"], dtype=INT64, sample_size=1),
        helper.make_node("Identity", ["three"], ["version_number"]),
    ]
    inputs = {"obs_0": (FLOAT, ["batch", 8]), "action_masks": (FLOAT, ["batch", 3])}
    outputs = {
        "version_number": (FLOAT, [1]),
        "discrete_actions": (INT64, ["batch", 1]),
        "deterministic_discrete_actions": (INT64, ["batch", 1]),
    }
    weights = {"w": _weight(8, 3), "b": _weight(3), "three": np.full(1, 3, np.float32)}
    return _model(nodes, inputs, outputs, weights, 9)


def _godot() -> onnx.ModelProto:
    """Godot RL Agents: a state that is handed through."""
    nodes = [
        helper.make_node("Gemm", ["obs", "w", "b"], ["h"]),
        helper.make_node("Tanh", ["h"], ["output"]),
        helper.make_node("Identity", ["state_ins"], ["state_outs"]),
    ]
    inputs = {"obs": (FLOAT, ["batch", 6]), "state_ins": (FLOAT, ["batch"])}
    outputs = {"output": (FLOAT, ["batch", 2]), "state_outs": (FLOAT, ["batch"])}
    return _model(nodes, inputs, outputs, {"w": _weight(6, 2), "b": _weight(2)}, 9)
