"""Time of `infer_arrays` by batch size, compared with ONNX Runtime, tract, jaxonnxruntime and `jax.jit`.

    python benchmarks/plans.py [--quick] [--autotune off|preload] [--cases MLP LSTM] [--sizes 1 8 32] [--json
    FILE] [--markdown FILE]

All contenders run turn by turn in one process, with prepared inputs; the `jax.jit` is written by hand. Ratios
are memojax over the other, so memojax is faster below 1. ONNX Runtime has its default threads unless a column
says otherwise. It runs a file whose batch is fixed to 1 row by row.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _contenders import BOUND, JAXORT, JIT, ORT, ORT1, TRACT, contenders
from _measure import ForeignLoad, Timing, as_dict, geometric_mean, interleaved, machine
from _models import SHARED, Case, built, bundled, shared
from rich.console import Console
from rich.progress import track
from rich.table import Table

import memojax
from memojax.lowering.row_probe import random_rows

SIZES = (1, 8, 32, 128, 512)
OTHERS = (ORT, ORT1, BOUND, TRACT, JIT, JAXORT)
MEMOJAX = "memojax"


def timed(
    case: Case, size: int, options: dict[str, Any], seconds: float, others: tuple[str, ...]
) -> dict[str, Any]:
    """Timings of one case at one batch size, and the absent contenders."""
    inferer = memojax.load(case.content, **options, preload=[size])
    rng = np.random.default_rng(0)
    rows = {spec.name: random_rows(rng, size, spec) for spec in inferer.typed.api.inputs}
    calls, absent = contenders(case, inferer, rows, others)
    load = ForeignLoad()
    # memojax is the base of the measured ratios, which are inverted below.
    timings = interleaved({MEMOJAX: lambda: inferer.infer_arrays(rows), **calls}, MEMOJAX, seconds)
    (plan,) = (info for info in inferer.plans() if info.size == size)
    return {
        "case": case.name,
        "size": size,
        "row_by_row": inferer.typed.fn.rule.kind == "vmap",
        "candidate": plan.candidate,
        "gain": plan.gain,
        "compile_ms": round(plan.compile_ms, 1),
        "foreign_cores": load.cores(),
        "absent": absent,
        "us": as_dict({name: _turned(timing) for name, timing in timings.items()}),
    }


def _turned(timing: Timing) -> Timing:
    """memojax over the other, from the measured inverse."""
    if (
        timing.ratio is None
        or timing.ratio_low is None
        or timing.ratio_high is None
        or timing.ratio_best is None
    ):
        return timing
    return replace(
        timing,
        ratio=1 / timing.ratio,
        ratio_low=1 / timing.ratio_high,
        ratio_high=1 / timing.ratio_low,
        ratio_best=1 / timing.ratio_best,
    )


def means(results: list[dict[str, Any]], which: str = "ratio") -> dict[str, float]:
    """Geometric mean of the ratios to each contender, over its cases."""
    found = {}
    for name in OTHERS:
        if ratios := [result["us"][name][which] for result in results if name in result["us"]]:
            found[name] = round(geometric_mean(ratios), 3)
    return found


def rows_of(results: list[dict[str, Any]], best: bool = False) -> list[list[str]]:
    """The table: one row per case and size; medians with quartiles, or the best rounds."""
    rows = []
    for result in results:
        us = result["us"]
        row = [
            result["case"],
            str(result["size"]),
            f"{us[MEMOJAX]['best' if best else 'median']:.1f}",
            result["candidate"],
        ]
        for name in OTHERS:
            other = us.get(name)
            if other and best:
                row.append(f"{other['ratio_best']:.2f}")
                continue
            row.append(
                f"{other['ratio']:.2f} ({other['ratio_low']:.2f}-{other['ratio_high']:.2f})" if other else "-"
            )
        rows.append(row)
    return rows


def markdown(results: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table for the README: ratios only."""
    head = ["network", "batch", "memojax, us", "plan", *OTHERS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows_of(results):
        lines.append(f"| {' | '.join([*row[:4], *(cell.split(' ')[0] for cell in row[4:])])} |")
    mean = means(results)
    cells = [f"**{mean[name]:.2f}**" if name in mean else "-" for name in OTHERS]
    lines.append(f"| **geometric mean** | | | | {' | '.join(cells)} |")
    versions = ", ".join(f"{key} {value}" for key, value in about.items())
    return "\n".join(
        [
            *lines,
            "",
            "memojax over the other: below 1, memojax is faster. Median of interleaved rounds on "
            f"{versions}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two networks, three sizes, short rounds: a smoke test"
    )
    parser.add_argument("--autotune", choices=("off", "preload"), default="off")
    parser.add_argument(
        "--cases", nargs="+", metavar="TEXT", help="only networks whose name contains one of these"
    )
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N")
    parser.add_argument("--contenders", nargs="+", choices=OTHERS, default=OTHERS)
    parser.add_argument("--seconds", type=float, default=None, help="per network and size")
    parser.add_argument(
        "--best",
        action="store_true",
        help="show the best rounds instead of medians, for a machine that others keep busy",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args()
    console = Console(width=180)
    cases = [*built(given.quick), *([] if given.quick else [*bundled(), *shared()])]
    if not given.quick and not SHARED.is_dir():
        console.print(f"{SHARED} does not exist, so real models are left out")
    if given.cases:
        cases = [case for case in cases if any(text.lower() in case.name.lower() for text in given.cases)]
    sizes = given.sizes or ((1, 8, 32) if given.quick else SIZES)
    seconds = given.seconds or (0.1 if given.quick else 1.5)
    options: dict[str, Any] = {} if given.autotune == "off" else {"autotune": given.autotune}
    pairs = [(case, size) for case in cases for size in sizes if size <= case.largest]
    results = []
    for case, size in track(pairs, "timing", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        results.append(timed(case, size, options, seconds, tuple(given.contenders)))
    about = machine()
    table = Table(
        "network", "batch", "memojax, us", "plan", *OTHERS, title=f"memojax over the other; {about}"
    )
    for row in rows_of(results, given.best):
        table.add_row(*row)
    mean = means(results, "ratio_best" if given.best else "ratio")
    table.add_row(
        "[bold]geometric mean", "", "", "", *(f"[bold]{mean.get(name, float('nan')):.2f}" for name in OTHERS)
    )
    console.print(table)
    busy = [result["foreign_cores"] for result in results if result["foreign_cores"] is not None]
    if busy:
        console.print(
            f"other processes kept {sum(busy) / len(busy):.2f} cores busy on average, {max(busy):.2f} at "
            "worst"
        )
    if given.json:
        data = {"machine": about, "options": options, "means": means(results), "results": results}
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(results, about))


if __name__ == "__main__":
    main()
