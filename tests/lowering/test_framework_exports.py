"""Policies of torch (both exporters), Stable-Baselines3, tf2onnx, jax2onnx, skl2onnx: recorded numbers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import memojax
from memojax.errors import IncompatibleModelError

FOLDER = Path(__file__).parents[1] / "models"
EXPORTS = sorted(path.stem for path in FOLDER.glob("*.npz"))
DRAWN = {"sb3_sac_sampling": {"action"}}
"""Outputs that the network draws at random."""


def recorded(stem: str, batch: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs, and the outputs that the trainer or ONNX Runtime gave for them."""
    with np.load(FOLDER / f"{stem}.npz") as file:
        inputs = {key.rsplit("/", 1)[1]: file[key] for key in file.files if key.startswith(f"b{batch}/in/")}
        outputs = {key.split("/", 3)[3]: file[key] for key in file.files if key.startswith(f"b{batch}/out/")}
    return inputs, outputs


def test_every_export_is_recorded() -> None:
    assert len(EXPORTS) >= 12
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(EXPORTS)


@pytest.mark.parametrize("stem", EXPORTS)
def test_it_gives_the_recorded_numbers(stem: str) -> None:
    policy = memojax.load(FOLDER / f"{stem}.onnx", preload=[1, 5])
    with memojax.forbid_compile():
        for batch in (1, 5):
            inputs, outputs = recorded(stem, batch)
            got = policy.infer_arrays(inputs)
            assert list(got) == list(outputs)
            for name, want in outputs.items():
                assert got[name].shape == want.shape
                assert got[name].dtype == want.dtype
                if name not in DRAWN.get(stem, ()):
                    np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("stem", EXPORTS)
def test_it_is_a_pure_function_of_its_weights(stem: str) -> None:
    fn, params = memojax.to_jax(FOLDER / f"{stem}.onnx")
    inputs, outputs = recorded(stem, 5)
    with jax.enable_x64(True):
        got = jax.jit(fn)(params, inputs, *([jax.random.key(0)] if stem in DRAWN else []))
    for name, want in outputs.items():
        if name not in DRAWN.get(stem, ()):
            np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("other", ["sb3_ppo_opset17", "sb3_ppo_dynamo_opset18", "sb3_sac_epsilon"])
def test_weights_of_another_graph_are_refused(other: str) -> None:
    """Another exporter may transpose weights, so equal shapes are no proof: such a file is refused."""
    policy = memojax.load(FOLDER / "sb3_ppo_opset11.onnx", preload=[5], weights="argument")
    inputs, outputs = recorded("sb3_ppo_opset11", 5)
    with pytest.raises(IncompatibleModelError, match="load it with memojax.load instead"):
        policy.update_params(FOLDER / f"{other}.onnx")
    np.testing.assert_allclose(policy.infer_arrays(inputs)["values"], outputs["values"], rtol=1e-4, atol=1e-5)
