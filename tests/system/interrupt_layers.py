"""Interrupts of calls above an inferer: evaluations, predictions, sharded rows, free dimensions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper as oh

import memojax as mj

from ..evaluation_fakes import Policy, linear
from ..tiny_envs import Tiny
from .interrupt_case import COMPILING, World, case
from .interrupt_misses import MOST, SKIP, right
from .interrupt_plans import scaling
from .interrupt_trackers import lstm


@case(most=100, skip=("display/",))
def evaluate() -> World:
    policy, made = Policy(linear), list[Tiny]()
    wanted = _returns()

    def make() -> Tiny:
        made.append(Tiny())
        return made[-1]

    def call() -> Any:
        found = mj.evaluate(policy, make, episodes=4, num_envs=2)
        assert found.interrupted or found.returns.tolist() == wanted
        assert set(found.returns.tolist()) <= set(wanted)

    def check(interrupted: bool) -> None:
        assert not policy.alive, f"agents {policy.alive}"
        assert mj.evaluate(policy, make, episodes=4, num_envs=2).returns.tolist() == wanted

    return call, check


@functools.cache
def _returns() -> list[float]:
    return mj.evaluate(Policy(linear), Tiny, episodes=4, num_envs=2).returns.tolist()


@case(False, skip=COMPILING)
@case(True, name="predict, with hidden state by agent", skip=COMPILING)
def predict(tracked: bool) -> World:
    policy: Any = mj.RecurrentTracker.wrap(lstm()) if tracked else lstm()
    agent = mj.Predictor(policy)
    obs = np.array([[1, 2], [3, 4]], np.float32)
    starts = np.array([False, True])
    first, state = agent.predict(obs)
    given = None if state is None else tuple(np.array(piece) for piece in state)

    def call() -> Any:
        return agent.predict(obs, state, starts)

    def check(interrupted: bool) -> None:
        if state is not None and given is not None:
            assert all((now == then).all() for now, then in zip(state, given, strict=True)), "the caller's"
        action, after = call() if interrupted or not tracked else (None, None)
        if after is not None:
            other, wanted = mj.Predictor(lstm()).predict(obs, given, starts)
            assert (action == other).all()
            assert wanted is not None
            assert all((a == b).all() for a, b in zip(after, wanted, strict=True))
        if tracked:  # The second agent begins anew in each call; the first has made one step or two.
            steps = policy.states(1)["h_in"]
            assert np.allclose(steps, _first_states())
        agent.predict(obs, None if tracked else state, np.array([True, True]))
        again, _ = agent.predict(obs, None if tracked else given, np.array([True, True]))
        assert (again == first).all()

    return call, check


@functools.cache
def _first_states() -> np.ndarray:
    tracker: Any = mj.RecurrentTracker.wrap(lstm())
    tracker.infer_arrays({"obs": np.array([[1, 2], [3, 4]], np.float32)})
    return np.array(tracker.states(1)["h_in"])


@case("hit", skip=SKIP)
@case("miss", name="sharded rows that miss a plan", skip=SKIP, most=MOST)
@case("device", name="sharded rows of JAX", skip=SKIP)
@case("update", name="update sharded weights", skip=SKIP)
def sharded_rows(how: str) -> World:
    inferer = _sharded()
    if how == "miss":
        inferer.cache_clear()
    inferer.update_params(np.float32(2))

    def call() -> Any:
        if how == "update":
            return inferer.update_params(np.float32(3))
        return right(inferer, 5, how == "device")

    def check(interrupted: bool) -> None:
        factor = float(np.asarray(inferer.params))
        assert factor in ((2, 3) if interrupted else (3 if how == "update" else 2,))
        right(inferer, 5, factor=factor)
        right(inferer, 4, True, factor)
        inferer.update_params(np.float32(7))
        right(inferer, 5, factor=7)

    return call, check


@functools.cache
def _sharded() -> Any:
    inferer = mj.ShardedInferer(scaling(), [4, 5, 8], devices=jax.devices("cpu")[:2])
    right(inferer, 4, True)
    return inferer


@case(most=MOST, skip=SKIP)
def first_use_of_a_dimension() -> World:
    inferer = mj.MemoizingDynamicInferer(_free())

    def call(width: int = 3, n: int = 2) -> None:
        found = inferer.infer_arrays({"obs": np.ones((n, width), np.float32)})["out"]
        np.testing.assert_array_equal(found, np.full((n, width), 2.0))

    def check(interrupted: bool) -> None:
        call()
        call(4)
        call(3, 1)
        assert {(plan.size, plan.dims["w"]) for plan in inferer.plans()} == {(2, 3), (2, 4), (1, 3)}

    return call, check


@functools.cache
def _free() -> mj.TypedModel:
    value = oh.make_tensor_value_info
    graph = oh.make_graph(
        [oh.make_node("Add", ["obs", "obs"], ["out"])],
        "free",
        [value("obs", onnx.TensorProto.FLOAT, ["batch", "w"])],
        [value("out", onnx.TensorProto.FLOAT, ["batch", "w"])],
    )
    return mj.TypedModel.from_model(
        oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    )
