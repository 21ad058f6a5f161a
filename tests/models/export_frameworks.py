"""Export tiny policies the way each framework's users do, with onnxruntime's answers beside them.

`python tests/models/export_frameworks.py torch|sklearn|keras|jax` writes `<stem>.onnx` (under 40 KB) and
`<stem>.npz` here, keys `b1/in/<input>` and `b1/out/<index>/<output>`, the same for b5. Each takes seconds.
Weights are random from a fixed seed, except sklearn's, which are fitted. The frameworks do not share an
environment:

- torch, sklearn:
  `pip install torch==2.13.0 stable-baselines3 onnx onnxscript onnxruntime skl2onnx scikit-learn`
- keras: `pip install tf2onnx tensorflow-cpu onnxruntime`
- jax: `pip install jax2onnx flax onnxruntime`
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

HERE = Path(__file__).parent
BATCHES = (1, 5)
LIMIT = 40_000  # bytes; these are committed
OBS, ACTIONS, HIDDEN, STEPS = 8, 4, 16, 6


def save(stem: str, model: onnx.ModelProto) -> None:
    """Write the model, and inputs with onnxruntime's outputs at each batch size."""
    for holder in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del holder.metadata_props[:]  # stack traces with this machine's paths
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert len(data) < LIMIT, f"{stem}: {len(data)} bytes"
    session: Any = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    record: dict[str, Any] = {}
    for batch in BATCHES:
        feeds = {
            value.name: rng.normal(size=(batch, *value.shape[1:])).astype(np.float32)
            for value in session.get_inputs()
        }
        record |= {f"b{batch}/in/{name}": value for name, value in feeds.items()}
        names = [value.name for value in session.get_outputs()]
        for index, (name, value) in enumerate(zip(names, session.run(None, feeds), strict=True)):
            record[f"b{batch}/out/{index}/{name}"] = value
    (HERE / f"{stem}.onnx").write_bytes(data)
    np.savez_compressed(HERE / f"{stem}.npz", **record)
    opsets = ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import)
    ops = sorted({node.op_type for node in model.graph.node})
    producer = f"{model.producer_name} {model.producer_version}".strip()
    print(f"{stem} | {producer} | {opsets} | {len(data)} bytes | {' '.join(ops)}")


