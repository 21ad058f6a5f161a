"""Files whose graph breaks, in inferers: each row runs by itself, as in ONNX Runtime."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import memojax
from memojax.errors import DimensionError, LoweringError, UnsupportedOpError
from memojax.lowering.typed_model import TypedModel

RNG = np.random.default_rng(0)
X = RNG.integers(1, 4, (6, 5)).astype(np.float32)


def model(nodes: str, batch: Any = "batch", outputs: str = "float[] y") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[{batch},5] x) => ({outputs}) <float half = {{0.5}}, int64[1] one = {{1}}> {{ {nodes} }}""")


DISTINCT = """u = Unique (x)
    s = Size (u)
    f = Cast <to = 1> (s)
    m = ReduceSum <keepdims = 0> (u)
    y = Add (f, m)"""
"""The number of distinct numbers in a row, and their sum."""
LARGEST = """z = Greater (x, half)
    c = NonZero (z)
    i = Transpose <perm = [1, 0]> (c)
    g = GatherND (x, i)
    v, k = TopK (g, one)
    y = Mul (v, half)"""


def alone(made: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"x": row[None]})[0] for row in rows])  # pyright: ignore[reportArgumentType,reportCallIssue]


@pytest.mark.parametrize("nodes", [DISTINCT, LARGEST])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_rows_run_as_the_file_says(nodes: str, batch: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = model(nodes, batch)
    policy = memojax.load(made)
    assert policy.typed.rule.startswith("host (each row by itself: the graph breaks at ")
    assert "strict=True refuses such files" in caplog.text
    expected = alone(made, X)
    for n in (1, 2, 6):
        np.testing.assert_allclose(
            policy.infer_arrays({"x": X[:n]})["y"].ravel(), expected[:n].ravel(), rtol=1e-6
        )
    batch_of = policy.infer_batch({7: {"x": X[0]}, 3: {"x": X[1]}})
    np.testing.assert_allclose([batch_of[7]["y"].item(), batch_of[3]["y"].item()], expected[:2].ravel())
    assert policy.mixing_outputs == ()


def test_plans_of_another_size_pad_and_split() -> None:
    made = model(LARGEST)
    typed, expected = TypedModel.from_model(made), alone(made, X).ravel()
    for policy in (
        memojax.DynamicInferer(typed, 4),
        memojax.FixedBatchInferer(typed, [1, 4]),
    ):
        np.testing.assert_allclose(policy.infer_arrays({"x": X})["y"].ravel(), expected)


def test_threads_and_pickles() -> None:
    policy = memojax.load(model(DISTINCT))
    expected = alone(model(DISTINCT), X).ravel()
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda n: policy.infer_arrays({"x": X[: n % 6 + 1]})["y"].ravel(), range(24)):
            np.testing.assert_allclose(answer, expected[: len(answer)])
    again = pickle.loads(pickle.dumps(policy))
    np.testing.assert_allclose(again.infer_arrays({"x": X})["y"].ravel(), expected)


def test_a_row_that_cannot_run_raises_its_own_error() -> None:
    policy = memojax.load(model(LARGEST))
    policy.infer_arrays({"x": X})
    for _ in range(2):
        with pytest.raises(LoweringError, match=r"node 'TopK_4' \(TopK.*K is 1, but axis 0 has 0 elements"):
            policy.infer_arrays({"x": np.concatenate([X, -X[:1]])})
    assert np.isnan(policy.infer_arrays({"x": 0 * X[:1]})["y"]).all()
    np.testing.assert_allclose(policy.infer_arrays({"x": X})["y"].ravel(), alone(model(LARGEST), X).ravel())


def test_under_jit_and_not_for_export() -> None:
    policy = memojax.load(model(DISTINCT))
    fn, params = memojax.to_jax(policy)
    np.testing.assert_allclose(jax.jit(fn)(params, {"x": X})["y"].ravel(), alone(model(DISTINCT), X).ravel())
    with pytest.raises(DimensionError, match="its graph breaks at Unique"):
        memojax.to_stablehlo(model(DISTINCT))


def test_random_numbers_are_each_row_s_own_and_repeat_with_the_seed() -> None:
    made = model(
        "u = Unique (x)\n s = Size (u)\n f = Cast <to = 1> (s)\n r = RandomNormalLike (half)\n y = Add (f, r)"
    )
    first, second, other = (memojax.load(made, seed=seed) for seed in (1, 1, 2))
    rows = np.repeat(X[:1], 4, axis=0)
    drawn = first.infer_arrays({"x": rows})["y"]
    np.testing.assert_array_equal(second.infer_arrays({"x": rows})["y"], drawn)
    assert len(np.unique(drawn)) == 4
    assert (other.infer_arrays({"x": rows})["y"] != drawn).all()


def test_strict_and_outputs_whose_shape_depends_on_data_are_refused() -> None:
    made = model(DISTINCT + "\n w = Identity (u)", outputs="float[] y, float[] w")
    with pytest.raises(UnsupportedOpError, match="Unique.*runs on the host"):
        TypedModel.from_model(made, strict=True)
    with pytest.raises(UnsupportedOpError, match="Unique.*runs on the host"):
        memojax.load(made, strict=True)
    with pytest.raises(
        DimensionError,
        match=r"output 'w' does not have the same dtype and shape for every row \(float32\[\d\].*outputs=",
    ):
        memojax.load(made)
    np.testing.assert_allclose(
        memojax.load(made, outputs=("y",)).infer_arrays({"x": X})["y"].ravel(),
        alone(model(DISTINCT), X).ravel(),
    )


def test_verify_compares_row_by_row_and_tells_where_the_file_mixes_a_batch() -> None:
    checks = memojax.verify(model(DISTINCT, 1), [1, 3])
    assert [(check.same, check.alone) for check in checks] == [(True, True), (True, True)]
    single, three = memojax.verify(model(DISTINCT), [1, 3])
    assert (single.same, three.same, three.alone) == (True, False, True)
    assert "the file mixes the rows of a batch, and here each row runs by itself" in three.note
