"""No lock stays held after Ctrl-C in a loop.

CPython 3.12 and 3.13 leave the jump back of a loop with a condition out of the table of handlers. 3.13 runs
signal handlers at such a jump. A `KeyboardInterrupt` there skips the release of a lock whose `with` block
is in the same function. So a loop with a condition must not be in such a block, but in its own function.
"""

from __future__ import annotations

import ast
import dis
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import memojax

PACKAGE = Path(str(memojax.__file__)).parent
LOCK = re.compile("lock|running|updating|accepting|switching|active")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _open_jumps(source: str) -> list[int]:
    """Lines with jumps back, inside of `with` blocks of locks, that no handler covers."""
    blocks = [
        range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.With)
        and any(LOCK.search(ast.unparse(item.context_expr)) for item in node.items)
    ]
    found = []
    for code in _codes(compile(source, "source", "exec")):
        entries = dis.Bytecode(code).exception_entries
        for instruction in dis.get_instructions(code):
            line = instruction.positions.lineno if instruction.positions else None
            if (
                instruction.opname == "JUMP_BACKWARD"
                and code.co_name != "<genexpr>"  # Its errors reach its reader, which has handlers.
                and any(line in block for block in blocks)
                and any(entry.start <= instruction.argval < entry.end for entry in entries)
                and not any(entry.start <= instruction.offset < entry.end for entry in entries)
            ):
                found.append(line or 0)
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_loop_leaves_a_lock_held(path: Path) -> None:
    assert not _open_jumps(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="seen in CPython 3.13")
def test_the_search_finds_such_a_loop() -> None:
    inside = (
        "def f(self, items):\n  with self._lock:\n    return [one for one in items if one not in self.known]"
    )
    assert _open_jumps(inside) == [3]
    assert not _open_jumps("def f(self, items):\n  with self._lock:\n    return g(items)")
