"""Mutated models through every door, by hand, for as long as you like.

    python -m tests.system.fuzz --cases 20000 --seed 0

The seed alone makes a case, so `--cases 1 --seed N` is case N of any run. Files with a bad outcome are kept
in `--keep`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .doors import DOORS
from .guard import Guard, Outcome
from .mutate import mutant


def cases(count: int, seed: int, guard: Guard, folder: Path) -> Iterator[tuple[int, str, bytes, Outcome]]:
    """(seed, mutation, content, outcome) of each case; each has one door, since most stop at loading."""
    doors = list(DOORS)
    path = folder / "mutant.onnx"
    for case in range(seed, seed + count):
        what, content = mutant(case)
        path.write_bytes(content)
        # A file with an answer goes through the other doors as well, and is compared with ONNX Runtime.
        first = guard.outcome(path, doors[case % len(doors)])
        yield case, what, content, first
        if first.kind == "right":
            for door in doors:
                if door != first.door:
                    yield case, what, content, guard.outcome(path, door)
            compared = guard.outcome(path, "compare")
            if compared.kind == "wrong":  # Other faults there are ONNX Runtime's own.
                yield case, what, content, compared


def main() -> int:
    """Run cases, print bad outcomes at once and counts at the end; return 1 if there was a bad one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time for one door")
    parser.add_argument("--keep", type=Path, help="folder for the files of bad outcomes")
    options = parser.parse_args()
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, Guard(options.seconds) as guard:
        for case, what, content, outcome in cases(options.cases, options.seed, guard, Path(folder)):
            count[outcome.kind] += 1
            if outcome.bad:
                print(f"seed {case} ({what}): {outcome}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{case}_{outcome.door}.onnx").write_bytes(content)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(count.items())))
    return 1 if any(outcome in count for outcome in ("wrong", "foreign", "hang", "memory", "crash")) else 0


if __name__ == "__main__":
    raise SystemExit(main())
