"""`policy(inputs)` and `predict` without a trainer: arrays of each kind, buffers, unknown spaces."""

from __future__ import annotations

import itertools
import logging
import pickle
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

import memojax as mj
from memojax import errors, policies

from ..evaluation_fakes import Policy, first
from ..tiny_envs import UNIT, Tiny


@pytest.fixture(scope="module")
def policy() -> mj.Inferer:
    return mj.load(policies.bundled("acrobot_ppo"))


@pytest.fixture(scope="module")
def several() -> mj.Inferer:
    """Two inputs, two outputs, one of them constant."""

    def fn(weight: Any, inputs: Any) -> Any:
        return {"sum": weight * inputs["a"] + inputs["b"], "difference": inputs["a"] - inputs["b"]}

    return mj.load(mj.TypedModel.from_function(fn, np.float32(2), dict.fromkeys("ab", ((2,), np.float32))))


ROWS = np.arange(18, dtype=np.float32).reshape(3, 6)

# Calls


def test_one_input_and_one_output_need_no_names(policy: mj.Inferer) -> None:
    wanted = policy.infer_arrays({"obs": ROWS})["logits"]
    np.testing.assert_array_equal(policy(ROWS), wanted)
    np.testing.assert_array_equal(policy({"obs": ROWS}), wanted)
    single = policy(ROWS[1].tolist())
    assert single.shape == (3,)
    np.testing.assert_allclose(single, wanted[1], rtol=1e-5)


def test_several_inputs_need_names(several: mj.Inferer) -> None:
    a, b = np.ones((4, 2), np.float32), np.full((4, 2), 3, np.float32)
    answer = several({"a": a, "b": b})
    np.testing.assert_array_equal(answer["sum"], np.full((4, 2), 5))
    assert several({"a": a[0], "b": b[0]})["difference"].tolist() == [-2, -2]
    with pytest.raises(errors.InputError, match="has inputs 'a', 'b': pass a mapping"):
        several(a)
    with pytest.raises(errors.InputShapeError):
        several({"a": a, "b": b[0]})


def test_jax_arrays_stay_jax_arrays(policy: mj.Inferer) -> None:
    answer = policy(jax.numpy.asarray(ROWS), copy=True)
    assert isinstance(answer, jax.Array)
    np.testing.assert_allclose(answer, policy(ROWS), rtol=1e-5)


def test_the_caller_owns_copies(policy: mj.Inferer) -> None:
    assert not policy(ROWS).flags.writeable
    before = policy(ROWS)
    answer = policy(ROWS, copy=True)
    answer += 1
    np.testing.assert_array_equal(policy(ROWS), before)
    assert not np.array_equal(answer, before)


def test_answers_go_to_the_callers_buffers(policy: mj.Inferer, several: mj.Inferer) -> None:
    buffer = np.empty((3, 3), np.float32)
    assert policy(ROWS, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, policy(ROWS))
    single = np.empty(3, np.float32)
    np.testing.assert_array_equal(policy(ROWS[0], out=single), policy(ROWS[0]))
    strided = np.zeros((4, 4), np.float32)
    rows = {name: np.ones((4, 2), np.float32) for name in "ab"}
    several(rows, out={"sum": strided[:, ::2]})
    np.testing.assert_array_equal(strided, [[3, 0, 3, 0]] * 4)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((2, 3), np.float32), errors.InputShapeError, r"has shape \[2, 3\], expected \[3, 3\]"),
        (np.empty((3, 3), np.float64), errors.InputDtypeError, "is float64, expected float32"),
        ([0.0] * 9, errors.InputError, "not a writable array"),
        (np.broadcast_to(np.float32(0), (3, 3)), errors.InputError, "not a writable array"),
        (
            {"nope": np.empty((3, 3), np.float32)},
            errors.InputError,
            "names 'nope', but the outputs are 'logits'",
        ),
    ],
)
def test_buffers_that_do_not_fit_are_refused_before_anything_runs(out: Any, error: Any, message: str) -> None:
    policy = Policy(lambda _: pytest.fail("it ran"), {"obs": (6,)}, {"logits": (3,)})
    with pytest.raises(error, match=message):
        policy(ROWS, out=out)


