"""The plan engine's promises beside speed, each with its target: no spikes, cheap plans, changing weights.

    python benchmarks/engine.py [spike warm memory churn update foreground dictionary] [--json FILE]
    [--markdown FILE]

Each number is relative to another one from the same process: a median, a cold start, or a loop written by
hand. A busy machine changes ratios less than times. `warm`, `memory` and `churn` start separate processes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _contenders import session
from _measure import ForeignLoad, interleaved, machine
from _models import dictionary_policy, mlp
from rich.console import Console
from rich.table import Table

import memojax

NETWORK = (376, 256, 256, 17)
LARGE = (512, 1024, 1024, 1024, 64)
Row = tuple[str, str, str, str, bool]
"""Promise, measurement, target, unit, and whether the target is met."""


def _row(what: str, value: float, target: float, unit: str) -> Row:
    return what, f"{value:.3g}", f"at most {target:g}", unit, bool(value <= target)


def _rows(n: int, width: int = NETWORK[0]) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(n).standard_normal((n, width)).astype(np.float32)}


def _latencies(call: Callable[[int], Any], sizes: list[int], rest: float = 0.0) -> np.ndarray:
    """Seconds of each call, without Python's garbage collector, which would hit a random call."""
    taken = np.empty(len(sizes))
    gc.collect()
    gc.disable()
    try:
        for index, size in enumerate(sizes):
            started = time.perf_counter()
            call(size)
            taken[index] = time.perf_counter() - started
            if rest:
                time.sleep(rest)
    finally:
        gc.enable()
    return taken


def spike() -> list[Row]:
    """2,000 calls with sizes from 1..64 and no plans: `on_miss="pad"`, and the cost of an inline compile."""
    content = mlp(NETWORK).content
    sizes = np.random.default_rng(0).integers(1, 65, 2000).tolist()
    rows = {size: _rows(size) for size in set(sizes)}
    padded = memojax.load(content, on_miss="pad")
    taken = _latencies(lambda size: padded.infer_arrays(rows[size]), sizes, rest=0.002)[1:]
    inline = memojax.load(content)
    worst = _latencies(lambda size: inline.infer_arrays(rows[size]), sizes[:100])[1:].max()
    median = statistics.median(taken)
    return [
        _row("worst call after the first, cold, on_miss='pad'", taken.max() / median, 20, "x median"),
        _row("99th percentile", float(np.quantile(taken, 0.99)) / median, 4, "x median"),
        ("an inline compile, for comparison", f"{worst / median:.3g}", "", "x median", True),
    ]


_WARM = """
import sys, time
import numpy as np, jax, onnx, memojax
from memojax.xla.cpu_client import cpu_device
cpu_device()
load = memojax.load  # This imports what loading needs, in the cold process as in the warm one.
started = time.perf_counter()
policy = load(sys.argv[1], preload=range(1, 33), cache_dir=sys.argv[2])
policy.infer_arrays({"x": np.zeros((32, 376), np.float32)})
print(time.perf_counter() - started, policy.cache_info().disk_hits)
"""


def warm() -> list[Row]:
    """Time of a second process that preloads 32 sizes from `cache_dir`, over that of the first one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.onnx"
        file.write_bytes(mlp(NETWORK).content)
        cold, hits = _child(_WARM, str(file), folder + "/cache")
        seconds = [_child(_WARM, str(file), folder + "/cache") for _ in range(3)]
    assert hits == 0
    assert all(hits == 32 for _, hits in seconds)
    best = min(value for value, _ in seconds)
    return [
        _row(f"32 sizes from disk ({best:.2f} s, cold {cold:.1f} s)", best / cold, 1 / 8, "of the cold start")
    ]


_MEMORY = """
import ctypes, gc, sys
import numpy as np, memojax
def rss():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / (1 << 20)
count = int(sys.argv[2])
policy = memojax.load(sys.argv[1], preload=[1, 2, 3])
before = rss()
policy.preload(range(4, 4 + count))
print((rss() - before) / count)
"""


def memory() -> list[Row]:
    """Megabytes that each further size adds to the process, for a network with 10.8 MB of weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.onnx"
        file.write_bytes(mlp(LARGE).content)
        (each,) = _child(_MEMORY, str(file), "40")
    return [_row("memory of each further size, 512-1024x3-64", each, 0.7, "MB")]


_CHURN = """
import ctypes, gc, sys
import numpy as np, memojax
def rss():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / (1 << 20)
policy = memojax.load(sys.argv[1], maxsize=4)
for size in range(1, 2001):
    policy.infer_arrays({"x": np.zeros((size, 8), np.float32)})
    if size == 200:
        before = rss()
print(rss() - before, policy.cache_info().currsize)
"""


