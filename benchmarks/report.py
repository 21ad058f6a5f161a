"""Writes the measurements (`benchmarks/results/*.json`) to docs/benchmarks.md and the README.

    python benchmarks/plans.py --json benchmarks/results/plans.json
    MEMOJAX_KERNELS_ISA=avx2 python benchmarks/plans.py --json benchmarks/results/plans_avx2.json
    MEMOJAX_KERNELS=0 python benchmarks/plans.py --json benchmarks/results/plans_pure.json
    python benchmarks/engine.py --json benchmarks/results/engine.json
    python benchmarks/runtime.py --json benchmarks/results/runtime.json
    python benchmarks/rollout.py --json benchmarks/results/rollout.json
    python benchmarks/cluster.py rows --json benchmarks/results/cluster_rows.json
    python benchmarks/cluster.py requests --json benchmarks/results/cluster_requests.json
    python benchmarks/report.py

The text goes between the `<!-- benchmarks -->` marks of the page, the `<!-- speed -->` marks of the README,
and the `<!-- cluster -->` marks of docs/clusters.md. A test compares them with the result files, so do not
edit them by hand.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
CLUSTERS = ROOT / "docs" / "clusters.md"

ORT = "ORT"
CONTENDERS = {
    ORT: "ONNX Runtime, its default threads",
    "ORT io-binding": "the same with io-binding",
    "ORT 1 thread": "ONNX Runtime, one thread",
    "tract": "tract, one plan per size (what cervo runs on)",
    "jax.jit": "`jax.jit` written by hand",
    "jaxonnxruntime": "jaxonnxruntime under `jax.jit`, where it runs",
}


SHORT = ("MLP 8-64-64-4", "MLP 376-256-256-17", "Nature CNN 84x84x4", "LSTM 64", "mjpg_g1")
"""Rows of the README's table: two MLPs, a convolutional and a recurrent network, a file fixed to batch 1."""


def summary() -> str:
    """The block for the README: five networks, and one sentence about all of them."""
    measured = json.loads((RESULTS / "plans.json").read_text())
    results = [result for result in measured["results"] if ORT in result["us"]]
    lines = _ratios([result for result in results if result["case"] in SHORT])
    loose = [result["us"][ORT]["ratio"] for result in results if not result["row_by_row"]]
    fixed = [
        1 / result["us"][ORT]["ratio"] for result in results if result["row_by_row"] and result["size"] >= 8
    ]
    mean = _geometric_mean(loose)
    verdict = "ONNX Runtime is faster on the whole" if mean > 1 else "memojax is faster on the whole"
    return "\n".join(
        [
            *lines,
            "",
            _prose(
                f"{verdict}: over {len(loose)} cases, memojax takes {mean:.2f} times as long (geometric "
                f"mean; {min(loose):.2f} to {max(loose):.2f}). With a file whose batch is fixed to 1, "
                f"memojax is {min(fixed):.0f} to {max(fixed):.0f} times faster from 8 rows on."
            ),
        ]
    )


def report() -> str:
    """The block for docs/benchmarks.md."""
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
            *_ways(),
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
    return _prose(f"{about['cores']} cores of an {about['cpu']}, Python {about['python']}, {versions}.")


