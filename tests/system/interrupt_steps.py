"""Where an exception can come up between two instructions, and how to be told of each instruction.

CPython runs signal handlers where a frame begins, where a loop jumps back, and where a call of C code has
ended; an allocation fails where an instruction makes or calls something. Between two instructions that do
neither, nothing can be raised. So no return of a Python function comes apart from the assignment before it,
and no release of a lock from its `with` block (https://bugs.python.org/issue29988). A trace function is
called there nevertheless, so `can_raise` leaves such places out.
"""

from __future__ import annotations

import ast
import dis
import functools
import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

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

MONITORED = sys.version_info >= (3, 12)
"""Whether `sys.monitoring` tells of instructions; a trace function is told of some functions only."""


class Steps:
    """The instructions of one frame: the one before, and whether a frame came back that it called by name."""

    __slots__ = ("before", "inlined")

    def __init__(self, before: int = -1) -> None:
        self.before = before
        self.inlined = False

    def reach(self, fault: type[BaseException], code: CodeType, at: int) -> bool:
        """Note the instruction at `at`; whether `fault` can come up before its end."""
        possible = can_raise(fault, code, self.before, at, self.inlined)
        self.before, self.inlined = at, False
        return possible


@functools.cache
def can_raise(fault: type[BaseException], code: CodeType, before: int, at: int, inlined: bool) -> bool:
    """Whether `fault` can come up between the instruction at `before` and the end of that at `at`.

    `inlined`: that at `before` called a Python function by its name. CPython runs it in the same loop, which
    looks for signals where the function begins, and not where it ends.
    """
    opname = opnames(code)[at]
    if opname not in _PLAIN:
        return at not in leaving(code)
    if before < 0 or inlined or not issubclass(fault, KeyboardInterrupt):
        return False
    # A signal handler's fault belongs to the instruction before, which must have the same handler as `at`.
    return opnames(code)[before] in _CHECKING and _handler(code, before) == _handler(code, at)


@functools.cache
def _handler(code: CodeType, at: int) -> int | None:
    """Where a fault of the instruction at `at` is handled in its frame."""
    entries = dis.Bytecode(code).exception_entries  # pyright: ignore[reportAttributeAccessIssue]
    return next((entry.target for entry in entries if entry.start <= at < entry.end), None)


@functools.cache
def opnames(code: CodeType) -> dict[int, str]:
    """The names of the instructions by offset."""
    return {one.offset: one.opname for one in dis.get_instructions(code)}


@functools.cache
def _resumed(code: CodeType) -> dict[int, int]:
    """Offsets of the instructions behind a RESUME, which gives no event, and of that RESUME."""
    names = opnames(code)
    return {after: at for at, after in itertools.pairwise(names) if names[at] == "RESUME"}


@functools.cache
def _with_lines(path: str) -> frozenset[int]:
    tree = ast.parse(Path(path).read_text())
    return frozenset(node.lineno for node in ast.walk(tree) if isinstance(node, ast.With))


@functools.cache
def leaving(code: CodeType) -> frozenset[int]:
    """Offsets of the exits of `with` blocks, where a signal handler's fault comes after the release."""
    lines = _with_lines(code.co_filename)
    entered: set[int] = set()
    found = set()
    for instruction in dis.get_instructions(code):
        line = instruction.positions and instruction.positions.lineno
        if line in lines:
            if line in entered:
                found.add(instruction.offset)
            elif instruction.opname in ("BEFORE_WITH", "LOAD_SPECIAL"):
                entered.add(line)
    return frozenset(found)


class Monitor:
    """Tells of each instruction that the calling thread runs in some code (CPython 3.12 or newer).

    An exception of `reached` comes up in that instruction.
    """

    _TOOL = 4

    def __init__(
        self, wanted: Callable[[CodeType], bool], reached: Callable[[FrameType, Steps, int], None]
    ) -> None:
        self._wanted = functools.cache(wanted)
        self._reached = reached
        self._steps: dict[FrameType, Steps] = {}
        self._thread = threading.get_ident()
        self._codes: set[CodeType] = set()

    def run(self, call: Callable[[], Any]) -> Any:
        """The result of `call`."""
        # The module is 3.12's; Pyright checks against 3.11.
        monitoring: Any = getattr(sys, "monitoring")
        events = monitoring.events
        callbacks = {
            events.PY_START: self._started,
            events.INSTRUCTION: self._instruction,
            events.PY_RETURN: self._left,
            events.PY_YIELD: self._left,
            events.PY_UNWIND: self._left,
            events.RAISE: self._raised,
        }
        self._local = lambda code: monitoring.set_local_events(
            self._TOOL, code, events.INSTRUCTION | events.PY_RETURN | events.PY_YIELD
        )
        monitoring.use_tool_id(self._TOOL, "memojax interrupts")
        try:
            for event, callback in callbacks.items():
                monitoring.register_callback(self._TOOL, event, callback)
            monitoring.set_events(self._TOOL, events.PY_START | events.PY_UNWIND | events.RAISE)
            return call()
        finally:
            self._thread = -1
            monitoring.set_events(self._TOOL, 0)
            for code in self._codes:
                monitoring.set_local_events(self._TOOL, code, 0)
            for event in callbacks:
                monitoring.register_callback(self._TOOL, event, None)
            monitoring.free_tool_id(self._TOOL)
            self._steps.clear()

    def _started(self, code: CodeType, at: int) -> None:
        if code not in self._codes and self._wanted(code):
            self._codes.add(code)
            self._local(code)

    def _instruction(self, code: CodeType, at: int) -> None:
        if threading.get_ident() != self._thread:
            return
        frame = sys._getframe(1)
        steps = self._steps.get(frame)
        if steps is None:
            steps = self._steps[frame] = Steps(_resumed(code).get(at, -1))
        self._reached(frame, steps, at)

    def _left(self, code: CodeType, at: int, value: Any) -> None:
        if code in self._codes and threading.get_ident() == self._thread:
            frame = sys._getframe(1)
            if self._steps.pop(frame, None) is not None:
                came_back(frame, self._steps)

    def _raised(self, code: CodeType, at: int, failure: BaseException) -> None:
        if code in self._codes and threading.get_ident() == self._thread:
            steps = self._steps.get(sys._getframe(1))
            if steps is not None:
                steps.before = -1  # on to the handler, without a look at signals


def came_back(frame: FrameType, steps: dict[FrameType, Steps]) -> None:
    """Note that a frame comes back to one that called it by its name."""
    caller = frame.f_back
    if caller is not None and caller in steps and frame.f_code.co_name in caller.f_code.co_names:
        steps[caller].inlined = True
