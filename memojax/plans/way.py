"""How a size is compiled, and a size between lowering and compiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .candidates import Candidate
from .hoist import Residual
from .plan import Plan


@dataclass(frozen=True)
class Lowered:
    """A traced and lowered size; `compile` finishes it."""

    size: int
    compile: Callable[[], Plan]

    def then(self, finish: Callable[[Plan], None]) -> Lowered:
        """A lowered size whose `compile` also calls `finish(plan)`."""

        def compile_and_finish() -> Plan:
            plan = self.compile()
            finish(plan)
            return plan

        return Lowered(self.size, compile_and_finish)


@dataclass(frozen=True)
class Way:
    """How a size is compiled.

    Attributes:
        whole: the trace, rewritten for the candidate.
        residual: the same in pieces or in order, as it is compiled.
        candidate: the candidate, with the options that were chosen for this trace.
        ordered: whether groups of steps run in order; a size that fails so is tried without groups.
        chosen: whether its options are our choice, because the candidate was the default.
        rows: number of rows that the executable runs: all, or half of them.
        in_halves: whether it runs twice, on two devices at the same time.
    """

    whole: Residual
    residual: Residual
    candidate: Candidate
    ordered: bool
    chosen: bool
    rows: int
    in_halves: bool = False
