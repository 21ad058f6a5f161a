"""Inject an exception at every line (or instruction) of memojax that a call runs, one run for each point.

    python -m tests.system.interrupts [--instructions] [--only NAME] [--list]

CPython runs signal handlers where a frame begins, where a loop jumps back, and where a call of C code has
ended; an allocation fails where an instruction makes or calls something. Between two instructions that do
neither, nothing can be raised. So no return of a Python function comes apart from the assignment before it,
and no release of a lock from its `with` block (https://bugs.python.org/issue29988). A trace function is
called there nevertheless. At the level of instructions the injector leaves such places out (`can_raise`), at
the level of lines the way out of a `with` block only: a line is harder than CPython.

From 3.12 on, CPython gives no events for the instructions of some functions, so only 3.11 runs all of them.
"""

from __future__ import annotations

import argparse
import ast
import dis
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import memojax

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
        self._steps: dict[FrameType, _Steps] = {}
        self._skip = tuple(f"{PACKAGE}/{name}" for name in skip)

    def run(self, call: Callable[[], Any]) -> Any:
        """The result of `call`, unless it reaches the point."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)
            self._steps.clear()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or name.startswith(self._skip or "\0"):
            return None
        if self._instructions:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._steps[frame] = steps = _Steps(self)
            return steps.step
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lasti not in leaving(frame.f_code):
            self.point(frame)
        return self._line

    def point(self, frame: FrameType) -> None:
        """Count a point; raise at the one that is wanted."""
        if self.count == self._at:
            self.where = f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
            raise self.fault(f"injected at {self.where}")
        self.count += 1

    def returned(self, frame: FrameType) -> None:
        """Note that a frame comes back to one that called it by its name."""
        del self._steps[frame]
        caller = frame.f_back
        if caller is not None and caller in self._steps and frame.f_code.co_name in caller.f_code.co_names:
            self._steps[caller].inlined = True


class _Steps:
    """The instructions of one frame."""

    def __init__(self, tracer: Tracer):
        self._tracer = tracer
        self._before = -1
        self.inlined = False

    def step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            if can_raise(self._tracer.fault, frame.f_code, self._before, frame.f_lasti, self.inlined):
                self._tracer.point(frame)
            self._before, self.inlined = frame.f_lasti, False
        elif event == "exception":
            self._before = -1  # on to the handler, without a look at signals
        elif event == "return":
            self._tracer.returned(frame)
        return self.step


_PLAIN = frozenset(
    {
        *("NOP", "CACHE", "PRECALL", "KW_NAMES", "PUSH_NULL", "POP_TOP", "COPY", "SWAP", "END_FOR", "IS_OP"),
        *("LOAD_CONST", "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_LOAD_FAST"),
        *("STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "DELETE_FAST", "LOAD_DEREF"),
        *("LOAD_CLOSURE", "STORE_DEREF", "COPY_FREE_VARS", "MAKE_CELL", "RETURN_VALUE", "RETURN_CONST"),
        *("JUMP_FORWARD", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_NONE"),
        *("POP_JUMP_FORWARD_IF_NOT_NONE", "PUSH_EXC_INFO", "POP_EXCEPT", "RERAISE", "RESUME"),
    }
)
"""Instructions that make nothing, call nothing and raise nothing by themselves."""

_CHECKING = frozenset({"RESUME", "JUMP_BACKWARD", "CALL", "CALL_KW", "CALL_FUNCTION_EX"})
"""Instructions after which CPython runs signal handlers."""


@functools.cache
def can_raise(fault: type[BaseException], code: CodeType, before: int, at: int, inlined: bool) -> bool:
    """Whether `fault` can come up between the instruction at `before` and the end of that at `at`.

    `inlined`: that at `before` called a Python function by its name. CPython runs it in the same loop, which
    looks for signals where the function begins, and not where it ends.
    """
    opname = _opnames(code)[at]
    if opname not in _PLAIN:
        return at not in leaving(code)
    if before < 0 or inlined or not issubclass(fault, KeyboardInterrupt):
        return False
    # A signal handler's fault belongs to the instruction before, which must have the same handler as `at`.
    return _opnames(code)[before] in _CHECKING and _handler(code, before) == _handler(code, at)


@functools.cache
def _handler(code: CodeType, at: int) -> int | None:
    """Where a fault of the instruction at `at` is handled in its frame."""
    entries = dis.Bytecode(code).exception_entries  # pyright: ignore[reportAttributeAccessIssue]
    return next((entry.target for entry in entries if entry.start <= at < entry.end), None)


@functools.cache
def _opnames(code: CodeType) -> dict[int, str]:
    return {one.offset: one.opname for one in dis.get_instructions(code)}


@functools.cache
def _with_lines(path: str) -> frozenset[int]:
    tree = ast.parse(Path(path).read_text())
    return frozenset(node.lineno for node in ast.walk(tree) if isinstance(node, ast.With))


@functools.cache
def leaving(code: CodeType) -> frozenset[int]:
    """Offsets where CPython treats a fault of a trace function unlike one of a signal handler.

    These are the exit of a `with` block, and from Python 3.12 on a jump back.
    """
    lines = _with_lines(code.co_filename)
    entered: set[int] = set()
    found = set()
    for instruction in dis.get_instructions(code):
        # A fault of a trace function passes by the handlers there, even in a comprehension, where a signal
        # handler's does not. tests/contracts/test_locks.py sees to the jumps where a signal handler's does.
        if sys.version_info >= (3, 12) and instruction.opname == "JUMP_BACKWARD":
            found.add(instruction.offset)
        line = instruction.positions and instruction.positions.lineno
        if line in lines:
            if line in entered:
                found.add(instruction.offset)
            elif instruction.opname in ("BEFORE_WITH", "LOAD_SPECIAL"):
                entered.add(line)
    return frozenset(found)


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
            if sys.version_info >= (3, 12):
                # A fault in a trace function ends events for instructions. One call later they are back, but
                # not for all functions: only CPython 3.11 runs every instruction.
                points(scenario()[0], **options)
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
