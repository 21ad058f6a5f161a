"""Failures around an evaluated policy: typed errors that keep the partial result."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import re
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest

import memojax as mj
from memojax import errors
from memojax.evaluation.envs import is_env
from memojax.evaluation.options import GROUPS, NAMED, EvaluateOptions

from .. import tiny_envs
from ..evaluation_fakes import Policy, first
from ..tiny_envs import Tiny

# Failures around the policy


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Acrobat-v1", "did you mean 'Acrobot-v1'"),
        ("CartPole-v7", "did you mean 'CartPole-v1'"),
        ("Nothing-like-it", "module:id imports"),
        ("no_such_module:Env-v0", "no module 'no_such_module'"),
        ("LunarLander-v3", "needs a package that is missing.*[Bb]ox2[Dd]"),
    ],
)
def test_unknown_environments_are_answered_with_the_closest(env: str, message: str) -> None:
    if env == "LunarLander-v3" and _installed("Box2D"):
        pytest.skip("Box2D is installed here")
    with pytest.raises(errors.UnknownEnvironmentError, match=message):
        mj.evaluate(Policy(first), env, episodes=1)


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_raises_is_named_with_the_partial_result(vectorization: Any) -> None:
    policy = Policy(first)
    with pytest.raises(
        errors.EnvironmentFailedError, match=r"(?s)raising raised in step: RuntimeError: the simulator lost"
    ) as caught:
        mj.evaluate(
            policy, tiny_envs.raising, episodes=20, num_envs=20, vectorization=vectorization, workers=2
        )
    assert "step 7, action 0" in str(caught.value)
    partial = caught.value.partial
    assert partial.interrupted
    assert 0 < len(partial.episodes) < 20
    assert partial.lengths.max() <= 6
    assert policy.alive == set()
    if vectorization == "async":
        assert "in worker" in str(caught.value)
        assert "tiny_envs.py" in str(caught.value)
    else:
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_worker_that_dies_is_named_with_the_partial_result() -> None:
    with pytest.raises(
        errors.WorkerDiedError, match=r"worker \d \(process \d+\) exited with code 3"
    ) as caught:
        mj.evaluate(
            Policy(first), tiny_envs.dying, episodes=20, num_envs=20, vectorization="async", workers=2
        )
    assert 0 < len(caught.value.partial.episodes) < 20


@pytest.mark.skipif(sys.platform == "win32", reason="no signals on Windows")
def test_a_killed_worker_is_named_with_the_partial_result() -> None:
    with pytest.raises(errors.WorkerDiedError, match=r"worker \d \(process \d+\) .*9") as caught:
        mj.evaluate(
            Policy(first), tiny_envs.killed, episodes=20, num_envs=20, vectorization="async", workers=2
        )
    assert 0 < len(caught.value.partial.episodes) < 20


def test_a_nan_reward_is_named_with_the_partial_result() -> None:
    class Lost(Tiny):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, float("nan") if self.steps == 7 else reward, *rest

    with pytest.raises(errors.EnvironmentFailedError, match=r"reward NaN.*step 7, action 0") as caught:
        mj.evaluate(Policy(first), Lost, episodes=20, num_envs=20)
    assert 0 < len(caught.value.partial.episodes) < 20
    assert not math.isnan(caught.value.partial.mean_return)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_made(vectorization: Any) -> None:
    with pytest.raises(
        errors.EnvironmentFailedError, match="could not be made: FileNotFoundError: no licence"
    ):
        mj.evaluate(Policy(first), tiny_envs.unmakeable, episodes=1, vectorization=vectorization)


def test_old_gym_environments_raise_with_the_expected_api() -> None:
    class Old(Tiny):
        def step(self, action: Any) -> Any:
            return super().step(action)[:4]

    with pytest.raises(
        errors.EnvironmentFailedError, match="step gave 4 values, expected observation, reward"
    ):
        mj.evaluate(Policy(first), Old, episodes=1)


def test_other_environments_raise_with_the_expected_api() -> None:
    class Bare(Tiny):
        def reset(self, **options: Any) -> Any:
            return super().reset(**options)[0]

    class Silent(Tiny):
        def info(self) -> Any:
            return None

    for env, message in (
        (Bare, "reset gave one ndarray, expected observation, info"),
        (Silent, "the info of this step is a NoneType, expected a dictionary"),
        (object, "object could not be made: AttributeError.*observation_space"),
    ):
        with pytest.raises(errors.EnvironmentFailedError, match=message):
            mj.evaluate(Policy(first), env, episodes=1)


def test_an_infinite_return_is_shown_without_a_warning() -> None:
    class Endless(Tiny):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, float("inf"), *rest

    result = mj.evaluate(Policy(first), Endless, episodes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "return inf" in str(result)
        assert math.isnan(result.confidence_interval()[0])


def test_a_policy_that_fails_is_named_with_the_batch() -> None:
    def fail(inputs: Any) -> Any:
        raise errors.CompileError("out of memory")

    with pytest.raises(errors.EvaluationError, match="failed on a batch of 3: out of memory") as caught:
        mj.evaluate(Policy(fail), Tiny, episodes=3)
    assert caught.value.partial.steps == 0
    assert math.isnan(caught.value.partial.mean_return)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes is a positive whole number, got 0"),
        ({"workers": 0, "vectorization": "async"}, "workers is a positive whole number, got 0"),
        ({"seed": -1}, "seed is a whole number, 0 or more, got -1"),
        ({"seed": 1.5}, "seed is a whole number, 0 or more, got 1.5"),
        ({"num_envs": -1}, "num_envs is a positive"),
        ({"max_steps": 1.5}, "max_steps is a positive"),
        ({"vectorization": "threads"}, "'sync' or 'async'"),
        ({"env": None}, "no environment is given"),
        ({"env": 7}, "not 7"),
        ({"env": Tiny(), "num_envs": 2}, "is a single environment"),
        ({"env": Tiny(), "vectorization": "async"}, "cannot be sent to worker processes"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(errors.EvaluationError, match=message):
        mj.evaluate(Policy(first), **{"env": Tiny, **options})


def test_a_misspelt_keyword_is_answered_with_the_closest() -> None:
    near = {"max_step": "'max_steps'", "n_episodes": "'on_episode' or 'episodes'", "n_envs": "'num_envs'"}
    for wrong, right in near.items():
        options: Any = {wrong: 3}
        with pytest.raises(TypeError, match=rf"'{wrong}': did you mean {right}\? It takes episodes"):
            mj.evaluate(Policy(first), Tiny, **options)


def test_every_keyword_has_a_type_and_a_group() -> None:
    assert ["inferer", "env", *NAMED, "options"] == list(inspect.signature(mj.evaluate).parameters)
    grouped = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert sorted(grouped) == sorted(EvaluateOptions.__annotations__)
    described = str(mj.evaluate.__doc__)
    for name in grouped:
        # Python 3.13 strips a docstring of its common indentation.
        assert re.search(rf"^ {{4,8}}{name} \(.+\): ", described, re.MULTILINE), name


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (errors.SpaceMismatchError("x", 3), "row"),
        (errors.EnvironmentFailedError("x", 3), "slot"),
        (errors.ActionError("x", 3), "row"),
    ],
)
def test_errors_keep_their_fields_on_the_way_to_another_process(error: Exception, field: str) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), getattr(again, field)) == (type(error), "x", 3)


def test_vector_environments_are_refused_with_the_way_out() -> None:
    with pytest.raises(errors.EvaluationError, match="num_envs="):
        mj.evaluate(Policy(first), gym.make_vec("CartPole-v1", num_envs=2))
    vec_env: Any = SimpleNamespace(num_envs=2, step_async=print)  # Stable-Baselines3's are not Gymnasium's.
    with pytest.raises(errors.EvaluationError, match="num_envs="):
        mj.evaluate(Policy(first), vec_env)


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'memojax\[rl\]'"):
        mj.evaluate(Policy(first), "CartPole-v1")
    assert not is_env("CartPole-v1")  # A name needs no import, so a plan compiles during Gymnasium's.
