from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memojax
import memojax.ray
from memojax.errors import MissingInputError, UnknownInputError

pytest.importorskip("ray")


def test_map_batches_gives_the_policys_answers_and_compiles_nothing(ray: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(37, 6)).astype(np.float32)
    predictor = memojax.ray.Predictor(
        "acrobot_ppo", batch_size=8, inputs={"obs": "seen"}, outputs={"logits": "score"}, keep=["number"]
    )

    def counted(batch: Any) -> Any:
        answer = predictor(batch)
        answer["compiles"] = np.full(len(batch["number"]), predictor.compiles())
        return answer

    data = ray.data.from_items([{"seen": row, "number": i} for i, row in enumerate(rows)])
    found = data.map_batches(counted, batch_size=8).take_all()
    found.sort(key=lambda row: row["number"])
    assert set(found[0]) == {"number", "score", "compiles"}
    assert [row["number"] for row in found] == list(range(37))
    assert {row["compiles"] for row in found} == {0}
    expected = memojax.load("acrobot_ppo", bucketing=[8]).infer_arrays({"obs": rows})["logits"]
    np.testing.assert_array_equal(np.stack([row["score"] for row in found]), expected)


def test_several_columns_make_one_input() -> None:
    names = list("abcdef")
    predictor = memojax.ray.Predictor("acrobot_ppo", batch_size=4, inputs={"obs": names}, keep=False)
    rows = np.arange(18, dtype=np.float32).reshape(3, 6)
    found = predictor({name: rows[:, i] for i, name in enumerate(names)})
    assert list(found) == ["logits"]
    np.testing.assert_allclose(found["logits"], memojax.load("acrobot_ppo")(rows), rtol=1e-6)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UnknownInputError):
        memojax.ray.Predictor("acrobot_ppo", batch_size=1, inputs={"observation": "obs"})
    with pytest.raises(MissingInputError):
        memojax.ray.Predictor("acrobot_ppo", batch_size=1)({"seen": np.zeros((1, 6), np.float32)})
