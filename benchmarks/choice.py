"""Times of the ways to run a plan (kernels; XLA's code with YNNPACK, in order, or with Eigen), and their fit.

    python benchmarks/choice.py [--cases TEXT] [--sizes 1 8 64 256 512] [--seconds S] --json FILE
    python benchmarks/choice.py --products [--cases TEXT] --json benchmarks/results/choice_products.json
    python benchmarks/choice.py --halves [--cases TEXT] --json benchmarks/results/choice_halves.json
    python benchmarks/choice.py --fit benchmarks/results/choice.json
    python benchmarks/choice.py --fit benchmarks/results/choice_products.json

All ways take turns in one process with ONNX Runtime. A row of the file has the third-fastest round of each
way in microseconds. It also has the operations of all convolutions of the call, and the channels of the
largest one.
`--products` compares YNNPACK with Eigen for networks of products alone. A row then has the operations of the
largest product, and the columns of the widest one.
`--halves` compares the other ways with two halves that run at the same time.
A row then has the operations of all products and convolutions of the call.
`--fit` prints the constants of `memojax/plans/choice.py`, and where each choice was slower by over 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _measure import geometric_mean, interleaved, machine
from _models import SHARED, Case, built, bundled, mlp

import memojax
from memojax.lowering.row_probe import random_rows
from memojax.plans.candidates import DEFAULT, EIGEN, EIGEN_CONVOLUTIONS, HALVES, KERNELS, ORDERED, PLAIN
from memojax.plans.choice import WIDE, all_work, convolution_work, product_work
from memojax.plans.compiler import PlanCompiler
from memojax.plans.halves import can_halve
from memojax.xla.cpu_client import cpu_device

SIZES = (1, 8, 64, 256, 512)
WAYS = (KERNELS, PLAIN, ORDERED, EIGEN_CONVOLUTIONS)
PRODUCT_SIZES = (16, 32, 64, 128, 256, 512)
HALF_SIZES = (2, 8, *PRODUCT_SIZES)
LAYERS = ((32, 128, 128, 8), (17, 256, 256, 6), (64, 384, 384, 8), (64, 512, 512, 8), (376, 400, 300, 17))
_SLOW_US = 120e3
_LEAST_WORK = 2e6
"""Operations below which a product is not worth a second thread."""

_MEDIUM = 2e6, 2e9
"""Operations from which, and up to which, two halves are compared with the whole."""

_COLUMNS = (128, 256, 512, 1024)
_GRID = [2.0**power * 1e6 for power in range(15)]

Row = dict[str, Any]


def measured(case: Case, size: int, seconds: float) -> Row:
    """One row of the file."""
    from _contenders import ORT, contenders  # `--fit` needs no other runtime

    inferer = memojax.load(case.content)
    typed = inferer.typed
    rng = np.random.default_rng(0)
    by_name = {spec.name: random_rows(rng, size, spec) for spec in typed.api.inputs}
    rows = [*by_name.values(), *([np.array([3, 7], np.uint32)] if typed.random else [])]
    compiler = PlanCompiler(typed, cpu_device())
    work, channels = convolution_work(compiler.trace(size, PLAIN))
    calls: dict[str, Any] = {}
    for way in WAYS if work else WAYS[:-1]:
        executable = compiler.lower(size, way).compile().executable
        if executable.candidate == way.name:
            calls[way.name] = lambda run=executable.run: run(rows)
    calls |= contenders(case, inferer, by_name, (ORT,))[0]
    timings = interleaved(calls, None, seconds, 9)
    us = {name: round(timing.best, 2) for name, timing in timings.items()}
    return {"case": case.name, "size": size, "work": work, "channels": channels, "us": us}


def products_measured(case: Case, size: int, seconds: float) -> Row:
    """One row of the file of products; ORT is left out, because its threads would change nothing here."""
    typed = memojax.load(case.content).typed
    rng = np.random.default_rng(0)
    rows = [random_rows(rng, size, spec) for spec in typed.api.inputs]
    rows += [np.array([3, 7], np.uint32)] if typed.random else []
    compiler = PlanCompiler(typed, cpu_device())
    residual = compiler.trace(size, PLAIN)
    work, columns = product_work(residual)
    runs = {way.name: compiler.lower(size, way).compile().executable.run for way in (PLAIN, EIGEN)}
    calls = {name: lambda run=run: run(rows) for name, run in runs.items()}
    timings = interleaved(calls, None, seconds, 15)
    us = {name: round(timing.median, 2) for name, timing in timings.items()}
    return {"case": case.name, "size": size, "work": work, "columns": columns, "us": us}


def halves_measured(case: Case, size: int, seconds: float) -> Row:
    """One row of the file of halves."""
    typed = memojax.load(case.content).typed
    rng = np.random.default_rng(0)
    rows = [random_rows(rng, size, spec) for spec in typed.api.inputs]
    rows += [np.array([3, 7], np.uint32)] if typed.random else []
    whole = PlanCompiler(typed, cpu_device(), cores=1)
    runs = {way.name: whole.lower(size, way).compile().executable.run for way in (DEFAULT, HALVES)}
    calls = {name: lambda run=run: run(rows) for name, run in runs.items()}
    timings = interleaved(calls, None, seconds, 15)
    us = {name: round(timing.median, 2) for name, timing in timings.items()}
    return {"case": case.name, "size": size, "all work": all_work(whole.trace(size, PLAIN)), "us": us}


def halves_fitted(rows: Sequence[Row]) -> float:
    """The operations from which halves take less time, with the least regret."""
    return min(_GRID, key=lambda limit: halves_regret(rows, limit))


def halves_regret(rows: Sequence[Row], limit: float) -> float:
    """Geometric mean of the chosen way's time over the faster one's."""
    return geometric_mean(_halves_lost(row, limit) for row in rows)


def _halves_lost(row: Row, limit: float) -> float:
    whole, halves = row["us"][DEFAULT.name], row["us"][HALVES.name]
    return (halves if row["all work"] >= limit else whole) / min(whole, halves)


def halves_report(rows: Sequence[Row]) -> str:
    """What the data of halves says."""
    limit = halves_fitted(rows)
    larger = [row for row in rows if row["all work"] >= limit]
    gain = geometric_mean(row["us"][HALVES.name] / row["us"][DEFAULT.name] for row in larger)
    lines = [
        f"halves from {limit / 1e6:g} MFLOP: {halves_regret(rows, limit):.3f} of the faster one's time",
        f"never: {halves_regret(rows, math.inf):.3f}; always: {halves_regret(rows, 0.0):.3f}",
        f"halves over the whole, {len(larger)} rows from there on: {gain:.2f}",
    ]
    lost = [(_halves_lost(row, limit), row) for row in rows]
    lines += [f"  {by:.2f} {row['case']} at {row['size']}" for by, row in lost if by > 1.1]
    return "\n".join(lines)


def products_fitted(rows: Sequence[Row]) -> tuple[float, int]:
    """The operations from which Eigen takes less time, and up to how many columns, with the least regret."""
    return min(itertools.product(_GRID, _COLUMNS), key=lambda limits: products_regret(rows, *limits))


def products_regret(rows: Sequence[Row], limit: float, most_columns: int) -> float:
    """Geometric mean of the chosen library's time over the faster one's."""
    return geometric_mean(_product_lost(row, limit, most_columns) for row in rows)


def _product_lost(row: Row, limit: float, most_columns: int) -> float:
    ynn, eigen = row["us"][PLAIN.name], row["us"][EIGEN.name]
    return (eigen if row["work"] >= limit and row["columns"] <= most_columns else ynn) / min(ynn, eigen)


def products_report(rows: Sequence[Row]) -> str:
    """What the data of products says."""
    limit, columns = products_fitted(rows)
    lines = [
        f"Eigen from {limit / 1e6:g} MFLOP, up to {columns} columns: "
        f"{products_regret(rows, limit, columns):.3f} of the faster one's time",
        f"always YNNPACK: {products_regret(rows, math.inf, columns):.3f}",
        f"always Eigen: {products_regret(rows, 0.0, 1 << 30):.3f}",
    ]
    lost = [(_product_lost(row, limit, columns), row) for row in rows]
    lines += [f"  {by:.2f} {row['case']} at {row['size']}" for by, row in lost if by > 1.1]
    return "\n".join(lines)


def regret(rows: Sequence[Row], limits: Mapping[bool, float]) -> float:
    """Geometric mean of the chosen way's time over the faster one's; narrow and wide count equally."""
    return geometric_mean(_regret(rows, limits, wide) for wide in limits if _with(rows, wide))


def fitted(rows: Sequence[Row]) -> dict[bool, float]:
    """The limits with the least regret, for narrow and for wide convolutions."""
    return {wide: min(_GRID, key=lambda limit: _regret(rows, {wide: limit}, wide)) for wide in (False, True)}


def _regret(rows: Sequence[Row], limits: Mapping[bool, float], wide: bool) -> float:
    return geometric_mean(_lost(row, limits[wide]) for row in _with(rows, wide))


def _with(rows: Sequence[Row], wide: bool) -> list[Row]:
    both = (PLAIN.name, EIGEN_CONVOLUTIONS.name)
    return [
        row for row in rows if all(way in row["us"] for way in both) and (row["channels"] >= WIDE) == wide
    ]


def _lost(row: Row, limit: float) -> float:
    ynn, eigen = row["us"][PLAIN.name], row["us"][EIGEN_CONVOLUTIONS.name]
    return (eigen if row["work"] >= limit else ynn) / min(ynn, eigen)


def report(rows: Sequence[Row]) -> str:
    """What the data says about both choices."""
    limits = fitted(rows)
    lines = [
        f"{'wide' if wide else 'narrow'}: Eigen from {limit / 1e6:g} MFLOP" for wide, limit in limits.items()
    ]
    lines.append(f"time of the chosen way over the faster one's: {regret(rows, limits):.3f}")
    for wide in limits:
        lines += [
            f"  {_lost(row, limits[wide]):.2f} {row['case']} at {row['size']}"
            for row in _with(rows, wide)
            if _lost(row, limits[wide]) > 1.1
        ]
    lines.append("kernels over XLA:")
    for size in sorted({row["size"] for row in rows}):
        ratios = {
            row["case"]: row["us"][KERNELS.name] / row["us"][PLAIN.name]
            for row in rows
            if row["size"] == size and KERNELS.name in row["us"]
        }
        if ratios:
            slower = {case: round(ratio, 2) for case, ratio in ratios.items() if ratio > 1.1}
            lines.append(
                f"  batch {size}: {geometric_mean(ratios.values()):.2f} over {len(ratios)}; {slower}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", metavar="TEXT")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N")
    parser.add_argument("--seconds", type=float, default=0.5, help="per network and size")
    parser.add_argument("--products", action="store_true", help="networks of products, without kernels")
    parser.add_argument("--halves", action="store_true", help="two halves at once, without kernels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows of earlier runs stay in it")
    parser.add_argument("--fit", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.fit:
        rows = json.loads(given.fit.read_text())["rows"]
        reports = {"columns": products_report, "all work": halves_report}
        print(next((text for key, text in reports.items() if key in rows[0]), report)(rows))
        return
    files = sorted(SHARED.glob("*.onnx")) if SHARED.is_dir() else []
    cases = [*built(), *bundled(), *(Case(path.stem, path.read_bytes()) for path in files)]
    if given.products:
        cases = [case for case in [*cases, *(mlp(sizes) for sizes in LAYERS)] if _multiplies_only(case)]
    if given.halves:
        cases += [mlp(sizes) for sizes in LAYERS]
        cases = [case for case in cases if can_halve(memojax.load(case.content).typed)]
    rows: list[Row] = []
    if given.json and given.json.exists():
        rows = json.loads(given.json.read_text())["rows"]
    known = {(row["case"], row["size"]) for row in rows}
    slowest: dict[str, float] = {}
    usual = PRODUCT_SIZES if given.products else HALF_SIZES if given.halves else SIZES
    for size in sorted(given.sizes or usual):
        for case in cases:
            if given.cases and not any(text.lower() in case.name.lower() for text in given.cases):
                continue
            if (case.name, size) in known or slowest.get(case.name, 0.0) * size > _SLOW_US:
                continue
            if given.products and _largest(case, size) < _LEAST_WORK:
                continue
            if given.halves and not _MEDIUM[0] <= _whole_work(case, size) <= _MEDIUM[1]:
                continue
            measure = products_measured if given.products else halves_measured if given.halves else measured
            row = measure(case, size, given.seconds)
            slowest[case.name] = max(row["us"].values()) / size
            rows.append(row)
            print(row, flush=True)
            if given.json:
                given.json.write_text(_text(rows))


def _whole_work(case: Case, size: int) -> float:
    return all_work(PlanCompiler(memojax.load(case.content).typed, cpu_device()).trace(size, PLAIN))


def _largest(case: Case, size: int) -> float:
    return product_work(PlanCompiler(memojax.load(case.content).typed, cpu_device()).trace(size, PLAIN))[0]


def _multiplies_only(case: Case) -> bool:
    """Whether a network has products, takes rows, and has no convolution."""
    typed = memojax.load(case.content).typed
    residual = PlanCompiler(typed, cpu_device()).trace(16, PLAIN)
    rows = typed.fn.rule.kind != "vmap"
    return rows and product_work(residual)[0] > 0 and convolution_work(residual)[0] == 0


def _text(rows: Sequence[Row]) -> str:
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    return f'{{"machine": {json.dumps(machine())},\n"rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
