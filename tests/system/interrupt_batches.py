"""Interrupts of calls with batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import memojax as mj

from .interrupt_case import Versions, World, case, policy


def state(agent: int, version: int) -> dict[str, np.ndarray]:
    return {"a": np.array([agent, version], np.float32), "b": np.array([version, agent], np.float32)}


def right(agent: int, version: int) -> list[float]:
    return [10 * agent + version, 10 * version + agent]


def answers(responses: Mapping[int, Any]) -> dict[int, list[float]]:
    return {agent: response["out"].tolist() for agent, response in responses.items()}


def expected(versions: Versions) -> dict[int, list[float]]:
    return {agent: right(agent, version) for agent, version in versions.items()}


# --- Batcher
# -------------------------------------------------------------------------------------------------------


def batch_world(
    before: Versions, after: Versions, call: Callable[[mj.Batcher], Any], retry: bool, failed: bool = False
) -> World:
    """A batcher with the agents of `before`, and a `call` on it; `failed`: an execute failed at row 4."""
    batcher = mj.Batcher(policy(), capacity=len(before))
    for agent, version in before.items():
        batcher.push(agent, state(agent, version))
    if failed:
        broken = _breaking(batcher, 2)
        assert batcher.begun
        del broken

    def check(interrupted: bool) -> None:
        possible = [dict(after)] if not interrupted else [dict(before), dict(after)]
        waiting = batcher.agents
        assert len(waiting) == len(set(waiting)), f"twice: {waiting}"
        assert set(waiting) in [set(versions) for versions in possible], f"agents {waiting}"
        assert all(agent in batcher or failed for agent in waiting)
        if interrupted and retry and set(waiting) != set(after) - set(before) - set():
            try:
                call(batcher)
                possible = [dict(after)]
            except mj.errors.DuplicateIdError:
                assert set(waiting) == set(after), f"refused with {waiting}"
                possible = [dict(after)]
        batcher.push(99, state(99, 9))
        found = answers(batcher.execute(policy()))
        assert found in [expected({**versions, 99: 9}) for versions in possible], f"answers {found}"
        assert len(batcher) == 0
        batcher.push(1, state(1, 3))
        assert answers(batcher.execute(policy())) == expected({1: 3})

    return lambda: call(batcher), check


def _breaking(batcher: mj.Batcher, parts: int) -> Exception:
    """Execute with a model that raises after so many parts."""
    ran, real = [0], policy().infer_raw

    def infer_raw(view: Any) -> None:
        if ran[0] == parts - 1:
            raise RuntimeError("told to break")
        ran[0] += 1
        real(view)

    policy().infer_raw = infer_raw
    try:
        batcher.execute(policy())
    except RuntimeError as failure:
        return failure
    finally:
        del policy().infer_raw
    raise AssertionError


SIX = dict.fromkeys(range(6), 1)


def _changes() -> dict[str, tuple[Versions, Versions, Callable[[mj.Batcher], Any], bool]]:
    def push(agent: int, version: int, **options: Any) -> Callable[[mj.Batcher], Any]:
        return lambda batcher: batcher.push(agent, state(agent, version), **options)

    def extend(versions: Versions, **options: Any) -> Callable[[mj.Batcher], Any]:
        return lambda batcher: batcher.extend({a: state(a, v) for a, v in versions.items()}, **options)

    without = {agent: 1 for agent in range(6) if agent != 2}
    some = {4: 2, 5: 2, 7: 2, 8: 2}
    return {
        "push": (SIX, {**SIX, 6: 2}, push(6, 2), False),
        "push the first": ({}, {6: 2}, push(6, 2), False),
        "push in the place of another": (SIX, {**SIX, 3: 2}, push(3, 2, replace=True), False),
        "push after a failure": (SIX, {**SIX, 6: 2}, push(6, 2), True),
        "extend": (SIX, {**SIX, 7: 2, 8: 2}, extend({7: 2, 8: 2}), False),
        "extend over others": (SIX, {**SIX, **some}, extend(some, replace=True), False),
        "extend after a failure": (SIX, {**SIX, **some}, extend(some, replace=True), True),
        "discard": (SIX, without, lambda batcher: batcher.discard(2), False),
        "discard the last": (SIX, dict.fromkeys(range(5), 1), lambda batcher: batcher.discard(5), False),
        "discard after a failure": (SIX, without, lambda batcher: batcher.discard(2), True),
        "clear": (SIX, {}, lambda batcher: batcher.clear(), False),
        "clear after a failure": (SIX, {}, lambda batcher: batcher.clear(), True),
    }


for _name, (_before, _after, _call, _failed) in _changes().items():
    for _retry in (False, True):
        case(_before, _after, _call, _retry, _failed, name=f"{_name}{', again' * _retry}")(batch_world)


@case(False)
@case(True, name="execute after a failure")
def execute(failed: bool) -> World:
    batched = mj.Batched(policy())
    for agent in SIX:
        batched.push(agent, state(agent, 1))
    if failed:
        _breaking(batched._batcher, 2)

    def check(interrupted: bool) -> None:
        if interrupted:
            assert sorted(batched._batcher.agents) == sorted(SIX), "answers are lost"
            batched.push(77, state(77, 3))
            assert answers(batched.execute()) == expected({**SIX, 77: 3})
        assert len(batched) == 0
        batched.push(3, state(3, 5))
        assert answers(batched.execute()) == expected({3: 5})

    return batched.execute, check
