"""After a fault at any line, batches, states, runtimes, weights and caches are as before or afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memojax import State
from memojax.wrapper.agent_states import AgentStates

from .interrupt_cases import CASES
from .interrupts import FAULTS, Tracer, bad_points


@pytest.mark.parametrize(
    "name",
    # A point of a case with few of them compiles.
    [pytest.param(name, marks=[pytest.mark.slow] if case.most < 20 else []) for name, case in CASES.items()],
)
def test_a_fault_at_any_line_leaves_no_state_between(name: str) -> None:
    case = CASES[name]
    call, _ = case.scenario()
    tracer = Tracer(skip=case.skip)
    tracer.run(call)
    assert tracer.count > 0
    every = -(-2 * tracer.count // case.most)
    # `python -m tests.system.interrupts` runs all of them.
    bad = [wrong for _, wrong in bad_points(case.scenario, every=every, skip=case.skip) if wrong]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "name",
    [
        "push",
        "extend",
        "discard",
        "tracker batch",
        "begin an agent",
        "end an agent",
        "queue a new agent",
        "make a plan, evict one",
        "replace all plans",
        "swap a weight set of a pool",
    ],
)
def test_a_fault_at_any_instruction_leaves_no_state_between(name: str) -> None:
    case = CASES[name]
    call, _ = case.scenario()
    tracer = Tracer(skip=case.skip, instructions=True)
    tracer.run(call)
    # A prime number apart, so that the points are not those of one line; `--instructions` runs all of them.
    every = next(step for step in (1, 3, 7, 13, 23, 37) if tracer.count <= 60 * step or step == 37)
    options = {"skip": case.skip, "instructions": True}
    bad = [wrong for _, wrong in bad_points(case.scenario, every=every, **options) if wrong]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_after_a_call_belongs_to_the_call(fault: type[BaseException]) -> None:
    """A trace function that raises behind the last call of a `with` block would leave its lock held."""

    def scenario() -> tuple[Callable[[], object], Callable[[bool], None]]:
        states = AgentStates(())
        return lambda: states.unknown([1]), lambda interrupted: _check_free(states)

    found = list(bad_points(scenario, (fault,), instructions=True))
    assert len(found) > 10
    assert not any(wrong for _, wrong in found)


def _check_free(states: AgentStates) -> None:
    assert not states._lock.locked(), "the lock is held"


def test_the_injector_finds_a_state_between() -> None:
    def scenario() -> tuple[Callable[[], None], Callable[[bool], None]]:
        seen: list[int] = []

        def call() -> None:
            seen.append(0)
            State.empty()  # A line of memojax between two that belong together.
            seen.append(1)

        def check(interrupted: bool) -> None:
            assert seen in ([], [0, 1]), seen

        return call, check

    assert [bool(wrong) for _, wrong in bad_points(scenario)] == [True, False] * 2
