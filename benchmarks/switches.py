"""Counts voluntary context switches per call: how often `infer_arrays` waits for a thread or wakes one.

    python benchmarks/switches.py [--kernels on off] [--threads N] [--cases TEXT] [--sizes 1 8] [--calls 200]
    [--json FILE] [--most 0.05]

A plan that runs in order on the calling thread makes no switch. A plan with parallel kernels does, when their
threads go to sleep: `--threads 1` leaves the kernels one thread, so only XLA's switches count. The numbers
are the system's counts for this process (`getrusage`). Work of other processes does not count, because it
causes involuntary switches. Each number is the median over several blocks of calls. memojax chooses its
kernels at import, so each setting runs in a separate process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_BLOCKS = 7
_WARM_CALLS = 5
GOAL = 0.05


def switches(call: Callable[[], Any], calls: int, blocks: int = _BLOCKS) -> dict[str, float]:
    """Voluntary switches per call of `call`: by the calling thread, and by all threads of the process."""
    for _ in range(_WARM_CALLS):
        call()
    counts: list[tuple[int, int]] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(blocks):
            before = _voluntary()
            for _ in range(calls):
                call()
            after = _voluntary()
            counts.append((after[0] - before[0], after[1] - before[1]))
    finally:
        gc.enable()
    own, process = zip(*counts, strict=True)
    return {"caller": statistics.median(own) / calls, "process": statistics.median(process) / calls}


def _voluntary() -> tuple[int, int]:
    own = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    return own, resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def measured(path: Path, size: int, calls: int) -> dict[str, Any]:
    """Switches and plan candidate of one file at one batch size."""
    import numpy as np

    import memojax
    from memojax.lowering.row_probe import random_rows

    inferer = memojax.load(path, preload=[size])
    rng = np.random.default_rng(0)
    rows = {spec.name: random_rows(rng, size, spec) for spec in inferer.typed.api.inputs}
    found = switches(lambda: inferer.infer_arrays(rows), calls)
    (plan,) = inferer.plans()
    return {
        "case": path.stem,
        "size": size,
        "candidate": plan.candidate,
        "compile_ms": round(plan.compile_ms, 1),
        **{name: round(value, 3) for name, value in found.items()},
    }


def files(texts: Sequence[str] | None) -> list[Path]:
    """The shared models, or the bundled policies without them."""
    from _models import POLICIES, SHARED

    found = sorted((SHARED if SHARED.is_dir() else POLICIES).glob("*.onnx"))
    return [path for path in found if not texts or any(text.lower() in path.stem.lower() for text in texts)]


def run_here(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All files and sizes, with this process's kernels."""
    from memojax import kernels as own_kernels

    kernels = own_kernels.available() or "none"
    results = []
    for path in files(given.cases):
        for size in given.sizes:
            try:
                result = measured(path, size, given.calls)
            except Exception as cause:  # One failing file must not stop the others.
                result = {"case": path.stem, "size": size, "error": " ".join(str(cause).split())[:200]}
            results.append({"kernels": kernels, **result})
    return results


def run_apart(given: argparse.Namespace, kernels: str) -> list[dict[str, Any]]:
    """The same in a separate process, with kernels "on" or "off"."""
    environment = {name: value for name, value in os.environ.items() if name != "MEMOJAX_KERNELS"}
    if kernels == "off":
        environment["MEMOJAX_KERNELS"] = "0"
    if given.threads:
        environment["MEMOJAX_KERNELS_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, __file__, "--here", "--json", str(out), "--calls", str(given.calls)]
        command += ["--sizes", *map(str, given.sizes), *(["--cases", *given.cases] if given.cases else [])]
        subprocess.run(command, env=environment, check=True)
        return json.loads(out.read_text())


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line for each file; a column for each batch size, with and without kernels."""
    columns = list(dict.fromkeys((result["kernels"], result["size"]) for result in results))
    by_case: dict[str, dict[tuple[str, int], str]] = {}
    for result in results:
        cell = "error" if "error" in result else f"{result['process']:.2f} {result['candidate']}"
        by_case.setdefault(result["case"], {})[result["kernels"], result["size"]] = cell
    heads = [f"kernels: {kernels}, batch {size}" for kernels, size in columns]
    lines = [f"{'':28}" + "".join(f"{head:30}" for head in heads)]
    for case, cells in by_case.items():
        lines.append(f"{case:28}" + "".join(f"{cells.get(column, '-'):30}" for column in columns))
    for column in columns:
        counts = [r["process"] for r in results if (r["kernels"], r["size"]) == column and "process" in r]
        above = sum(count > GOAL for count in counts)
        lines.append(f"kernels: {column[0]}, batch {column[1]}: {above} of {len(counts)} above {GOAL}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--threads", type=int, metavar="N", help="of memojax's kernels (default: all cores)")
    parser.add_argument(
        "--cases", nargs="+", metavar="TEXT", help="only files whose name contains one of these"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8], metavar="N")
    parser.add_argument("--calls", type=int, default=200, help="calls per block")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--most", type=float, help="fail if a file switches more often per call")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        given.json.write_text(json.dumps(run_here(given)))
        return
    results = [result for kernels in given.kernels for result in run_apart(given, kernels)]
    print(table(results))
    if given.json:
        from _measure import machine

        given.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    if given.most is not None and any(result.get("process", 0.0) > given.most for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