def export_torch() -> None:
    """SB3 policies: PPO by the candidate of SB3's docs, SAC's actor with its noise as an input and drawn
    inside."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import PPO, SAC
    from torch import Tensor, nn

    class Spaces(gym.Env):
        """An environment that is only its spaces: SB3 wants one to build a policy."""

        def __init__(self, action_space: gym.Space) -> None:
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
            self.action_space = action_space

    class OnnxablePolicy(nn.Module):
        """https://stable-baselines3.readthedocs.io/en/v2.9.0/guide/export.html"""

        def __init__(self, policy: Any, outputs: int) -> None:
            super().__init__()
            self.policy = policy
            self.outputs = outputs

        def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
            return self.policy(observation, deterministic=True)[: self.outputs]

    class SacActor(nn.Module):
        """Without an epsilon input, draws its own noise and also returns the mean action."""

        def __init__(self, actor: Any) -> None:
            super().__init__()
            self.actor = actor

        def forward(self, obs: Tensor, epsilon: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
            mean, log_std, _ = self.actor.get_action_dist_params(obs)
            if epsilon is not None:
                return torch.tanh(mean + log_std.exp() * epsilon)
            return torch.tanh(mean + log_std.exp() * torch.randn_like(mean)), torch.tanh(mean)

    def randomize(module: nn.Module) -> nn.Module:
        # SB3 starts with zero biases and a nearly flat action head: too easy to get right by accident.
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.data.normal_(0.0, 0.4, generator=generator)
        return module.eval().requires_grad_(False)

    def legacy(stem: str, module: nn.Module, inputs: dict[str, int], outputs: list[str], opset: int) -> None:
        buffer = io.BytesIO()
        torch.onnx.export(
            module,
            tuple(torch.zeros(2, width) for width in inputs.values()),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        )
        save(stem, onnx.load_from_string(buffer.getvalue()))

    torch.set_num_threads(1)
    arch = {"policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]}, "device": "cpu"}
    outputs = ["actions", "values", "log_prob"]
    policy = PPO("MlpPolicy", Spaces(gym.spaces.Discrete(ACTIONS)), **arch).policy
    discrete = randomize(OnnxablePolicy(policy, len(outputs)))
    # log_prob gathers along an axis, which opset 9 cannot say: the export runs at batch 1 only.
    legacy("sb3_ppo_opset9", OnnxablePolicy(policy, 2), {"observation": OBS}, outputs[:2], 9)
    for opset in (11, 17):
        legacy(f"sb3_ppo_opset{opset}", discrete, {"observation": OBS}, outputs, opset)
    # Checking a distribution's arguments branches on data, which torch.export refuses.
    torch.distributions.Distribution.set_default_validate_args(False)
    program = torch.onnx.export(
        discrete,
        (torch.zeros(2, OBS),),
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        input_names=["observation"],
        output_names=outputs,
        dynamic_shapes={"observation": {0: torch.export.Dim("batch")}},
    )
    assert program is not None
    save("sb3_ppo_dynamo_opset18", program.model_proto)

    box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    actor = randomize(SacActor(SAC("MlpPolicy", Spaces(box), buffer_size=1, **arch).actor))
    legacy("sb3_sac_epsilon", actor, {"obs": OBS, "epsilon": 2}, ["action"], 17)
    legacy("sb3_sac_sampling", actor, {"obs": OBS}, ["action", "deterministic_action"], 17)


def export_sklearn() -> None:
    """A logistic policy, a two-layer network and a tree ensemble, fitted to one made-up rule."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    obs = rng.normal(size=(500, OBS)).astype(np.float32)
    actions = (obs @ rng.normal(size=(OBS, ACTIONS)) + obs[:, :ACTIONS] ** 2).argmax(axis=1)
    models = {
        "sklearn_logistic": make_pipeline(StandardScaler(), LogisticRegression()),
        "sklearn_mlp": MLPClassifier((HIDDEN,), max_iter=100, random_state=0),
        "sklearn_forest": RandomForestClassifier(8, max_depth=4, random_state=0),
    }
    for stem, model in models.items():
        # Without zipmap=False the probabilities are a sequence of maps.
        onnx_model = to_onnx(
            model.fit(obs, actions),
            initial_types=[("obs", FloatTensorType([None, OBS]))],
            target_opset=17,
            options={"zipmap": False},
        )
        save(stem, onnx_model)


def export_keras() -> None:
    """A Keras MLP, and an LSTM over a window of observations."""
    import keras
    import tensorflow as tf
    import tf2onnx

    def convert(stem: str, layers: list[Any], shape: tuple[int, ...]) -> None:
        model = keras.Sequential([keras.Input(shape), *layers])
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0.0, 0.4, weight.shape) for weight in model.get_weights()])
        # tf2onnx's from_keras reads attributes that Keras 3 no longer has.
        function = tf.function(lambda obs: {"logits": model(obs)})
        signature = [tf.TensorSpec((None, *shape), tf.float32, name="obs")]
        save(stem, tf2onnx.convert.from_function(function, signature, opset=15)[0])

    dense = keras.layers.Dense
    convert("keras_mlp", [dense(HIDDEN, "relu"), dense(HIDDEN, "tanh"), dense(ACTIONS, "softmax")], (OBS,))
    convert("keras_lstm", [keras.layers.LSTM(HIDDEN), dense(ACTIONS)], (STEPS, OBS))


def export_jax() -> None:
    """A Flax (nnx) MLP by jax2onnx."""
    import jax
    from flax import nnx
    from jax2onnx import to_onnx

    class Policy(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(OBS, HIDDEN, rngs=rngs)
            self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)
            self.second = nnx.Linear(HIDDEN, ACTIONS, rngs=rngs)

        def __call__(self, obs: jax.Array) -> jax.Array:
            return nnx.log_softmax(self.second(nnx.gelu(self.norm(self.first(obs)))))

    model = to_onnx(
        Policy(nnx.Rngs(0)), [("batch", OBS)], opset=21, input_names=["obs"], output_names=["logits"]
    )
    assert isinstance(model, onnx.ModelProto)
    save("flax_mlp", model)


if __name__ == "__main__":
    {"torch": export_torch, "sklearn": export_sklearn, "keras": export_keras, "jax": export_jax}[
        sys.argv[1]
    ]()
