"""Shared by the training scripts: torch module -> checked ONNX file, measured returns, JSON card."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime as ort
import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

POLICIES = Path(__file__).parents[2] / "memojax" / "policies"
EVALUATION_SEEDS = range(10_000, 10_200)
BATCHES = (1, 5, 64)
Roles = dict[str, Any]


class Normalize(nn.Module):
    """The running observation normalization of a finished training, frozen into the graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: VecNormalize) -> None:
        super().__init__()
        rms = trained.obs_rms
        assert not isinstance(rms, dict)
        self.clip = float(trained.clip_obs)
        self.register_buffer("mean", torch.tensor(rms.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(np.sqrt(rms.var + trained.epsilon), dtype=torch.float32))

    def forward(self, obs: Tensor) -> Tensor:
        return ((obs - self.mean) / self.std).clamp(-self.clip, self.clip)


def export(
    module: nn.Module, widths: Mapping[str, int], outputs: Sequence[str], *, opset: int, dynamo: bool
) -> onnx.ModelProto:
    """Export `module` with inputs [batch, width], named as its forward names them, and check it.

    Raises:
        AssertionError: onnxruntime and torch differ by more than 1e-5 at a batch of BATCHES.
    """
    module = module.eval().requires_grad_(False)
    # Not a batch of 1 or 0: the dynamo exporter would bake those in.
    args = tuple(torch.zeros(4, width) for width in widths.values())
    if dynamo:
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            input_names=list(widths),
            output_names=list(outputs),
            dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in widths},
        )
        assert program is not None
        model = program.model_proto
        _strip_paths(model)
    else:
        buffer = io.BytesIO()
        torch.onnx.export(
            module,
            args,
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=list(widths),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in (*widths, *outputs)},
        )
        model = onnx.load_from_string(buffer.getvalue())
    check(model, module, widths)
    return model


def _strip_paths(model: onnx.ModelProto) -> None:
    # The dynamo exporter stores stack traces with this machine's paths: they differ from run to run.
    for holder in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del holder.metadata_props[:]


def check(model: onnx.ModelProto, module: nn.Module, widths: Mapping[str, int]) -> None:
    """Hold `model` against onnx.checker, and its outputs against torch."""
    onnx.checker.check_model(model, full_check=True)
    session = _session(model)
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        feeds = {name: rng.normal(size=(batch, width)).astype(np.float32) for name, width in widths.items()}
        expected = module(*(torch.from_numpy(value) for value in feeds.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        got = session.run(None, feeds)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)


def _session(model: onnx.ModelProto) -> Any:  # its run() is typed as returning sparse tensors and maps too
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def evaluate(
    model: onnx.ModelProto,
    make_env: Callable[[], gym.Env],
    roles: Roles,
    *,
    seeds: Sequence[int] = EVALUATION_SEEDS,
    noise: np.random.Generator | None = None,
    forget: bool = False,
) -> np.ndarray:
    """Play one episode per seed, all in one shrinking batch, and return the returns [len(seeds)].

    Epsilon is zero unless `noise` draws it; `forget` zeroes the recurrent state before every step.
    """
    session = _session(model)
    widths = {value.name: value.shape[1] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    envs = [make_env() for _ in seeds]
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    state = {source: np.zeros((len(envs), widths[source]), np.float32) for source, _ in roles["recurrent"]}
    returns, alive = np.zeros(len(envs)), np.arange(len(envs))
    while alive.size:
        feeds = {roles["observation"]: obs.astype(np.float32)} | state
        if epsilon := roles["epsilon"]:
            shape = (alive.size, widths[epsilon])
            feeds[epsilon] = (np.zeros(shape) if noise is None else noise.normal(size=shape)).astype(
                np.float32
            )
        out = dict(zip(names, session.run(None, feeds), strict=True))
        actions = out[roles["action"]]
        if roles["action_kind"] == "argmax":
            actions = actions.argmax(axis=1)
        steps = [envs[agent].step(action) for agent, action in zip(alive, actions, strict=True)]
        returns[alive] += np.array([reward for _, reward, *_ in steps], float)
        keep = np.array([not (terminated or truncated) for *_, terminated, truncated, _ in steps])
        obs = np.stack([after for after, *_ in steps])[keep]
        state = {source: out[target][keep] * (not forget) for source, target in roles["recurrent"]}
        alive = alive[keep]
    return returns


def write(
    stem: str,
    model: onnx.ModelProto,
    returns: np.ndarray,
    *,
    env_id: str,
    algorithm: str,
    roles: Roles,
    **card: Any,
) -> None:
    """Write `memojax/policies/<stem>.onnx` and the `.json` beside it, and print the result."""
    packages = (
        "torch",
        "stable_baselines3",
        "sb3_contrib",
        "gymnasium",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "numpy",
    )
    measured = {
        "mean_return": round(float(returns.mean()), 3),
        "std_return": round(float(returns.std(ddof=1)), 3),
        "standard_error": round(float(returns.std(ddof=1) / np.sqrt(returns.size)), 3),
        "episodes": returns.size,
        "evaluation_seeds": [EVALUATION_SEEDS.start, EVALUATION_SEEDS.stop - 1],
        "evaluation": "one episode per seed, deterministic (argmax, or epsilon 0), the .onnx run by "
        "onnxruntime",
    }
    info = {"env_id": env_id, "algorithm": algorithm, **measured, "roles": roles, **card}
    info |= {
        "training_date": date.today().isoformat(),
        "versions": {name: version(name) for name in packages if name in sys.modules},
    }
    onnx.helper.set_model_props(
        model, {"env_id": env_id, "algorithm": algorithm, "mean_return": str(info["mean_return"])}
    )
    POLICIES.mkdir(parents=True, exist_ok=True)
    onnx.save(model, POLICIES / f"{stem}.onnx")
    (POLICIES / f"{stem}.json").write_text(json.dumps(info, indent=2) + "\n")
    size = (POLICIES / f"{stem}.onnx").stat().st_size
    print(f"{stem}: return {info['mean_return']} +- {info['standard_error']}, {size} bytes")
