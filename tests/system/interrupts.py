"""Inject an exception at every line (or instruction) of memojax that a call runs, one run for each point.

    python -m tests.system.interrupts [--instructions] [--only NAME] [--list]

At the level of instructions, the injector leaves out the places where CPython raises nothing (`can_raise` in
`interrupt_steps.py`). At the level of lines, it leaves out only the way out of a `with` block: a line is
harder than CPython.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import memojax

from .interrupt_steps import MONITORED, Monitor, Steps, came_back, leaving, opnames

PACKAGE = str(Path(memojax.__file__).parent)
FAULTS = (KeyboardInterrupt, MemoryError)


class Tracer:
    """Counts the points of a call, and raises at one of them."""

    def __init__(
        self,
        at: int = -1,
        fault: type[BaseException] = KeyboardInterrupt,
        *,
        instructions: bool = False,
        skip: tuple[str, ...] = (),
    ):
        self.count = 0
        self.where = ""
        self.fault = fault
        self._at, self._instructions = at, instructions
        self._steps: dict[FrameType, Steps] = {}
        self._skip = tuple(f"{PACKAGE}/{name}" for name in skip)

    def run(self, call: Callable[[], Any]) -> Any:
        """The result of `call`, unless it reaches the point."""
        if self._instructions and MONITORED:
            return Monitor(self._wanted, self._reach).run(call)
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)
            self._steps.clear()

    def _wanted(self, code: CodeType) -> bool:
        return code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(self._skip or "\0")

    def _reach(self, frame: FrameType, steps: Steps, at: int) -> None:
        if steps.reach(self.fault, frame.f_code, at):
            self.point(frame)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self._wanted(frame.f_code):
            return None
        if self._instructions:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._steps[frame] = Steps()
            return self._step
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lasti not in _left_out(frame.f_code):
            self.point(frame)
        return self._line

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self._reach(frame, self._steps[frame], frame.f_lasti)
        elif event == "exception":
            self._steps[frame].before = -1  # on to the handler, without a look at signals
        elif event == "return":
            del self._steps[frame]
            came_back(frame, self._steps)
        return self._step

    def point(self, frame: FrameType) -> None:
        """Count a point; raise at the one that is wanted."""
        if self.where:
            return  # one fault for each call
        if self.count == self._at:
            self.where = f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
            raise self.fault(f"injected at {self.where}")
        self.count += 1


@functools.cache
def _left_out(code: CodeType) -> frozenset[int]:
    """Offsets where CPython treats a fault of a trace function unlike one of a signal handler.

    A fault of a trace function passes by the handlers at a jump back from Python 3.12 on, even in a
    comprehension. tests/contracts/test_locks.py sees to the jumps where a signal handler's does. It also
    passes by them at a `NOP`, as of a `try:`, which may be outside of the table of handlers. Nothing else is
    raised there.
    """
    left_out = {"NOP", "JUMP_BACKWARD"} if MONITORED else {"NOP"}
    return leaving(code).union(at for at, name in opnames(code).items() if name in left_out)


def points(call: Callable[[], Any], **options: Any) -> int:
    """The number of points of a call without a fault."""
    tracer = Tracer(**options)
    tracer.run(call)
    return tracer.count


def bad_points(
    scenario: Callable[[], tuple[Callable[[], Any], Callable[[bool], None]]],
    faults: tuple[type[BaseException], ...] = FAULTS,
    every: int = 1,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """Points where a fault leaves a state between before and after: (points so far, the fault there or "").

    `scenario` returns a fresh call, and the check to run afterwards, which is told whether the call was
    interrupted.
    """
    for fault in faults:
        at = 0
        while True:
            call, check = scenario()
            tracer = Tracer(at, fault, **options)
            try:
                tracer.run(call)
            except BaseException as failure:
                if not tracer.where:
                    raise
                interrupted, kept = (
                    True,
                    failure,
                )  # Kept, since a traceback keeps frames alive, as in a debugger.
            else:
                interrupted, kept = False, None  # No fault was injected, or no code has seen it.
            try:
                check(interrupted)
            except Exception as wrong:
                yield at, f"{fault.__name__} at {tracer.where}: {type(wrong).__name__}: {str(wrong)[:200]}"
            else:
                yield at, ""
            del kept
            if not tracer.where:
                break
            at += every


def main() -> None:
    from .interrupt_cases import CASES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instructions", action="store_true", help="every instruction, not every line")
    parser.add_argument("--only", help="cases whose names contain this")
    parser.add_argument("--list", action="store_true", help="the names of the cases")
    given = parser.parse_args()
    total, bad = 0, 0
    for name, case in CASES.items():
        if given.only and given.only not in name:
            continue
        if given.list:
            print(name)
            continue
        started, found = time.perf_counter(), [0, 0]
        for _, wrong in bad_points(case.scenario, skip=case.skip, instructions=given.instructions):
            found[0] += 1
            if wrong:
                found[1] += 1
                print(f"  {name}: {wrong}", flush=True)
        total, bad = total + found[0], bad + found[1]
        print(f"{name}: {found[0]} points, {found[1]} bad, {time.perf_counter() - started:.1f} s", flush=True)
    print(f"{total} points, {bad} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
