"""`to_jax` of a file for one row: more rows get the answers of one, or an error, however the file reads them.

ONNX Runtime refuses other sizes than the declared ones, so its answers for one row are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import memojax
from memojax import errors

N = 5
rng = np.random.default_rng(0)
WEIGHTS = {
    "zero": np.array(0),
    "none": np.array([0]),
    "one": np.array([1]),
    "flat": np.array([-1, 3]),
    "w": rng.standard_normal((1, 12, 3)).astype(np.float32),
    "r": rng.standard_normal((1, 12, 3)).astype(np.float32),
}


def model(inputs: str, body: str) -> bytes:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[1,3] y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items() if name in used
    )
    return made.SerializeToString()


def outcomes(content: bytes) -> dict[tuple[int, ...], str]:
    """Axes of the rows in the inputs -> "right", "refused" or "wrong"."""
    session = onnxruntime.InferenceSession(content)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    single = [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
        for _ in range(N)
    ]
    want = [session.run(["y"], row)[0].ravel() for row in single]
    fn, params = memojax.to_jax(content)
    found = {}
    for axes in product(*([axis for axis, dim in enumerate(shape) if dim == 1] for shape in inputs.values())):
        given = {
            name: np.concatenate([row[name] for row in single], axis)
            for name, axis in zip(inputs, axes, strict=True)
        }
        found[axes] = _outcome(lambda run, given=given: run(params, given)["y"], fn, want)
    return found


def _outcome(call: Callable[[Any], Any], fn: Any, want: list[np.ndarray]) -> str:
    seen = set()
    for run in (jax.jit(fn), fn):
        try:
            y = np.asarray(call(run))
            same = y.shape == (N, 3) and np.allclose(y, want, rtol=1e-4, atol=1e-5)
            seen.add("right" if same else "wrong")
        except (errors.LoweringError, errors.InputShapeError) as error:
            assert "to_jax of a loaded policy" in str(error)
            seen.add("refused")
    return " and ".join(sorted(seen))


READS = {
    "Gather 0": ("f = Gather <axis = 0> (h, zero)", 1),
    "Gather 1": ("f = Gather <axis = 1> (h, zero)", 0),
    "Slice 0": ("s = Slice (h, none, one, none) f = Squeeze (s, none)", 1),
    "Slice 1": ("s = Slice (h, none, one, one) f = Squeeze (s, one)", 0),
    "Slice 1, Squeeze 0": ("s = Slice (h, none, one, one) f = Squeeze (s, none)", None),
    "Split": ("s = Split <axis = 0> (h) f = Squeeze (s, none)", 1),
    "Squeeze 1": ("f = Squeeze (h, one)", 0),
    "GatherND": ("f = GatherND (h, none)", 1),
    "ReduceSum": ("f = ReduceSum <keepdims = 0> (h, one)", 0),
    "ReduceMax": ("f = ReduceMax <axes = [0], keepdims = 0> (h)", 1),
    "Einsum": ('f = Einsum <equation = "abc->bc"> (h)', 1),
    "Transpose": ("s = Transpose <perm = [1, 0, 2]> (h) f = Squeeze (s, none)", 0),
}


@pytest.mark.parametrize("read", READS)
def test_a_state_is_right_on_the_axis_that_the_file_reads_and_refused_on_the_other(read: str) -> None:
    body, right = READS[read]
    content = model("float[1,3] x, float[1,1,3] h", f"{body} s2 = Add (x, f) y = Tanh (s2)")
    expected = {(0, axis): "right" if axis == right else "refused" for axis in (0, 1)}
    assert outcomes(content) == expected


def test_a_state_without_order_is_right_on_either_axis() -> None:
    content = model("float[1,3] x, float[1,1,3] h", "f = Reshape (h, flat) y = Add (x, f)")
    assert outcomes(content) == {(0, 0): "right", (0, 1): "right"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = ReduceMean (x) y = Sub (x, m)", "refused"),
        ("m = ReduceL2 (x) y = Div (x, m)", "refused"),
        ("m = ReduceL2 <axes = [1]> (x) y = Div (x, m)", "right"),
        ("y = Softmax <axis = 0> (x)", "refused"),
        ("y = CumSum (x, zero)", "refused"),
        ("m = Gather (x, none) y = Add (x, m)", "refused"),
        # The agents as the steps of a recurrent layer.
        ("u = Unsqueeze (x, one) s = LSTM <hidden_size = 3> (u, w, r) y = Reshape (s, flat)", "refused"),
        ("u = Unsqueeze (x, none) s = LSTM <hidden_size = 3> (u, w, r) y = Reshape (s, flat)", "right"),
    ],
)
def test_rows_of_one_input_keep_apart_or_are_refused(body: str, expected: str) -> None:
    assert outcomes(model("float[1,3] x", body)) == {(0,): expected}


def test_inputs_of_different_numbers_of_rows_are_refused() -> None:
    fn, params = memojax.to_jax(model("float[1,3] x, float[1,3] z", "m = ReduceSum (z) y = Add (x, m)"))
    x, z = np.ones((5, 3), np.float32), np.ones((4, 3), np.float32)
    message = r"'x' and 'z' have different numbers of rows.*\[5, 3\] and \[4, 3\].*to_jax of a loaded policy"
    with pytest.raises(errors.InputShapeError, match=message):
        fn(params, {"x": x, "z": z})
    np.testing.assert_array_equal(fn(params, {"x": x, "z": z[:1]})["y"], x + 3)


def test_an_optional_input_without_a_value_stays_absent() -> None:
    has = "k = OptionalHasElement (o) c = Cast <to = 1> (k) m = ReduceMax (x) q = Mul (m, c) y = Add (x, q)"
    content = model("float[1,3] x, optional(float[1,3]) o", has)
    fn, params = memojax.to_jax(content)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_array_equal(fn(params, {"x": x})["y"], x)
