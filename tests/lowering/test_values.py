"""Values that do not fit: whole numbers too large for their dtype."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np
import onnx
import pytest

import memojax
from memojax.errors import InputDtypeError, LoweringError
from memojax.lowering.typed_model import TypedModel
from memojax.model.tensor import overflow

from .test_batch_evidence import f32, model_of, op


@pytest.fixture(scope="module")
def policy() -> Any:
    typed = TypedModel.from_function(lambda _, x: {"y": x["i"] + 1}, (), {"i": ((2,), np.int32)})
    return memojax.load(typed)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_whole_number_that_does_not_fit_is_an_error(policy: Any, value: int) -> None:
    rows = np.array([[0, value]])
    message = f"'i' takes int32, which cannot hold {value}"
    batched = policy.into_batched()
    with jax.enable_x64(True):
        on_device = jax.device_put(rows)
    for call in (
        lambda: policy.infer_arrays({"i": rows}),
        lambda: policy.infer_arrays({"i": rows.tolist()}),
        lambda: policy.infer_arrays({"i": on_device}),
        lambda: policy.infer_single({"i": rows[0]}),
        lambda: policy.infer_batch({4: {"i": rows[0]}, 5: {"i": np.array([1, 2], np.int32)}}),
        lambda: batched.push(4, {"i": rows[0]}),
    ):
        with pytest.raises(InputDtypeError, match=message):
            call()
    np.testing.assert_array_equal(policy.infer_arrays({"i": np.array([[0, 7]])})["y"], [[1, 8]])


@pytest.mark.parametrize(
    ("given", "dtype", "outside"),
    [
        (np.array([3, 300]), np.uint8, 300),
        (np.array([-1], np.int8), np.uint64, -1),
        (np.array([2**63], np.uint64), np.int64, 2**63),
        (np.array([7, -8]), ml_dtypes.int4, None),
        (np.array([8]), ml_dtypes.int4, 8),
        (np.array([300]), np.float32, None),
        (np.array([1e30]), np.int8, None),
        (np.array([300]), ml_dtypes.bfloat16, None),
        (np.zeros(0, np.int64), np.int8, None),
    ],
)
def test_the_number_that_does_not_fit(given: np.ndarray, dtype: Any, outside: int | None) -> None:
    assert overflow(given, np.dtype(dtype)) == outside


@pytest.mark.parametrize(("kind", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
def test_nan_comes_out_of_a_recurrent_layer_as_nan(kind: str, gates: int) -> None:
    """PyTorch says so as well; ONNX Runtime gives a plausible number from its GRU and LSTM."""
    weights = {"W": f32(1, gates * 4, 3), "R": f32(1, gates * 4, 4)}
    nodes = [op("Transpose", "x", "t", perm=[1, 0, 2]), op(kind, "t W R", "h", hidden_size=4)]
    nodes.append(op("Transpose", "h", "y", perm=[2, 0, 1, 3]))
    model = model_of(nodes, {"x": ["batch", 2, 3]}, {"y": ["batch", 2, 1, 4]}, **weights)
    x = f32(2, 2, 3)
    x[0, 1, 0] = np.nan
    for y in (memojax.run(model, {"x": x})["y"], memojax.load(model).infer_arrays({"x": x})["y"]):
        assert np.isnan(y[0, 1]).all()
        assert np.isfinite(y[0, 0]).all()
        assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("kind", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
def test_states_in_another_layout_raise_as_in_onnx_runtime(kind: str, gates: int, layout: int) -> None:
    """Rows first, as inferers take states, would give the state of the first agent to all of them."""
    weights = {"W": f32(1, gates * 4, 3), "R": f32(1, gates * 4, 4)}
    right = [5, 1, 4] if layout else [1, 5, 4]
    inputs = ["x", "W", "R", "", "", "h"]
    node = onnx.helper.make_node(kind, inputs, ["", "new"], hidden_size=4, layout=layout)
    x = f32(5, 1, 3) if layout else f32(1, 5, 3)
    model = model_of([node], {"x": list(x.shape), "h": ["a", "b", "c"]}, {"new": ["a", "b", "c"]}, **weights)
    h = f32(*right)
    assert memojax.run(model, {"x": x, "h": h})["new"].shape == h.shape
    for wrong in ([right[1], right[0], 4], [*right[:2], 1], [right[1], right[0] + 1, 4]):
        with pytest.raises(LoweringError, match=rf"initial_h has shape \[.*expected \[{right[0]}, "):
            memojax.run(model, {"x": x, "h": f32(*wrong)})
