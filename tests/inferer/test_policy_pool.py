"""`PolicyPool`: rows of several weight sets in one call, each with its own policy's answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax as mj
from memojax import errors, policies
from memojax.inferer.pool_seats import PoolSeats

MODELS = Path(__file__).parents[1] / "models"
FILES = [
    policies.bundled("acrobot_ppo"),
    policies.bundled("recurrent_lstm"),
    MODELS / "keras_lstm.onnx",
    MODELS / "sb3_ppo_opset17.onnx",
]


def _variants(params: Any, count: int) -> list[Any]:
    """The same network with other weights."""
    rng = np.random.default_rng(5)
    scale = lambda leaf: (  # noqa: E731
        (leaf * rng.uniform(0.5, 1.5, leaf.shape)).astype(leaf.dtype) if leaf.dtype.kind == "f" else leaf
    )
    return [jax.tree.map(lambda leaf: scale(np.asarray(leaf)), params) for _ in range(count)]


@pytest.fixture
def pool() -> mj.PolicyPool:
    return mj.PolicyPool(policies.bundled("acrobot_ppo"), capacity=4)


ROWS = {"obs": np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_row_is_answered_as_its_own_policy_would(file: Path) -> None:
    typed = mj.TypedModel.from_model(file)
    pool = mj.PolicyPool(typed, capacity=3)
    weights = dict(zip("abc", [typed.params, *_variants(typed.params, 2)], strict=True))
    for name, params in weights.items():
        pool.add(name, params)
    rng = np.random.default_rng(1)
    rows = {spec.name: rng.standard_normal((7, *spec.shape)).astype(spec.dtype) for spec in typed.api.inputs}
    names = list("abacaba")
    answers = pool.infer_arrays(rows, names)
    assert list(answers) == [spec.name for spec in typed.api.outputs]
    singles = {name: mj.load(typed.with_params(params)) for name, params in weights.items()}
    for row, name in enumerate(names):
        wanted = singles[name].infer_arrays({key: value[row : row + 1] for key, value in rows.items()})
        for output, value in wanted.items():
            np.testing.assert_allclose(answers[output][row], value[0], rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_to_add_drop_or_swap(pool: mj.PolicyPool) -> None:
    pool.add("main")
    pool.preload([1, 2, 4, 8, 16])
    first, second, third = _variants(pool.params("main"), 3)
    with mj.forbid_compile():
        main = pool.infer_arrays(ROWS, ["main"] * 9)["logits"]
        pool.add("rival", first)
        rival = pool.infer_arrays(ROWS, ["rival"] * 9)["logits"]
        pool.swap("main", second)
        np.testing.assert_array_equal(pool.infer_arrays(ROWS, ["rival"] * 9)["logits"], rival)
        assert not np.allclose(pool.infer_arrays(ROWS, ["main"] * 9)["logits"], main)
        pool.drop("rival")
        pool.add("new", third)
        pool.swap("main", policies.bundled("acrobot_ppo"))
        np.testing.assert_array_equal(pool.infer_arrays(ROWS, ["main"] * 9)["logits"], main)
    assert pool.names == ["main", "new"]


def test_a_full_pool_grows(pool: mj.PolicyPool) -> None:
    pool.add("main")
    variants = _variants(pool.params("main"), 6)
    before = pool.infer_arrays(ROWS, ["main"] * 9)["logits"]
    for index, params in enumerate(variants):
        pool.add(index, params)
    assert (pool.capacity, len(pool)) == (8, 7)
    np.testing.assert_allclose(pool.infer_arrays(ROWS, ["main"] * 9)["logits"], before, rtol=1e-5)
    wanted = mj.load(mj.TypedModel.from_model(policies.bundled("acrobot_ppo")).with_params(variants[5]))
    np.testing.assert_allclose(
        pool.infer_arrays(ROWS, [5] * 9)["logits"], wanted.infer_arrays(ROWS)["logits"], rtol=1e-4, atol=1e-6
    )
    assert 4 in pool
    assert "4 of 8" not in repr(pool)


def test_the_rows_of_the_busiest_set_decide_the_plan(pool: mj.PolicyPool) -> None:
    for name in "abc":
        pool.add(name)
    pool.infer_arrays(ROWS, list("aaaaabbbc"))
    assert [plan.size for plan in pool.plans()] == [8]


def test_impossible_changes_change_nothing(pool: mj.PolicyPool) -> None:
    pool.add("main")
    before = pool.infer_arrays(ROWS, ["main"] * 9)["logits"]
    wrong = {name: np.zeros((1, 1), np.float32) for name in pool.params("main")}
    for change, message in (
        (lambda: pool.add("main"), "already in the pool"),
        (lambda: pool.swap("rival", None), "'rival' is not in the pool; the weight sets are: 'main'"),
        (lambda: pool.drop("rival"), "'rival' is not in the pool"),
        (lambda: pool.add("rival", wrong), "the model has"),
        (lambda: pool.add("rival", policies.bundled("pendulum_ppo")), "another network"),
        (lambda: pool.infer_arrays(ROWS, ["rival"] * 9), "'rival' is not in the pool"),
    ):
        with pytest.raises(errors.IncompatibleModelError, match=message):
            change()
    with pytest.raises(errors.InputShapeError, match="names 2 weight sets for 9 rows"):
        pool.infer_arrays(ROWS, ["main"] * 2)
    assert pool.names == ["main"]
    np.testing.assert_array_equal(pool.infer_arrays(ROWS, ["main"] * 9)["logits"], before)


def test_no_rows_give_no_rows(pool: mj.PolicyPool) -> None:
    assert pool.infer_arrays({"obs": np.zeros((0, 6), np.float32)}, [])["logits"].shape == (0, 3)
    assert pool.plans() == []


def test_models_that_mix_rows_or_are_exported_are_refused(tmp_path: Path) -> None:
    mixing = mj.TypedModel.from_function(
        lambda w, x: {"y": x["obs"] * w - x["obs"].mean(axis=0)}, np.float32(2), {"obs": ((2,), np.float32)}
    )
    with pytest.raises(errors.RowsMixError, match="a pool needs rows"):
        mj.PolicyPool(mixing)
    with pytest.raises(errors.InputError, match="capacity is a positive whole number, got 0"):
        mj.PolicyPool(policies.bundled("acrobot_ppo"), capacity=0)
    asset = mj.to_stablehlo(policies.bundled("acrobot_ppo"))
    with pytest.raises(errors.IncompatibleModelError, match="exported program"):
        mj.PolicyPool(asset)


def test_an_output_of_weights_alone_is_shared_by_the_pool() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["obs", "w"], ["action"]), helper.make_node("Exp", ["s"], ["std"])],
        "g",
        [value("obs", TensorProto.FLOAT, ["N", 2])],
        [value("action", TensorProto.FLOAT, ["N", 2]), value("std", TensorProto.FLOAT, [2])],
        [
            numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"),
            numpy_helper.from_array(np.zeros(2, np.float32), "s"),
        ],
    )
    pool = mj.PolicyPool(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    pool.add("main")
    pool.add("double", {"w": 2 * np.eye(2, dtype=np.float32)})
    answers = pool.infer_arrays({"obs": np.ones((2, 2), np.float32)}, ["double", "main"])
    assert answers["action"].tolist() == [[2, 2], [1, 1]]
    assert answers["std"].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(errors.IncompatibleModelError, match="output 'std' depends only on the weights"):
        pool.add("wide", {"s": np.ones(2, np.float32)})


def test_a_call_sees_old_weights_or_new_ones_while_another_thread_swaps(pool: mj.PolicyPool) -> None:
    ones, twos = (
        jax.tree.map(lambda leaf, scale=scale: np.asarray(leaf) * np.float32(scale), pool._typed.params)
        for scale in (1, 2)
    )
    pool.add("main", ones)
    pool.add("other", twos)
    answers = [pool.infer_arrays(ROWS, [name] * 9)["logits"] for name in ("main", "other")]
    done = threading.Event()

    def swap() -> None:
        for index in range(40):
            pool.swap("main", (twos, ones)[index % 2])
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    while not done.is_set():
        seen = pool.infer_arrays(ROWS, ["main"] * 9)["logits"]
        assert any(np.array_equal(seen, wanted) for wanted in answers)
    thread.join()


def test_each_set_of_a_random_model_draws_its_own_numbers() -> None:
    pool = mj.PolicyPool(MODELS / "sb3_sac_sampling.onnx", capacity=2)
    pool.add("a")
    pool.add("b")
    drawn = pool.infer_arrays({"obs": np.ones((4, 8), np.float32)}, list("abab"))
    assert len({row.tobytes() for row in drawn["action"]}) == 4
    assert len({row.tobytes() for row in drawn["deterministic_action"]}) == 1


# Members as inferers


@pytest.fixture
def league(pool: mj.PolicyPool) -> mj.PolicyPool:
    """Three sets, of which "half" and "other" act otherwise than "main"."""
    pool.add("main")
    half, other = _variants(pool.params("main"), 2)
    pool.add("half", half)
    pool.add("other", other)
    return pool


def test_a_member_answers_as_a_policy_of_its_own(league: mj.PolicyPool) -> None:
    for name in league.names:
        alone = mj.load(
            mj.TypedModel.from_model(policies.bundled("acrobot_ppo")).with_params(league.params(name))
        )
        wanted = alone.infer_arrays(ROWS)["logits"]
        np.testing.assert_allclose(league[name].infer_arrays(ROWS)["logits"], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(league[name](ROWS["obs"]), wanted, rtol=1e-4, atol=1e-5)
        actions, _ = league[name].predict(ROWS["obs"])
        np.testing.assert_array_equal(actions, wanted.argmax(1))
        answers = league[name].infer_batch({7: {"obs": ROWS["obs"][0]}})
        np.testing.assert_allclose(answers[7]["logits"], wanted[0], rtol=1e-4, atol=1e-5)
        batched = league[name].into_batched()
        batched.push(3, {"obs": ROWS["obs"][1]})
        np.testing.assert_allclose(batched.execute()[3]["logits"], wanted[1], rtol=1e-4, atol=1e-5)


def test_a_member_follows_its_set(league: mj.PolicyPool) -> None:
    member = league["main"]
    league.swap("main", league.params("half"))
    np.testing.assert_array_equal(member(ROWS["obs"]), league["half"](ROWS["obs"]))
    member.update_params(league.params("other"))
    np.testing.assert_array_equal(member(ROWS["obs"]), league["other"](ROWS["obs"]))
    league.drop("main")
    with pytest.raises(errors.IncompatibleModelError, match="'main' is not in the pool"):
        member(ROWS["obs"])
    with pytest.raises(errors.IncompatibleModelError, match="'main' is not in the pool"):
        league["main"]


def test_jax_arrays_give_jax_arrays(league: mj.PolicyPool) -> None:
    names = ["main", "half", "other"] * 3
    wanted = league.infer_arrays(ROWS, names)["logits"]
    found = league.infer_arrays({"obs": jax.numpy.asarray(ROWS["obs"])}, names)["logits"]
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(found, wanted)
    assert isinstance(league["main"](jax.numpy.asarray(ROWS["obs"])), jax.Array)
    none = league.infer_arrays({"obs": jax.numpy.zeros((0, 6))}, [])["logits"]
    assert isinstance(none, jax.Array)
    assert none.shape == (0, 3)
    with pytest.raises(errors.InputError, match="being traced"):
        jax.jit(lambda rows: league["main"].infer_arrays({"obs": rows}))(ROWS["obs"])


def test_hidden_state_is_kept_around_members() -> None:
    pool = mj.PolicyPool(policies.bundled("recurrent_lstm"))
    pool.add("main")
    tracked = mj.RecurrentTracker.wrap(pool["main"])
    alone = mj.RecurrentTracker.wrap(mj.load("recurrent_lstm"))
    rows = {"obs": np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)}
    for _ in range(3):
        found, wanted = tracked.infer_arrays(rows)["logits"], alone.infer_arrays(rows)["logits"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_seats_answer_each_agent_by_its_own_set(league: mj.PolicyPool) -> None:
    seats = PoolSeats(league)
    for agent, name in ((5, "half"), (9, "main")):
        seats.begin_agent(agent)
        seats.assign(agent, name)
    rows = {"obs": ROWS["obs"][:2]}
    found = seats.infer_arrays(rows, ids=[9, 5])["logits"]
    np.testing.assert_array_equal(found, league.infer_arrays(rows, ["main", "half"])["logits"])
    seats.end_agent(5)
    with pytest.raises(errors.UnknownAgentError, match="agent 5"):
        seats.infer_arrays(rows, ids=[9, 5])


def test_predict_answers_a_whole_pool_as_its_members_would() -> None:
    pool = mj.PolicyPool(policies.bundled("acrobot_ppo"), capacity=4)
    pool.add("a")
    pool.add("b", jax.tree.map(np.negative, pool.params("a")))
    names = ["a", "b", "b", "a", "b", "a", "a", "b", "a"]
    actions, state = pool.predict(ROWS["obs"], names)
    alone = {name: pool[name].predict(ROWS["obs"])[0] for name in "ab"}
    assert state is None
    np.testing.assert_array_equal(actions, [alone[name][i] for i, name in enumerate(names)])
    assert (alone["a"] != alone["b"]).any()
    assert pool.predict(ROWS["obs"][0], ["b"])[0] == alone["b"][0]
    with pytest.raises(errors.InputShapeError, match="one name per row"):
        pool.predict(ROWS["obs"], names[1:])
    with pytest.raises(errors.IncompatibleModelError, match="'c'"):
        pool.predict(ROWS["obs"], [*names[1:], "c"])


def test_predict_of_a_pool_keeps_hidden_state_by_row() -> None:
    pool = mj.PolicyPool(policies.bundled("recurrent_lstm"), capacity=2)
    pool.add("a")
    pool.add("b", _variants(pool.params("a"), 1)[0])
    rows = np.random.default_rng(1).standard_normal((5, 3, 2)).astype(np.float32)
    names, state, states = ["b", "a", "b"], None, dict.fromkeys("ab")
    for step, seen in enumerate(rows):
        starts = np.array([step == 0, step == 2, False])
        _, state = pool.predict(seen, names, state, starts)
        for name in "ab":
            states[name] = pool[name].predict(seen, states[name], starts)[1]
    for i, name in enumerate(names):
        for piece, wanted in zip(state or (), states[name] or (), strict=True):
            np.testing.assert_allclose(piece[i], wanted[i], rtol=1e-4, atol=1e-6)