def test_jax_arrays_are_never_written_to(policy: mj.Inferer) -> None:
    with pytest.raises(errors.InputError, match="outputs cannot be written"):
        policy(jax.numpy.asarray(ROWS), out=np.empty((3, 3), np.float32))


def test_tensors_in_tensors_out(policy: mj.Inferer, several: mj.Inferer) -> None:
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(ROWS)
    answer = policy(rows)
    assert isinstance(answer, torch.Tensor)
    np.testing.assert_array_equal(answer.numpy(), policy(ROWS))
    buffer = torch.empty(3, 3)
    assert policy(rows, out=buffer) is buffer
    assert torch.equal(buffer, answer)
    assert policy(rows[0]).shape == (3,)
    named = several({"a": torch.ones(2, 2), "b": torch.ones(2, 2).bfloat16().float()})
    assert named["sum"].tolist() == [[3, 3], [3, 3]]
    with pytest.raises(errors.InputError, match=r"'obs' requires a gradient.*detach.*to_jax"):
        policy(rows.clone().requires_grad_())
    actions, _ = policy.predict(rows)
    assert isinstance(actions, torch.Tensor)


def test_tensors_are_not_copied_on_the_way(policy: mj.Inferer) -> None:
    torch = pytest.importorskip("torch")
    from memojax.rows.torch_arrays import from_torch, to_torch

    tensor = torch.ones(3, 6)
    assert from_torch("obs", tensor).ctypes.data == tensor.data_ptr()
    array = policy.infer_arrays({"obs": ROWS})["logits"]
    assert to_torch(array, copy=False).data_ptr() == array.ctypes.data
    assert to_torch(array, copy=True).data_ptr() != array.ctypes.data


def test_a_constant_output_is_not_shared_with_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["obs"], ["action"]), helper.make_node("Identity", ["v"], ["version"])],
        "g",
        [value("obs", TensorProto.FLOAT, ["N", 2])],
        [value("action", TensorProto.FLOAT, ["N", 2]), value("version", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([3], np.float32), "v")],
    )
    policy = mj.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert onnx.__version__
    policy(torch.ones(1, 2))["version"].zero_()
    assert policy(torch.ones(1, 2))["version"].item() == 3


# Predict, no space known


def _predictable(outputs: Any, answers: Any, inputs: Any = {"obs": (2,)}) -> Policy:
    return Policy(lambda _: answers, inputs, outputs)


