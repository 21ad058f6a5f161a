"""Random operators: their distributions; a row's numbers depend on the seed and the row only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memojax.lowering import oneshot
from tests.ops.version_cases import Case

LIKE: list[tuple[str, dict[str, Any], float, float]] = [
    ("RandomNormalLike", {"mean": 1.0, "scale": 2.0}, 1.0, 2.0),
    ("RandomUniformLike", {"low": -1.0, "high": 3.0}, 1.0, 4 / 12**0.5),
    ("Bernoulli", {}, 0.3, 0.21**0.5),
    ("Multinomial", {"sample_size": 5}, 2.5, (35 / 12) ** 0.5),
]


def draw(
    op_type: str, attributes: dict[str, Any], rows: int, seed: int = 3, dtype: type = np.float32
) -> np.ndarray:
    case = Case(op_type, 22, (np.full((rows, 6), 0.3, dtype),), attributes)
    return next(iter(oneshot.OneShot(case.model())(case.feeds(), seed=seed).values()))


@pytest.mark.parametrize(("op_type", "attributes", "mean", "deviation"), LIKE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_distribution(
    op_type: str, attributes: dict[str, Any], mean: float, deviation: float, dtype: type
) -> None:
    drawn = draw(op_type, attributes, 4000, dtype=dtype).astype(np.float64)
    assert drawn.mean() == pytest.approx(mean, abs=0.05)
    assert drawn.std() == pytest.approx(deviation, abs=0.05)


@pytest.mark.parametrize(("op_type", "attributes"), [case[:2] for case in LIKE])
def test_rows_do_not_depend_on_the_rows_that_follow(op_type: str, attributes: dict[str, Any]) -> None:
    np.testing.assert_array_equal(draw(op_type, attributes, 3), draw(op_type, attributes, 50)[:3])


@pytest.mark.parametrize(("op_type", "attributes"), [case[:2] for case in LIKE])
def test_seeds(op_type: str, attributes: dict[str, Any]) -> None:
    drawn = draw(op_type, attributes, 50)
    assert np.array_equal(drawn, draw(op_type, attributes, 50))
    assert not np.array_equal(drawn, draw(op_type, attributes, 50, seed=4))
    assert not np.array_equal(drawn, draw(op_type, {**attributes, "seed": 1.0}, 50))


def test_multinomial_takes_unnormalized_log_probabilities() -> None:
    case = Case("Multinomial", 22, (np.log(np.array([[0.1, 0.2, 0.7]] * 5000)) + 3,))
    drawn = next(iter(oneshot.OneShot(case.model())(case.feeds()).values()))
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 5000, [0.1, 0.2, 0.7], atol=0.03)


def test_training_dropout_drops_at_its_ratio_and_scales_the_rest() -> None:
    case = Case(
        "Dropout", 22, (np.full((4000, 6), 2, np.float32), np.float32(0.25), np.array(True)), n_outputs=2
    )
    kept, mask = oneshot.OneShot(case.model())(case.feeds()).values()
    assert mask.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(kept, mask * np.float32(2 / 0.75), rtol=1e-6)