def _prose(text: str, indent: str = "") -> str:
    """Text in lines of the pages' width; later lines begin with `indent`."""
    return textwrap.fill(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _calls(results: Sequence[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    """Time of `infer_arrays` over ONNX Runtime's, by network and size."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return [
        _prose(
            f"The table gives the time of `infer_arrays` (`memojax.load(file, preload=[size]{given})`) "
            "divided by the time of ONNX Runtime with its default threads, by batch size. Brackets hold "
            "microseconds of memojax. Below 1, memojax is faster."
        ),
        "",
        *_ratios(results),
        "",
        _prose(
            "ONNX Runtime can run a file whose batch is fixed to 1 only row by row; memojax uses `jax.vmap`."
        ),
    ]


def _ratios(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each network, a column for each size."""
    sizes = sorted({result["size"] for result in results})
    lines = [
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
    return lines


_SMALL_CALL = 20
"""Microseconds below which the fixed cost of a call (2 to 3) explains the ratio better than the kernels."""

CAUSES = {
    "call": "the fixed cost of a call",
    "threads": "ONNX Runtime gains more from its second thread (with one thread, it is the slower one)",
    "kernels": "the plan itself takes longer than even one thread of ONNX Runtime",
}
WAYS = {
    "plans": "memojax's kernels, AVX-512",
    "plans_avx2": "the same kernels, limited to AVX2 (`MEMOJAX_KERNELS_ISA=avx2`)",
    "plans_pure": "XLA's code alone (`MEMOJAX_KERNELS=0`)",
}
"""What the kernels may use, by result file. ONNX Runtime always uses all that the CPU has."""


def _causes(results: Sequence[dict[str, Any]]) -> list[str]:
    """The cases in which ONNX Runtime is faster, with the causes that the measured ratios show."""
    found: dict[str, dict[str, list[int]]] = {cause: {} for cause in CAUSES}
    for result in results:
        us = result["us"]
        if us.get(ORT, {}).get("ratio", 0) > 1.05:
            single = us["ORT 1 thread"]["ratio"]
            cause = (
                "call" if us["memojax"]["median"] < _SMALL_CALL else "threads" if single <= 1 else "kernels"
            )
            found[cause].setdefault(result["case"], []).append(result["size"])
    if not any(found.values()):
        return ["In no case is ONNX Runtime more than 5 % faster."]
    lines = ["Cases in which ONNX Runtime is more than 5 % faster, by cause:", ""]
    for cause, cases in found.items():
        if cases:
            listed = "; ".join(f"{name} at {', '.join(map(str, sizes))}" for name, sizes in cases.items())
            lines.append(_prose(f"- {CAUSES[cause]}: {listed}.", "  "))
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
                lines.append(
                    f"| {name}{suffix} | {_geometric_mean(ratios):.2f} | {max(ratios):.2f} | {len(ratios)} |"
                )
    return lines


def _ways() -> list[str]:
    """ONNX Runtime against the kernels, fewer of their instructions, and no kernels."""
    lines = ["| memojax over ONNX Runtime | geometric mean | worst | cases |", "|---|---:|---:|---:|"]
    for name, way in WAYS.items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        results = json.loads((RESULTS / f"{name}.json").read_text())["results"]
        ratios = [result["us"][ORT]["ratio"] for result in results if ORT in result["us"]]
        lines.append(f"| {way} | {_geometric_mean(ratios):.2f} | {max(ratios):.2f} | {len(ratios)} |")
    return lines


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


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
    lines = [
        _prose(
            "A `Runtime` of 30 models (two MLPs and an LSTM, ten of each) answers all agents in one run. The "
            "ratio is the time on one thread divided by the time of the loop over ONNX Runtime."
        ),
        "",
        "| agents per model | one thread, ms | with threads, ms | loop over ONNX Runtime, ms | ratio |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {size} | {_ms(runs[size], 'one')} | {_ms(runs[size], 'threads')} | {_ms(runs[size], 'ort')} "
            f"| {runs[size]['ort_ratio']:.2f} |"
            for size in at
        ),
        "",
        _prose(
            f"The next table plays {measured['count']:,} frames, each with 1 to 18 agents per model. A frame "
            "is *late* if it exceeds its budget by more than the slowest model takes. *Warm* starts with all "
            "plans. *Pad* starts with one plan per model and `on_miss='pad'`. *Cold* starts without plans; a "
            "plan then compiles in a frame that could answer nothing else."
        ),
        "",
        "| budget, ms | | frames late | p99 over budget, ms | agents answered |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in measured["frames"]:
        lines.append(
            f"| {row['budget']:.2f} | {row['contender']} | {row['late']:.1%} | {row['p99']:.3f} | "
            f"{row['answered']:.0%} |"
        )
    return lines


def _ms(run: dict[str, Any], contender: str) -> str:
    return f"{run['us'][contender] / 1e3:.2f}"


def _rollouts(results: Sequence[dict[str, Any]]) -> list[str]:
    return [
        _prose(
            "1,024 steps of N pendulums: the policy inside `lax.scan`, against NumPy physics with a call of "
            "ONNX Runtime per step. *Kernels* is `to_jax(kernels=True)`; *physics* is `lax.scan` over the "
            "environments alone:"
        ),
        "",
        "| environments | `lax.scan`, ms | kernels, ms | physics, ms | ONNX Runtime, ms | times faster | "
        "with kernels |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {r['envs']:,} | {r['scan_ms']:.1f} | {_one(r, 'kernels_ms')} | {_one(r, 'physics_ms')} | "
            f"{r['onnxruntime_ms']:.1f} | {r['ratio']:.1f} | {_one(r, 'kernels_ratio')} |"
            for r in results
        ),
    ]


def _one(result: dict[str, Any], name: str) -> str:
    """A number that older results do not have."""
    return f"{result[name]:.1f}" if name in result else "-"


def _write(path: Path, mark: str, block: str) -> None:
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    text, count = pattern.subn(lambda found: f"{found[1]}{block}\n{found[2]}", path.read_text())
    if count != 1:
        raise SystemExit(f"{path} needs one pair of <!-- {mark} --> and <!-- /{mark} --> lines")
    path.write_text(text)


def cluster() -> str:
    """The block for the page on clusters."""
    rows = json.loads((RESULTS / "cluster_rows.json").read_text())
    requests = json.loads((RESULTS / "cluster_requests.json").read_text())
    compiles = sum(result["compiles"] for result in rows["results"] + requests["results"])
    about = _machine(rows["machine"]).replace("\n", " ")
    lines = [
        _prose(
            f"{about} memojax and ONNX Runtime take turns in the same code, with one thread in each process. "
            f"memojax compiled {compiles} plans in all loops together. {requests.get('note', '')}".strip()
        ),
        "",
        "| network | actors | rows/s, memojax | ONNX Runtime | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in rows["results"]:
        ours, theirs = (one["rows_per_second"][name] for name in ("memojax", "ONNX Runtime"))
        name = f"| {one['network']} | {one['actors']} |"
        lines.append(f"{name} {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} |")
    lines += [
        "",
        "| network | replicas | requests/s, memojax | ONNX Runtime | ratio | p99 ms, memojax | ONNX Runtime "
        "|",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in requests["results"]:
        ours, theirs = (one["requests_per_second"][name] for name in ("memojax", "ONNX Runtime"))
        slow = [f"{one['p99_ms'][name]:.0f}" for name in ("memojax", "ONNX Runtime")]
        name = f"| {one['network']} | {one['actors']} |"
        lines.append(f"{name} {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} | {' | '.join(slow)} |")
    return "\n".join(lines)


def main() -> None:
    _write(CLUSTERS, "cluster", cluster())
    _write(PAGE, "benchmarks", report())
    _write(README, "speed", summary())


if __name__ == "__main__":
    main()
