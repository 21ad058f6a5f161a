"""Write what was measured (`benchmarks/results/*.json`) into the README, between its `<!-- benchmarks -->` marks.

    python benchmarks/plans.py --json benchmarks/results/plans.json
    python benchmarks/engine.py --json benchmarks/results/engine.json
    python benchmarks/runtime.py --json benchmarks/results/runtime.json
    python benchmarks/rollout.py --json benchmarks/results/rollout.json
    python benchmarks/report.py

A test compares the README with these files, so that neither is changed by hand.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)

ORT = "ORT"
CONTENDERS = {
    ORT: "ONNX Runtime, its default threads",
    "ORT io-binding": "the same with io-binding",
    "ORT 1 thread": "ONNX Runtime, one thread",
    "tract": "tract, one plan per size (what cervo runs on)",
    "jax.jit": "`jax.jit` written by hand",
    "jaxonnxruntime": "jaxonnxruntime under `jax.jit`, where it runs",
}


def report() -> str:
    """The block for the README."""
    names = ("plans", "engine", "runtime", "rollout")
    plans, engine, runtime, rollout = (json.loads((RESULTS / f"{name}.json").read_text()) for name in names)
    return "\n".join(
        [
            _machine(plans["machine"]),
            "",
            *_calls(plans["results"], plans["options"]),
            "",
            *_causes(plans["results"]),
            "",
            *_means(plans["results"]),
            "",
            *_promises(engine["results"]),
            "",
            *_frames(runtime),
            "",
            *_rollouts(rollout["results"]),
        ]
    )


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {about[name]}" for name in ("jax", "onnxruntime", "numpy"))
    return f"{about['cores']} cores of an {about['cpu']}, Python {about['python']}, {versions}."


def _calls(results: Sequence[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    """Time of `infer_arrays` over ONNX Runtime's, by network and size."""
    sizes = sorted({result["size"] for result in results})
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    lines = [
        f"Time of `infer_arrays` (`memojax.load(file, preload=[size]{given})`) over that of ONNX Runtime with its default threads; below 1, "
        "memojax is faster (in brackets: microseconds).",
        "",
        f"| network \\ batch | {' | '.join(map(str, sizes))} |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name in dict.fromkeys(result["case"] for result in results):
        cells = []
        for size in sizes:
            found = next(
                (result["us"] for result in results if (result["case"], result["size"]) == (name, size)), None
            )
            ratio = found and found.get(ORT, {}).get("ratio")
            cells.append(f"{ratio:.2f} ({found['memojax']['median']:,.0f})" if found and ratio else "")
        fixed = any(result["row_by_row"] for result in results if result["case"] == name)
        lines.append(f"| {name}{' (batch fixed to 1)' if fixed else ''} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "A file whose batch is fixed to 1 can be run by ONNX Runtime row by row only; memojax maps it over the rows.",
    ]


_SMALL_CALL = 60
"""Microseconds up to which what a call costs by itself, some 5 to 10, is told from what it computes."""

_ABOUT = 1.15
CAUSES = {
    "call": "a call's own cost, which a `jax.jit` by hand has too, over ONNX Runtime's smaller one",
    "threads": "one core against two: ONNX Runtime with one thread takes as long",
    "kernels": "XLA's kernels, also against one thread of ONNX Runtime; a `jax.jit` by hand is no faster",
}


def _causes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Where ONNX Runtime is the faster one, and which of the measured ratios says why."""
    found: dict[str, dict[str, list[int]]] = {cause: {} for cause in CAUSES}
    for result in results:
        us = result["us"]
        if us.get(ORT, {}).get("ratio", 0) > 1.05:
            single = us["ORT 1 thread"]["ratio"]
            cause = (
                "call"
                if us["memojax"]["median"] < _SMALL_CALL
                else "threads"
                if single <= _ABOUT
                else "kernels"
            )
            found[cause].setdefault(result["case"], []).append(result["size"])
    lines = ["Where ONNX Runtime is more than 5 % faster, and why:", ""]
    for cause, cases in found.items():
        if cases:
            listed = "; ".join(f"{name} at {', '.join(map(str, sizes))}" for name, sizes in cases.items())
            lines.append(f"- {CAUSES[cause]}: {listed}.")
    return lines


def _means(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| memojax over | geometric mean | worst | cases |", "|---|---:|---:|---:|"]
    for key, name in CONTENDERS.items():
        for selection, suffix in (
            (results, ""),
            ([one for one in results if not one["row_by_row"]], ", without files of batch 1"),
        ):
            ratios = [result["us"][key]["ratio"] for result in selection if key in result["us"]]
            if ratios and (not suffix or key == ORT):
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                lines.append(f"| {name}{suffix} | {mean:.2f} | {max(ratios):.2f} | {len(ratios)} |")
    return lines


def _promises(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        "| promise | measured | target |",
        "|---|---:|---:|",
        *(f"| {what} | {value} {unit} | {target} |" for what, value, target, unit, _ in rows),
    ]


def _frames(measured: dict[str, Any]) -> list[str]:
    """A `Runtime` of 30 models: everything at once, and within a budget."""
    runs = {run["size"]: run for run in measured["runs"]}
    at = [size for size in (1, 8, 18) if size in runs]
    whole = ", ".join(
        f"{runs[size]['us']['one'] / 1e3:.2f} ms ({runs[size]['threaded_ratio']:.2f} of that with threads, {runs[size]['ort_ratio']:.2f} of "
        f"a loop over ONNX Runtime)"
        for size in at
    )
    lines = [
        f"A `Runtime` of 30 models (two MLPs and an LSTM, ten of each) answers {', '.join(map(str, at))} agents per model in {whole}. "
        f"{measured['count']:,} frames with 1 to 18 agents per model, other numbers in each; *late* is over budget by more than the "
        "slowest model takes; *warm* has all plans, *pad* begins with one per model and `on_miss='pad'`, *cold* with none (where nothing else "
        "can be answered, one then compiles in the frame):",
        "",
        "| budget, ms | | frames late | p99 over budget, ms | agents answered |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in measured["frames"]:
        lines.append(
            f"| {row['budget']:.2f} | {row['contender']} | {row['late']:.1%} | {row['p99']:.3f} | {row['answered']:.0%} |"
        )
    return lines


def _rollouts(results: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "1,024 steps of N pendulums, the policy inside `lax.scan`, against the same in NumPy with ONNX Runtime called at each step:",
        "",
        "| environments | `lax.scan`, ms | ONNX Runtime, ms | times faster |",
        "|---:|---:|---:|---:|",
        *(
            f"| {r['envs']:,} | {r['scan_ms']:.1f} | {r['onnxruntime_ms']:.1f} | {r['ratio']:.1f} |"
            for r in results
        ),
    ]


def main() -> None:
    text, count = _BLOCK.subn(lambda found: f"{found[1]}{report()}\n{found[2]}", README.read_text())
    if count != 1:
        raise SystemExit(f"{README} needs one pair of <!-- benchmarks --> and <!-- /benchmarks --> lines")
    README.write_text(text)


if __name__ == "__main__":
    main()
