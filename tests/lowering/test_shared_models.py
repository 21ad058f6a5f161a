"""The development models in ../shared/models against ONNX Runtime, at batch 1 and 5, if they exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import memojax

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "models"
MANIFEST = FOLDER / "manifest.json"
MODELS: list[dict[str, Any]] = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not MODELS, reason=f"{FOLDER} is not there: the development models are not part of the project"
    ),
]


@pytest.mark.parametrize("entry", MODELS, ids=[entry["name"] for entry in MODELS])
def test_matches_onnxruntime(entry: dict[str, Any]) -> None:
    path = FOLDER / entry["file"]
    inferer = memojax.load(path)
    session = _session(path)
    for n in (1, 5):
        rows = _rows(inferer, n)
        got = inferer.infer_arrays(rows)
        want = _reference(session, inferer, rows, n, whole=n == 1 or entry["ort_batch5"])
        for name, expected in want.items():
            if name in entry["random_outputs"]:
                continue
            value = got[name.removesuffix(":0") if name not in got else name]
            assert value.dtype == expected.dtype
            if name in entry["constant_outputs"]:
                expected = np.broadcast_to(expected, value.shape)
            np.testing.assert_allclose(value.ravel(), expected.ravel(), rtol=1e-3, atol=1e-5, err_msg=name)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _rows(inferer: memojax.Inferer, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    rows = {
        spec.name: rng.standard_normal((n, *spec.shape)).astype(spec.dtype) for spec in inferer.api.inputs
    }
    return {name: np.ones_like(row) if "mask" in name else row for name, row in rows.items()}


def _reference(
    session: onnxruntime.InferenceSession,
    inferer: memojax.Inferer,
    rows: dict[str, np.ndarray],
    n: int,
    whole: bool,
) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs for all rows at once; row by row if the file's batch is fixed to 1."""
    inputs, outputs = session.get_inputs(), [info.name for info in session.get_outputs()]
    given = dict(
        zip((info.name for info in inputs), (rows[spec.name] for spec in inferer.api.inputs), strict=True)
    )
    if whole and n > 1:
        return dict(zip(outputs, session.run(None, given), strict=True))
    single = {info.name: [dim if isinstance(dim, int) else 1 for dim in info.shape] for info in inputs}
    runs = [
        session.run(None, {k: row[i : i + 1].reshape(single[k]) for k, row in given.items()})
        for i in range(n)
    ]
    return {
        name: runs[0][k] if n == 1 else np.stack([run[k] for run in runs]) for k, name in enumerate(outputs)
    }
