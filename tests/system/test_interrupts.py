"""After a fault at any line, batches, states, runtimes, weights and caches are as before or afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memojax import State

from .interrupt_cases import CASES
from .interrupts import Tracer, bad_points


@pytest.mark.parametrize("name", CASES)
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
