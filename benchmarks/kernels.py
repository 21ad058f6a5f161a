"""How near the kernels come to what a core can do: products and convolutions against its own peak.

    python benchmarks/kernels.py [--json FILE]

The peak is that of multiply-adds of vectors that stay in registers. Each row of the table is one layer with
bias and relu on one thread, as a plan of such a file runs it, from Python; the last column is without the
time of an empty call. The best of many rounds counts, since other work on the machine only makes rounds
slower. Rounds of the layer and of the peak take turns, since the clock of the core changes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["MEMOJAX_KERNELS_THREADS"] = "1"

import numpy as np
from _models import conv_layer, dense_layer

import memojax
from memojax.kernels.direct import Direct, Large, Slot, caller
from memojax.kernels.library import opened, why_not
from memojax.kernels.program import Program
from memojax.lowering.row_probe import random_rows

DENSE = [(8, 64), (128, 64), (8, 256), (32, 256), (512, 256), (8, 512), (64, 512), (8, 1024), (32, 1024)]
DENSE += [(512, 1024), (1, 1024)]
"""Rows, and the width of a square layer: the table of `kernels.md`, and what policies have."""

CONVOLUTIONS = [
    ("84x64, 3 -> 16, 8x8 by 4", (3, 64, 84), 16, 8, 4),
    ("20x15, 16 -> 32, 4x4 by 2", (16, 15, 20), 32, 4, 2),
    ("84x84, 3 -> 32, 8x8 by 4", (3, 84, 84), 32, 8, 4),
    ("84x84, 4 -> 32, 8x8 by 4", (4, 84, 84), 32, 8, 4),
    ("20x20, 32 -> 64, 4x4 by 2", (32, 20, 20), 64, 4, 2),
    ("9x9, 64 -> 64, 3x3", (64, 9, 9), 64, 3, 1),
    ("42x42, 16 -> 16, 3x3", (16, 42, 42), 16, 3, 1),
    ("40x40, 5 -> 35, 3x3", (5, 40, 40), 35, 3, 1),
]
GOALS = {"dense": 0.85, "convolution": 0.70}
"""Parts of the peak, for layers of 8 x 256 and more."""

_SECONDS = 0.25
_PEAK_ROUNDS = 20_000
"""Of multiply-adds: some 30 microseconds, so the call of them from Python takes less than a hundredth."""


def best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest round."""
    call()
    found, stop = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < stop:
        started = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - started)
    return found


def beside_peak(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the fastest round, and the most operations a second of the core meanwhile."""
    kernels = opened()
    assert kernels is not None
    call()
    count = kernels.multiply_adds(_PEAK_ROUNDS)
    found, peak, stop = float("inf"), float("inf"), time.perf_counter() + 2 * _SECONDS
    while time.perf_counter() < stop:
        started = time.perf_counter()
        kernels.multiply_adds(_PEAK_ROUNDS)
        between = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - between)
        peak = min(peak, between - started)
    return found, 2 * count / peak


def layer_seconds(content: bytes, rows: int) -> tuple[float, float]:
    """Of one call of the program alone, without Python's part of a call, and the peak meanwhile."""
    inferer = memojax.load(content, preload=[rows])
    plan = inferer._cache.peek(rows)
    direct = plan.executable.made.program
    assert isinstance(direct, Direct)
    specs = [(spec.rows(rows), spec.dtype) for spec in inferer.typed.api.inputs]
    given = [random_rows(np.random.default_rng(0), rows, spec) for spec in inferer.typed.api.inputs]
    slot, call = Slot(direct, specs, ()), caller()
    for number, buffer in slot.inputs:
        buffer[...] = given[number]
    kept = Large(direct, specs, slot).placed(slot, given)
    found = beside_peak(lambda: call(slot.prepared))
    del kept
    return found


def call_seconds() -> float:
    """Of the call of an empty program from Python, which each time of a layer contains."""
    slot, call = Slot(Direct(Program(0, 0).array(), (), (), (), ()), [], ()), caller()
    return best(lambda: call(slot.prepared))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if opened() is None:
        raise SystemExit(f"no kernels: {why_not()}")
    print(f"kernels: {memojax.kernels.available()}\n")
    empty = call_seconds()
    print(f"an empty call: {empty * 1e6:.2f} microseconds\n")
    print("| layer | rows | microseconds | GFLOP/s | peak | of the peak | without the call |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    found = []

    def row(kind: str, name: str, rows: int, measured: tuple[float, float], flops: int) -> None:
        seconds, core = measured
        part, bare = flops / seconds / core, flops / (seconds - empty) / core
        found.append({"kind": kind, "layer": name, "rows": rows, "us": seconds * 1e6, "of_peak": part})
        found[-1] |= {"peak_gflops": core / 1e9, "of_peak_without_call": bare}
        print(
            f"| {name} | {rows} | {seconds * 1e6:,.1f} | {flops / seconds / 1e9:.1f} "
            f"| {core / 1e9:.1f} | {part:.0%} | {bare:.0%} |",
            flush=True,
        )

    for rows, width in DENSE:
        measured = layer_seconds(dense_layer(width), rows)
        row("dense", f"{width} x {width}", rows, measured, 2 * rows * width * width)
    for name, shape, channels, window, stride in CONVOLUTIONS:
        for rows in (1, 8, 64):
            measured = layer_seconds(conv_layer(shape, channels, window, stride), rows)
            height, width = ((side - window) // stride + 1 for side in shape[1:])
            flops = 2 * rows * height * width * channels * shape[0] * window * window
            row("convolution", name, rows, measured, flops)
    if options.json:
        report = {"isa": memojax.kernels.available(), "rows": found}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