def churn() -> list[Row]:
    """Growth of the process during 2,000 sizes, of which the cache keeps four."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.onnx"
        file.write_bytes(mlp((8, 64, 64, 4)).content)
        grown, kept = _child(_CHURN, str(file))
    assert kept == 4
    return [_row("growth over 1,800 more sizes, 4 of them kept", grown, 50, "MB")]


def update() -> list[Row]:
    """Time of `update_params` over that of a call with one row."""
    content = mlp(NETWORK).content
    policy = memojax.load(content, preload=[1, 8, 32], weights="argument")
    rows = _rows(1)
    params = [{name: value * factor for name, value in policy.params.items()} for factor in (1.0, 0.5)]
    policy.update_params(params[0])
    misses = policy.cache_info().misses
    turn = iter(range(10**9))
    times = interleaved(
        {
            "update": lambda: policy.update_params(params[next(turn) % 2]),
            "call": lambda: policy.infer_arrays(rows),
        },
        "call",
        seconds=2,
    )
    return [
        _row("update_params, 0.17 M weights", times["update"].ratio or 0.0, 200, "x a call with one row"),
        _row("compiles that it costs", policy.cache_info().misses - misses, 0, "compiles"),
    ]


def foreground() -> list[Row]:
    """A 500 Hz loop of calls with one row, alone and during background compiles."""
    policy = memojax.load(mlp(NETWORK).content, preload=[1])
    rows = _rows(1)

    def loop(seconds: float, going: Callable[[], bool] = lambda: True) -> np.ndarray:
        taken, stop = [], time.perf_counter() + seconds
        gc.collect()
        gc.disable()
        try:
            while (started := time.perf_counter()) < stop and going():
                policy.infer_arrays(rows)
                taken.append(time.perf_counter() - started)
                time.sleep(0.002)
        finally:
            gc.enable()
        return np.array(taken)

    idle = loop(3)
    handle = policy.preload(range(2, 130), background=True)
    busy = loop(12, lambda: not handle.done())
    handle.cancel()
    handle.wait()
    p50, p99 = (float(np.quantile(busy, q) / np.quantile(idle, q)) for q in (0.5, 0.99))
    return [
        _row("99th percentile of calls during background compiles", p99, 3, "x idle"),
        ("their median, for comparison", f"{p50:.3g}", "", "x idle", True),
    ]


def dictionary() -> list[Row]:
    """`infer_batch` of 1,000 agents with three inputs, over ONNX Runtime with NumPy by hand or in a loop."""
    case, shapes = dictionary_policy()
    rng = np.random.default_rng(0)
    agents = {
        agent: {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for agent in range(1000)
    }
    policy, ort = memojax.load(case.content, preload=[1000]), session(case.content)

    def stacked() -> dict[int, dict[str, np.ndarray]]:
        given = {name: np.stack([state[name] for state in agents.values()]) for name in shapes}
        (y,) = ort.run(None, given)
        return {agent: {"y": row} for agent, row in zip(agents, y, strict=True)}

    def looped() -> dict[int, dict[str, np.ndarray]]:
        given = {name: np.empty((len(agents), *shape), np.float32) for name, shape in shapes.items()}
        for index, state in enumerate(agents.values()):
            for name in shapes:
                given[name][index] = state[name]
        (y,) = ort.run(None, given)
        answers = {}
        for index, agent in enumerate(agents):
            answers[agent] = {"y": y[index].copy()}
        return answers

    times = interleaved(
        {"ours": lambda: policy.infer_batch(agents), "stacked": stacked, "looped": looped}, "ours", seconds=3
    )
    return [
        _row(
            "infer_batch, 1,000 agents, 3 inputs",
            1 / (times["stacked"].ratio or 1),
            1.3,
            "x NumPy stack + ORT + unstack",
        ),
        _row("the same", 1 / (times["looped"].ratio or 1), 0.6, "x a loop over agents"),
    ]


PARTS: Mapping[str, Callable[[], list[Row]]] = {
    part.__name__: part for part in (spike, warm, memory, churn, update, foreground, dictionary)
}


def _child(code: str, *arguments: str) -> list[float]:
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    return [float(word) for word in output.split()]


def markdown(rows: list[Row]) -> str:
    """The table for the README."""
    lines = ["| promise | measured | target | in |", "|---|---:|---:|---|"]
    return "\n".join(
        [*lines, *(f"| {what} | {value} | {target} | {unit} |" for what, value, target, unit, _ in rows), ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", default=[], help=f"of {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    logging.getLogger("memojax").setLevel(logging.ERROR)
    load = ForeignLoad()
    rows = [row for name in (given.parts or PARTS) for row in PARTS[name]()]
    table = Table("promise", "measured", "target", "in", "met", title=str(machine()))
    for *cells, met in rows:
        table.add_row(*cells, "" if not cells[2] else "yes" if met else "[red]no")
    console = Console(width=140)
    console.print(table)
    if (busy := load.cores()) is not None:
        console.print(
            f"other processes (and children) kept {busy:.2f} cores busy; threads at the end: "
            f"{threading.active_count()}"
        )
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