@pytest.fixture(autouse=True)
def _any_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Policy` checks its agents in an evaluation; here there are none."""
    monkeypatch.setattr(
        Policy,
        "infer_arrays",
        lambda self, inputs, **_: self._answer(inputs, len(next(iter(inputs.values())))),
    )


OBS = np.zeros((3, 2), np.float32)


def test_names_and_dtypes_decide_how_an_output_is_read() -> None:
    assert _predictable({"logits": (3,)}, {"logits": [0, 5, 1]}).predict(OBS)[0].tolist() == [1, 1, 1]
    assert _predictable({"q_values": (3,)}, {"q_values": [0, 5, 1]}).predict(OBS[0])[0] == 1
    index = _predictable({"actions": ((), np.int64), "values": (1,)}, {"actions": 2, "values": [0.5]})
    assert index.predict(OBS)[0].tolist() == [2, 2, 2]
    mean = _predictable({"mean": (2,), "log_std": (2,)}, {"mean": [0.5, -9], "log_std": [1, 1]})
    assert mean.predict(OBS)[0].tolist() == [[0.5, -9]] * 3


def test_actions_of_an_unknown_space_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = _predictable({"action": (2,)}, {"action": [0.5, -9]})
    with caplog.at_level(logging.WARNING, "memojax"):
        policy.predict(OBS)
        policy.predict(OBS)
    (record,) = caplog.records
    assert "neither clipped nor scaled" in record.getMessage()
    assert "for_env" in record.getMessage()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"output": (3,)},
            r"no output is clearly the action; the model gives output: float32\[n, 3\].*for_env",
        ),
        ({"actions": (2,), "action": (2,)}, "several outputs may be the action: 'actions', 'action'"),
        ({"value": (1,)}, "no output is clearly the action"),
    ],
)
def test_an_unclear_output_raises(outputs: Any, message: str) -> None:
    with pytest.raises(errors.SpaceMismatchError, match=f"(?s){message}"):
        _predictable(outputs, dict.fromkeys(outputs, 0.0)).predict(OBS)


def test_observations_that_do_not_fit_name_both_sides() -> None:
    with pytest.raises(errors.SpaceMismatchError, match=r"(?s)float32\[5\]\n.*obs: float32\[n, 2\]"):
        _predictable({"logits": (3,)}, {"logits": [0, 5, 1]}).predict(np.zeros((3, 5), np.float32))
    with pytest.raises(errors.SpaceMismatchError, match=r"(?s)float32\[5\]\n.*obs: float32\[n, 2\]"):
        _predictable({"logits": (3,)}, {"logits": [0, 5, 1]}).predict(np.zeros(5, np.float32))


def test_parts_go_by_name() -> None:
    policy = Policy(lambda inputs: {"logits": inputs["goal"]}, {"obs/position": (2,), "goal": (2,)})
    rows = {"goal": np.array([[0, 1], [1, 0]], np.float32), "position": np.zeros((2, 2), np.float32)}
    assert policy.predict(rows)[0].tolist() == [1, 0]
    assert policy.predict({name: value[0] for name, value in rows.items()})[0] == 1


def test_masks_rule_actions_out_where_there_are_scores() -> None:
    allowed = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    assert _predictable({"logits": (3,)}, {"logits": [0, 5, 1]}).predict(OBS, action_masks=allowed)[
        0
    ].tolist() == [2, 1, 1]
    with pytest.raises(errors.SpaceMismatchError, match="is already the action"):
        _predictable({"actions": ((), np.int64)}, {"actions": 2}).predict(OBS, action_masks=allowed)
    with pytest.raises(errors.SpaceMismatchError, match="one bool per score"):
        _predictable({"logits": (3,)}, {"logits": [0, 5, 1]}).predict(OBS, action_masks=allowed[:, :2])


def test_draws_follow_the_scores_and_repeat() -> None:
    scores = {"logits": np.log([0.2, 0.8, 1e-9])}
    draw = lambda seed: (  # noqa: E731
        _predictable({"logits": (3,)}, scores)
        .for_env(Tiny(UNIT, spaces.Discrete(3)), seed=seed)
        .predict(np.zeros((400, 2), np.float32), deterministic=False)[0]
    )
    counts = np.bincount(draw(0), minlength=3)
    assert counts[2] == 0
    assert 0.1 < counts[0] / 400 < 0.3
    assert draw(0).tolist() == draw(0).tolist() != draw(1).tolist()


# Predict, for an environment


def test_an_environments_space_clips_and_scales() -> None:
    env = Tiny(UNIT, spaces.Box(-2, 2, (2,), np.float32))
    policy = _predictable({"action": (2,)}, {"action": [0.5, -9]})
    assert policy.for_env(env).predict(OBS[0])[0].tolist() == [0.5, -2]
    scaled = policy.for_env(env, action_transforms=[mj.ScaleAction(-2, 2)])
    assert scaled.predict(OBS[0])[0].tolist() == [1, -18]
    with pytest.raises(errors.SpaceMismatchError, match=r"Discrete\(4\)"):
        policy.for_env(Tiny(UNIT, spaces.Discrete(4)))


def test_observations_are_encoded_for_the_space_and_checked_against_it() -> None:
    seen: list[Any] = []

    def run(inputs: Any) -> Any:
        seen.append(inputs["obs"])
        return {"logits": [0, 1]}

    agent = Policy(run, {"obs": (4,)}, {"logits": (2,)}).for_env(Tiny(spaces.Discrete(4), spaces.Discrete(2)))
    agent.predict(np.array([2, 0]))
    assert seen[0].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert agent.predict(np.int64(3))[0] == 1
    with pytest.raises(errors.SpaceMismatchError, match=r"but float64\[2\] was given"):
        agent.predict(np.array([0.5, 1.5]))


def test_a_predictor_plays_as_evaluate_does() -> None:
    env = gym.make("Pendulum-v1")
    policy = mj.load(policies.bundled("pendulum_ppo"))
    wanted = mj.evaluate(policy, "Pendulum-v1", episodes=1, seed=3, max_steps=50)
    for agent in (policy.for_env(env), pickle.loads(pickle.dumps(policy)).for_env(env)):
        observation, _ = env.reset(seed=3)
        total = 0.0
        for _ in range(50):
            action, _ = agent.predict(observation)
            observation, reward, *_ = env.step(action)
            total += float(reward)
        assert total == pytest.approx(wanted.mean_return)


def test_a_predictor_acts_for_all_of_a_vector_environment() -> None:
    envs = gym.make_vec("Pendulum-v1", num_envs=3)
    agent = mj.load(policies.bundled("pendulum_ppo")).for_env(envs)
    observations, _ = envs.reset(seed=3)
    actions, state = agent.predict(observations)
    assert state is None
    assert envs.action_space.contains(actions)
    for row, observation in zip(actions, observations, strict=True):
        np.testing.assert_allclose(row, agent.predict(observation)[0], rtol=1e-4)
    envs.close()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_loop_over_a_vector_environment_plays_each_episode_as_if_alone(mode: str) -> None:
    policy = mj.load(policies.bundled("recurrent_lstm"))
    seen = [mj.SelectObs([0, 2])]
    limits: Any = {"vectorization_mode": "sync", "max_episode_steps": 12}
    how = {"autoreset_mode": gym.vector.AutoresetMode(mode)}
    envs = gym.make_vec("CartPole-v1", num_envs=3, vector_kwargs=how, **limits)
    agent = policy.for_env(envs, observation_transforms=seen)
    starts, logs = np.ones(3, bool), [[] for _ in range(3)]
    for step in itertools.islice(agent.steps(seed=0), 40):
        for i in np.flatnonzero(step.played):
            if starts[i]:
                logs[i].append([])
            logs[i][-1].append((step.observations[i], int(step.actions[i])))
        starts = np.where(step.played, step.ended, starts)
    episodes = [episode for log in logs for episode in log]
    assert len(episodes) >= 9
    single = policy.for_env(gym.make("CartPole-v1"), observation_transforms=seen)
    for episode in episodes:
        state = None
        for observation, action in episode:
            wanted, state = single.predict(observation[None], state, np.array([state is None]))
            assert int(wanted[0]) == action
    envs.close()


def test_a_loop_needs_a_vector_environment_that_resets_itself() -> None:
    policy = mj.load(policies.bundled("acrobot_ppo"))
    with pytest.raises(errors.SpaceMismatchError, match="vector environment"):
        next(policy.for_env(gym.make("Acrobot-v1")).steps())
    how = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
    envs = gym.make_vec("Acrobot-v1", num_envs=2, vectorization_mode="sync", vector_kwargs=how)
    with pytest.raises(errors.SpaceMismatchError, match="Disabled"):
        next(policy.for_env(envs).steps())


@pytest.mark.parametrize("tracked", [False, True])
def test_hidden_state_passes_through_and_resets(tracked: bool) -> None:
    policy: Any = mj.load(policies.bundled("recurrent_lstm"))
    policy = mj.RecurrentTracker.wrap(policy) if tracked else policy
    rows = np.full((2, 2), 0.3, np.float32)
    agent = pickle.loads(pickle.dumps(policy)) if tracked else policy
    state = None
    seen = []
    for start in ([True, True], [False, False], [False, True]):
        _, state = agent.predict(rows, state, np.array(start))
        states = [agent.states(i)["h_in"] for i in range(2)] if tracked else state[0]
        seen.append(np.array(states))
    assert not np.array_equal(seen[0], seen[1])
    np.testing.assert_allclose(seen[2][1], seen[0][1], rtol=1e-6)
    assert not np.allclose(seen[2][0], seen[0][0])
    assert (state is None) is tracked


def test_a_fake_policy_is_called_too() -> None:
    assert Policy(first)(np.zeros((2, 2), np.float32)).shape == (2, 2)


def test_a_reader_without_a_space_reads_agents_one_by_one() -> None:
    from memojax.inferer.predictor import _GivenReader

    for rows in (ROWS, {"obs": ROWS, "speed": ROWS[:, :2]}):
        reader = _GivenReader(rows, True)
        agents = (
            list(rows)
            if isinstance(rows, np.ndarray)
            else [{n: r[i] for n, r in rows.items()} for i in range(3)]
        )
        read = reader(agents)
        assert read.keys() == reader.rows.keys()
        for name, expected in reader.rows.items():
            np.testing.assert_array_equal(read[name], expected)
