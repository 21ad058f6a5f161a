"""`Runtime.run_threaded` against `run`, frame by frame, in one process.

    python benchmarks/threads.py [--sizes 1 8 40] [--networks small large] [--seconds 4] [--rest MS]
    [--json FILE]

30 models: three kinds of policy, ten of each. Frames of the two ways take turns in pairs, and each pair
begins with the other way, so the machine's load and the caches are the same for both. Only the run is timed,
not the pushes. *Median* and *mean* are ratios of `run_threaded` over `run`; the mean contains the trials by
which `run_threaded` finds the faster way. *Quartiles* are those of the medians' ratio in twenty parts of the
frames. *Itself* is the same median for frames of `run` against frames of `run`, which tells what this machine
calls equal. *Threaded* is the share of the frames that ran on several threads. `--rest` pauses before each
frame, as a game does: threads then sleep, and caches hold other things.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import ForeignLoad, machine
from _models import Case, lstm, mlp
from rich.console import Console
from rich.table import Table
from runtime import Ours, kinds

SIZES = 1, 2, 3, 6, 8, 12, 18, 40
PARTS = 20
_WARM_FRAMES = 40


def large() -> list[Case]:
    """Networks with a few hundred microseconds of products in a call."""
    return [mlp([64, 512, 512, 8], "Tanh"), mlp([376, 512, 512, 17]), lstm(256)]


NETWORKS: dict[str, Callable[[], list[Case]]] = {"small": kinds, "large": large}


class Watched:
    """The pace of a runtime, with a count of the frames that it gave to threads."""

    def __init__(self, pace: Any) -> None:
        self._pace = pace
        self.frames, self.threaded = 0, 0

    def threads_pay(self, load: Any) -> bool:
        return self._pace.threads_pay(load)

    def note(self, load: Any, threaded: bool, seconds: float) -> None:
        self.frames += 1
        self.threaded += threaded
        self._pace.note(load, threaded, seconds)


def paired(ours: Ours, counts: list[int], ways: tuple[bool, bool], seconds: float, rest: float) -> Any:
    """Seconds of each frame of two ways, which take turns."""
    taken: tuple[list[float], list[float]] = [], []

    def frame(which: int) -> None:
        if rest:
            time.sleep(rest)
        ours.push(counts)
        started = time.perf_counter()
        ours.run(ways[which])
        taken[which].append(time.perf_counter() - started)

    for _ in range(_WARM_FRAMES):
        for which in (0, 1):
            frame(which)
    for frames in taken:
        frames.clear()
    gc.collect()
    gc.disable()
    try:
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(taken[0]) < 4 * PARTS:
            for which in (0, 1, 1, 0):
                frame(which)
    finally:
        gc.enable()
    return taken


def compared(base: list[float], other: list[float]) -> dict[str, float]:
    """Ratios of `other` over `base`."""
    step = len(base) // PARTS
    parts = [
        statistics.median(other[at : at + step]) / statistics.median(base[at : at + step])
        for at in range(0, step * PARTS, step)
    ]
    low, _, high = statistics.quantiles(parts, n=4)
    return {
        "median": statistics.median(other) / statistics.median(base),
        "mean": statistics.fmean(other) / statistics.fmean(base),
        "low": low,
        "high": high,
    }


def measured(ours: Ours, size: int, seconds: float, rest: float) -> dict[str, Any]:
    """Frames with `size` agents a model."""
    counts = [size] * len(ours.brains)
    ours.runtime._pace = watched = Watched(ours.runtime._pace)  # pyright: ignore[reportAttributeAccessIssue]
    load = ForeignLoad()
    base, other = paired(ours, counts, (False, True), seconds, rest)
    busy = load.cores()
    same = compared(*paired(ours, counts, (False, False), seconds / 2, rest))
    return {
        "size": size,
        "ms": statistics.median(base) * 1e3,
        **compared(base, other),
        "itself": same["median"],
        "threaded": watched.threaded / watched.frames,
        "frames": len(base),
        "foreign_cores": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="agents a model")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row")
    parser.add_argument("--rest", type=float, default=0.0, metavar="MS", help="pause before each frame")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    heads = "networks", "agents", "run, ms", "median", "quartiles", "mean", "itself", "threaded", "frames"
    table = Table(*heads, title="run_threaded / run, 30 models")
    rows = []
    for networks in given.networks:
        ours = Ours(NETWORKS[networks](), given.sizes)
        for size in given.sizes:
            row = measured(ours, size, given.seconds, given.rest / 1e3)
            rows.append({"networks": networks, **row})
            table.add_row(
                networks,
                str(size),
                f"{row['ms']:.2f}",
                f"{row['median']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['mean']:.3f}",
                f"{row['itself']:.3f}",
                f"{row['threaded']:.1%}",
                str(row["frames"]),
            )
    Console(width=140).print(table, machine())
    if given.json:
        data = {"machine": machine(), "rest_ms": given.rest, "rows": rows}
        given.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
