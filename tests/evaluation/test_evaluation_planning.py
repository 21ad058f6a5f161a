"""The plans of an evaluation: few by default, exact if rows mix, and the same numbers either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper

import memojax as mj
from memojax import errors, policies
from memojax.evaluation.planning import FewSizes

from ..evaluation_fakes import Policy, first
from ..tiny_envs import Tiny

MODELS = Path(__file__).parents[1] / "models"


def _model(nodes: list[Any], folder: Path) -> Path:
    value = helper.make_tensor_value_info
    shapes = [value("obs", TensorProto.FLOAT, ["N", 2])], [value("logits", TensorProto.FLOAT, ["N", 2])]
    weights = [numpy_helper.from_array(np.array([[2.0, -1.0], [0.5, 1.0]], np.float32), "w")]
    graph = helper.make_graph(nodes, "tiny", *shapes, weights)
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    return _model([helper.make_node("MatMul", ["obs", "w"], ["logits"])], tmp_path)


@pytest.fixture
def mixing(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["h", "mean"], ["logits"]),
    ]
    return _model(nodes, tmp_path)


CASES = {
    "acrobot_ppo": {"max_steps": 90},
    "pendulum_ppo": {"max_steps": 40},
    "recurrent_lstm": {
        "max_steps": 60,
        "observation_transforms": [mj.SelectObs([0, 2])],
        "deterministic": False,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_few_plans_give_the_numbers_of_exact_ones(name: str) -> None:
    options: Any = {"episodes": 9, "num_envs": 6, **CASES[name]}
    few = mj.evaluate(policies.bundled(name), **options)
    exact = mj.evaluate(policies.bundled(name), bucketing="exact", **options)
    np.testing.assert_array_equal(few.lengths, exact.lengths)
    np.testing.assert_allclose(few.returns, exact.returns, rtol=1e-4)
    assert {plan.size for plan in few.plans} <= {6, 4, 2, 1}
    assert {plan.size for plan in exact.plans} == set(exact.batch_sizes)
    assert exact.padded_rows == 0


def test_a_model_that_draws_its_own_numbers_draws_the_same_for_padded_rows() -> None:
    make = lambda: Tiny(spaces.Box(-1, 1, (8,), np.float32), spaces.Box(-1, 1, (2,), np.float32))  # noqa: E731
    options: Any = {"episodes": 7, "num_envs": 7, "deterministic": False, "seed": 3}
    few = mj.evaluate(MODELS / "sb3_sac_sampling.onnx", make, **options)
    exact = mj.evaluate(MODELS / "sb3_sac_sampling.onnx", make, bucketing="exact", **options)
    assert few.padded_rows > 0
    np.testing.assert_allclose(few.returns, exact.returns, rtol=1e-4, atol=1e-5)
    other = mj.evaluate(MODELS / "sb3_sac_sampling.onnx", make, **{**options, "seed": 4})
    assert not np.allclose(other.returns, few.returns)


def test_padded_rows_are_counted(linear: Path) -> None:
    result = mj.evaluate(linear, Tiny, episodes=11, num_envs=11)
    sizes = {size: result.plan_size(size) or 0 for size in result.batch_sizes}
    assert result.padded_rows == sum((sizes[n] - n) * count for n, count in result.batch_sizes.items()) > 0
    assert {plan.size: plan.calls for plan in result.plans if plan.calls} == {
        plan: sum(count for n, count in result.batch_sizes.items() if sizes[n] == plan)
        for plan in set(sizes.values())
    }


def test_rows_that_mix_are_never_padded(mixing: Path) -> None:
    result = mj.evaluate(mixing, Tiny, episodes=7, num_envs=7)
    assert {plan.size for plan in result.plans} == set(result.batch_sizes)
    assert result.padded_rows == 0
    with pytest.raises(errors.RowsMixError, match="pad"):
        mj.evaluate(mixing, Tiny, episodes=7, on_miss="pad")


def test_a_batch_size_always_has_the_same_plan() -> None:
    rule = FewSizes(48)
    rule.mixing = tuple
    assert [rule(rows) for rows in (48, 47, 33, 32, 17, 1)] == [48, 48, 48, 32, 32, 1]
    assert [rule.below(rows) for rows in (48, 33, 32, 2, 1)] == [32, 32, 16, 1, None]
    mixing = FewSizes(48)
    mixing.mixing = lambda: ["logits"]
    assert [mixing(rows) for rows in (48, 47, 3)] == [48, 47, 3]
    assert mixing.below(47) is None


def test_whether_rows_mix_is_asked_only_when_the_batch_shrinks() -> None:
    rule = FewSizes(4)
    rule.mixing = lambda: pytest.fail("not yet")
    assert rule(4) == 4
    assert rule.below(4) is None


def test_a_file_that_runs_at_one_size_only_is_not_padded() -> None:
    def fails() -> Any:
        raise errors.LoweringError("baked in")

    rule = FewSizes(4)
    rule.mixing = fails
    assert rule(3) == 3


def test_sizes_and_misses_are_the_callers_choice(linear: Path) -> None:
    result = mj.evaluate(linear, Tiny, episodes=8, num_envs=8, bucketing=iter([3, 8]), preload=iter([3]))
    assert {plan.size for plan in result.plans} == {3, 8}
    with pytest.raises(errors.EvaluationError, match="batch size 8 has no plan"):
        mj.evaluate(linear, Tiny, episodes=8, num_envs=8, on_miss="error")
    ready = mj.evaluate(linear, Tiny, episodes=8, num_envs=8, on_miss="error", preload=[1, 2, 4, 8])
    np.testing.assert_array_equal(ready.returns, result.returns)
    padded = mj.evaluate(linear, Tiny, episodes=8, num_envs=8, on_miss="pad")
    np.testing.assert_array_equal(padded.returns, result.returns)


def test_nothing_compiles_where_that_is_forbidden(linear: Path) -> None:
    with pytest.raises(errors.EvaluationError, match="none may be compiled"), mj.forbid_compile():
        mj.evaluate(linear, Tiny, episodes=2)


def test_plans_are_kept_on_disk_and_dropped_as_the_caller_says(linear: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    mj.evaluate(linear, Tiny, episodes=8, num_envs=8, cache_dir=folder)
    assert list(folder.iterdir())
    again = mj.evaluate(linear, Tiny, episodes=8, num_envs=8, cache_dir=folder, maxsize=1)
    assert len(again.plans) <= 2  # the full batch's, and one more


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preload": [4, 0]}, errors.BatchSizeError, "positive whole number"),
        ({"bucketing": "pow3"}, errors.BatchSizeError, "unknown bucketing 'pow3'"),
        ({"on_miss": "wait"}, errors.OptionError, "on_miss= takes .*, not 'wait'"),
        ({"maxsize": 0}, errors.BatchSizeError, "maxsize"),
        ({"device": "tpu:7"}, errors.DeviceError, "tpu:7"),
    ],
)
def test_bad_options_are_refused_before_an_environment_is_made(
    linear: Path, options: Any, error: Any, message: str
) -> None:
    def make() -> gym.Env:
        pytest.fail("an environment was made")

    with pytest.raises(error, match=message):
        mj.evaluate(linear, make, **options)


def test_options_for_plans_of_a_loaded_policy_are_refused() -> None:
    options: Any = {"preload": [3], "device": "cpu"}
    with pytest.raises(errors.EvaluationError, match=r"preload=, device= concern loading"):
        mj.evaluate(Policy(first), Tiny, **options)


def test_an_environment_may_raise_while_plans_are_compiled(linear: Path) -> None:
    def broken() -> gym.Env:
        raise FileNotFoundError("no licence")

    with pytest.raises(errors.EnvironmentFailedError, match="no licence"):
        mj.evaluate(linear, broken, preload=[1, 2, 3, 4, 5])
