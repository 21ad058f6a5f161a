"""Time per call of `infer_arrays` and `infer_batch` on three small policies, compared with other runtimes.

    python benchmarks/overhead.py [--quick] [--sizes 1 8 32 128 512] [--json FILE] [--markdown FILE]

The others are ONNX Runtime, tract and a `jax.jit` written by hand. `infer_batch` takes a dictionary of
agents; for ONNX Runtime, the same dictionary is stacked and unstacked by hand. All contenders run turn by
turn in one process. Ratios are memojax over the other, so memojax is faster below 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from _contenders import JIT, ORT, ORT1, TRACT, contenders, feeds, session
from _measure import ForeignLoad, interleaved, machine
from _models import POLICIES, Case, lstm, mlp
from rich.console import Console
from rich.table import Table

import memojax
from memojax.lowering.row_probe import random_rows

OTHERS = (ORT, ORT1, TRACT, JIT)
ARRAYS, BATCH, BY_HAND = "infer_arrays", "infer_batch", "stack + onnxruntime + unstack"


def cases() -> list[Case]:
    """A small and a larger MLP, and the bundled recurrent policy."""
    return [
        mlp((64, 64, 64, 8)),
        mlp((256, 256, 256, 16)),
        Case("recurrent_lstm", (POLICIES / "recurrent_lstm.onnx").read_bytes()),
        lstm(64),
    ]


def timed(case: Case, size: int, seconds: float) -> dict[str, Any]:
    """Timings of one policy at one batch size."""
    inferer = memojax.load(case.content, preload=[size])
    rng = np.random.default_rng(0)
    rows = {spec.name: random_rows(rng, size, spec) for spec in inferer.typed.api.inputs}
    agents = {index: {name: row[index].copy() for name, row in rows.items()} for index in range(size)}
    runtime = session(case.content)
    inputs, outputs = list(feeds(runtime, inferer, rows)), [info.name for info in runtime.get_outputs()]
    names = dict(zip(inputs, rows, strict=True))

    def by_hand() -> dict[int, dict[str, np.ndarray]]:
        stacked = {name: np.stack([state[names[name]] for state in agents.values()]) for name in inputs}
        results = runtime.run(None, stacked)
        return {
            agent: {name: result[row] for name, result in zip(outputs, results, strict=True)}
            for row, agent in enumerate(agents)
        }

    calls, absent = contenders(case, inferer, rows, OTHERS)
    load = ForeignLoad()
    arrays = interleaved({ARRAYS: lambda: inferer.infer_arrays(rows), **calls}, ARRAYS, seconds)
    batch = interleaved({BATCH: lambda: inferer.infer_batch(agents), BY_HAND: by_hand}, BATCH, seconds)
    ratios = {name: 1 / timing.ratio for name, timing in {**arrays, **batch}.items() if timing.ratio}
    spread = {
        name: (1 / t.ratio_high, 1 / t.ratio_low)
        for name, t in {**arrays, **batch}.items()
        if t.ratio_high and t.ratio_low
    }
    return {
        "case": case.name,
        "size": size,
        "us": {name: timing.median for name, timing in {**arrays, **batch}.items()},
        "ratio": ratios,
        "spread": spread,
        "absent": absent,
        "foreign_cores": load.cores(),
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """The table for the README: medians and ratios."""
    head = [
        "policy",
        "batch",
        f"{ARRAYS}, us",
        *(f"/ {name}" for name in OTHERS),
        f"{BATCH}, us",
        f"/ {BY_HAND}",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for result in results:
        ratios = {
            name: f"{result['ratio'][name]:.2f}" if name in result["ratio"] else "-"
            for name in (*OTHERS, BY_HAND)
        }
        us = result["us"]
        cells = [
            result["case"],
            result["size"],
            f"{us[ARRAYS]:.1f}",
            *(ratios[name] for name in OTHERS),
            f"{us[BATCH]:.1f}",
            ratios[BY_HAND],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short rounds, two sizes: a smoke test")
    parser.add_argument("--sizes", nargs="+", type=int, default=None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args()
    sizes = given.sizes or ((1, 8) if given.quick else (1, 8, 32, 128, 512))
    results = [timed(case, size, 0.1 if given.quick else 1.0) for case in cases() for size in sizes]
    table = Table(title=f"us per call, and memojax over the other (quartiles); {machine()}")
    for heading in ("policy", "batch", ARRAYS, *(f"/ {name}" for name in OTHERS), BATCH, f"/ {BY_HAND}"):
        table.add_column(heading, justify="right")
    for result in results:

        def ratio(name: str, result: dict[str, Any] = result) -> str:
            if name not in result["ratio"]:
                return "-"
            low, high = result["spread"][name]
            return f"{result['ratio'][name]:.2f} ({low:.2f}-{high:.2f})"

        us = result["us"]
        table.add_row(
            result["case"],
            str(result["size"]),
            f"{us[ARRAYS]:.1f}",
            *map(ratio, OTHERS),
            f"{us[BATCH]:.1f}",
            ratio(BY_HAND),
        )
    console = Console(width=180)
    console.print(table)
    busy = [result["foreign_cores"] for result in results if result["foreign_cores"] is not None]
    if busy:
        console.print(f"other processes kept {sum(busy) / len(busy):.2f} cores busy on average")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
