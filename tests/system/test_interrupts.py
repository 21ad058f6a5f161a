"""A fault at any line leaves batches, hidden state, runtimes, weights and caches as before the call or as
after it, never between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memojax import State

from .interrupt_cases import CASES
from .interrupts import Tracer, bad_points


@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_any_line_leaves_nothing_between(name: str) -> None:
    case = CASES[name]
    call, _ = case.scenario()
    tracer = Tracer(skip=case.skip)
    tracer.run(call)
    assert tracer.count > 0
    every = -(-2 * tracer.count // case.most)
    # `python -m tests.system.interrupts` leaves none out.
    bad = [wrong for _, wrong in bad_points(case.scenario, every=every, skip=case.skip) if wrong]
    assert not bad, "\n".join(bad)


def test_the_injector_finds_what_is_left_between() -> None:
    def scenario() -> tuple[Callable[[], None], Callable[[bool], None]]:
        seen: list[int] = []

        def call() -> None:
            seen.append(0)
            State.empty()  # a line of memojax between two that belong together
            seen.append(1)

        def check(interrupted: bool) -> None:
            assert seen in ([], [0, 1]), seen

        return call, check

    assert [bool(wrong) for _, wrong in bad_points(scenario)] == [True, False] * 2
