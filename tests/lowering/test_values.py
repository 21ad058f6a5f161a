"""Values that do not fit: whole numbers too large for their dtype."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import memojax
from memojax.errors import InputDtypeError
from memojax.lowering.typed_model import TypedModel
from memojax.model.tensor import overflow


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
