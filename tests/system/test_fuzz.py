"""A few of the fuzzer's cases; `python -m tests.system.fuzz` runs any number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.doors import DOORS
from tests.system.guard import Guard
from tests.system.mutate import mutant

CASES = 200


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_mutants_give_an_answer_or_a_typed_error(part: int, tmp_path: Path) -> None:
    doors = list(DOORS)
    path = tmp_path / "mutant.onnx"
    bad = []
    with Guard() as guard:
        for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
            what, content = mutant(seed)
            path.write_bytes(content)
            outcome = guard.outcome(path, doors[seed % len(doors)])
            if outcome.bad:
                bad.append(f"seed {seed} ({what}): {outcome}")
    assert not bad, "\n".join(bad)


def test_a_mutant_depends_on_its_seed_alone() -> None:
    assert mutant(7) == mutant(7)
    assert len({mutant(seed)[1] for seed in range(20)}) > 10
