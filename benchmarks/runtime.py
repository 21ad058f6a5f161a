"""A `Runtime` of 30 models: threads and one thread, and the budget of `run_for`, compared with ONNX Runtime.

    python benchmarks/runtime.py [runs] [frames] [--quick] [--sizes 1 4 18] [--fractions 0.5 1]
    [--frames 1000] [--hz 60] [--markdown] [--json FILE]

Three kinds of policy, ten of each, as in cervo's threading benchmark. The first table (`runs`) runs all
waiting agents at one batch size. The second table plays `frames`. In each frame every model gets 1 to 18
agents, in new numbers. The budget is a quarter, a half or all of the time of a full run at the same pace:
after a pause the core's caches hold other things, so a run takes longer than in a tight loop. *Warm* starts
with all plans, so its late frames tell what the machine itself delays. *Pad* starts with one plan per model,
and the others compile in the background (`on_miss="pad"`). *Cold* starts without plans. The loop over ONNX
Runtime sessions takes the models in turn, and stops when the time is up. A frame is *late* if it exceeds its
budget by more than the slowest model takes at 18 agents. `--clock cpu` counts the CPU time of the calling
thread instead of wall time, for a machine that others keep busy. Time of other threads, such as a background
compile, then does not count. With one part alone, `--json` keeps the other part of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _contenders import session
from _measure import ForeignLoad, interleaved, machine
from _models import Case, lstm, mlp
from rich import box
from rich.console import Console
from rich.table import Table

import memojax
from memojax.lowering.row_probe import random_rows

EACH, LARGEST = 10, 18
PARTS = "runs", "frames"
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
STATES_EACH = 64
"""Agents with prepared states, per kind."""

Answers = Mapping[Any, Mapping[int, Any]]
States = Sequence[Mapping[str, np.ndarray]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Kept:
    """Frames and their budget; times in milliseconds.

    Attributes:
        over: share of frames over the budget.
        late: share over it by more than the slowest model takes.
        p99, worst: overshoot that one frame in a hundred exceeds, and the largest.
        answered: share of agents with a new state that got an answer.
    """

    contender: str
    budget: float
    over: float
    late: float
    p99: float
    worst: float
    answered: float


def kinds() -> list[Case]:
    """A small MLP, a larger one, and a recurrent policy."""
    return [mlp([8, 64, 64, 4], "Tanh"), mlp([376, 256, 256, 17]), lstm(64)]


def states_of(typed: memojax.TypedModel) -> States:
    """Random states."""
    columns = {
        spec.name: random_rows(np.random.default_rng(0), STATES_EACH, spec) for spec in typed.api.inputs
    }
    return [{name: rows[index].copy() for name, rows in columns.items()} for index in range(STATES_EACH)]


class Ours:
    """The models in a `Runtime`."""

    def __init__(
        self, cases: Sequence[Case], sizes: Sequence[int], clock: Clock = time.perf_counter, **options: Any
    ):
        typed = [memojax.TypedModel.from_model(case.content) for case in cases]
        self.states = [states_of(model) for model in typed for _ in range(EACH)]
        self.runtime = memojax.Runtime(clock=clock)
        self.inferers = [
            memojax.MemoizingDynamicInferer(model, sizes, **options) for model in typed for _ in range(EACH)
        ]
        self.brains = [self.runtime.add_inferer(inferer) for inferer in self.inferers]

    def push(self, sizes: Sequence[int]) -> None:
        """Give model i a new state for each of `sizes[i]` agents."""
        for brain, states, size in zip(self.brains, self.states, sizes, strict=True):
            self.runtime.extend(brain, [(agent, states[agent]) for agent in range(size)])

    def run_for(self, seconds: float) -> Answers:
        return self.runtime.run_for(seconds)

    def run(self, threaded: bool) -> Answers:
        return self.runtime.run_threaded() if threaded else self.runtime.run()

    def close(self) -> None:
        """Wait for background compiles, so that they do not take another contender's time."""
        for brain in self.brains:
            with contextlib.suppress(memojax.errors.OrphanedDataError):
                self.runtime.remove_inferer(brain)
        self.inferers[0].preload([1], background=True).wait()

    def slowest(self) -> float:
        """Seconds of the slowest model for the most agents."""
        timings = [
            timing.mean
            for brain in self.brains
            for size, timing in self.runtime.timings(brain).items()
            if size == LARGEST
        ]
        return max(timings)


class Loop:
    """The models as ONNX Runtime sessions, one thread each, in a loop that watches the clock."""

    def __init__(self, cases: Sequence[Case], clock: Clock = time.perf_counter):
        self.clock = clock
        typed = [memojax.TypedModel.from_model(case.content) for case in cases]
        self.states = [states_of(model) for model in typed for _ in range(EACH)]
        self.sessions = [session(case.content, 1) for case in cases for _ in range(EACH)]
        self.outputs = [[info.name for info in one.get_outputs()] for one in self.sessions]
        self.waiting: list[dict[int, Mapping[str, np.ndarray]]] = [{} for _ in self.sessions]
        self.next = 0

    def push(self, sizes: Sequence[int]) -> None:
        """As `Ours.push`."""
        for waiting, states, size in zip(self.waiting, self.states, sizes, strict=True):
            waiting.update((agent, states[agent]) for agent in range(size))

    def run_for(self, seconds: float) -> Answers:
        """As `Ours.run_for`."""
        stop = self.clock() + seconds
        answers = {}
        for _ in self.sessions:
            if self.clock() >= stop:
                break
            answers[self.next] = self._run(self.next)
            self.next = (self.next + 1) % len(self.sessions)
        return answers

    def run(self) -> Answers:
        """As `Ours.run`."""
        return {index: self._run(index) for index in range(len(self.sessions))}

    def close(self) -> None:
        """As `Ours.close`; nothing runs here."""

    def _run(self, index: int) -> Mapping[int, Any]:
        waiting, names = self.waiting[index], self.outputs[index]
        if not waiting:
            return {}
        states = list(waiting.values())
        results = self.sessions[index].run(
            None, {name: np.stack([state[name] for state in states]) for name in states[0]}
        )
        responses = {
            agent: dict(zip(names, row, strict=True)) for agent, *row in zip(waiting, *results, strict=True)
        }
        waiting.clear()
        return responses


def threads_table(cases: Sequence[Case], sizes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Microseconds of one run over all models, pushes included, at each batch size."""
    ours, loop = Ours(cases, sizes), Loop(cases)
    found = []
    for size in sizes:
        counts = [size] * len(ours.brains)

        def single(counts: Sequence[int] = counts) -> None:
            ours.push(counts)
            ours.run(False)

        def threaded(counts: Sequence[int] = counts) -> None:
            ours.push(counts)
            ours.run(True)

        def ort(counts: Sequence[int] = counts) -> None:
            loop.push(counts)
            loop.run()

        load = ForeignLoad()
        timings = interleaved({"one": single, "threads": threaded, "ort": ort}, "one", seconds)
        found.append(
            {
                "size": size,
                "us": {name: timing.median for name, timing in timings.items()},
                "threaded_ratio": timings["threads"].ratio,
                "ort_ratio": timings["ort"].ratio and 1 / timings["ort"].ratio,
                "foreign_cores": load.cores(),
            }
        )
    return found


def frames(
    contender: Any, name: str, budget: float, slowest: float, count: int, period: float, clock: Clock
) -> Kept:
    """Play `count` frames with new numbers of agents in each, `period` seconds apart."""
    rng = np.random.default_rng(0)
    over, pushed, answered = [], 0, 0
    for _ in range(count):
        began = time.perf_counter()
        sizes = rng.integers(1, LARGEST + 1, 3 * EACH).tolist()
        contender.push(sizes)
        pushed += sum(sizes)
        started = clock()
        answers = contender.run_for(budget)
        over.append(clock() - started - budget)
        answered += sum(map(len, answers.values()))
        del answers
        time.sleep(max(0.0, began + period - time.perf_counter()))
    overshoot = np.maximum(np.array(over), 0)
    return Kept(
        name,
        budget * 1e3,
        over=float(np.mean(overshoot > 0)),
        late=float(np.mean(overshoot > slowest)),
        p99=float(np.percentile(overshoot, 99)) * 1e3,
        worst=float(overshoot.max()) * 1e3,
        answered=answered / pushed,
    )


def budgets_table(
    cases: Sequence[Case], fractions: Sequence[float], count: int, hz: float, clock: Clock
) -> tuple[list[Kept], float]:
    """Every contender at every budget, and the seconds that the slowest model takes."""
    every = list(range(1, LARGEST + 1))
    warm, loop = Ours(cases, every, clock), Loop(cases, clock)
    seconds: dict[int, list[float]] = {size: [] for size in (1, 6, LARGEST // 2, 12, LARGEST)}
    for _ in range(60):
        for size, taken in seconds.items():
            warm.push([size] * len(warm.brains))
            started = clock()
            warm.run(False)
            taken.append(clock() - started)
            time.sleep(1 / hz)
    slowest, full = warm.slowest(), statistics.median(seconds[LARGEST // 2])
    kept = []
    for fraction in fractions:
        budget = fraction * full
        period = max(1 / hz, 2 * budget)
        kept.append(frames(warm, "memojax, warm", budget, slowest, count, period, clock))
        for name, sizes, on_miss in (("pad", [LARGEST], "pad"), ("cold", (), "compile")):
            new = Ours(cases, sizes, clock, on_miss=on_miss)
            kept.append(frames(new, f"memojax, {name}", budget, slowest, count, period, clock))
            new.close()
        kept.append(frames(loop, "loop over onnxruntime", budget, slowest, count, period, clock))
    return kept, slowest


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> Any:
    """A table for a terminal, or as text for a page."""
    if markdown:
        lines = [columns, ["---"] * len(columns), *rows]
        return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    made = Table(title=title, box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{' or '.join(PARTS)}; by default both")
    parser.add_argument("--quick", action="store_true", help="few sizes, few frames: a smoke test")
    parser.add_argument("--sizes", nargs="+", type=int, default=None)
    parser.add_argument("--fractions", nargs="+", type=float, help="budgets, as shares of a full run")
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--hz", type=float, default=60.0, help="frames per second to play")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="clock of the budget")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if wrong := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(wrong))}, expected {' or '.join(PARTS)}")
    console = Console(width=160, soft_wrap=given.markdown, highlight=not given.markdown)
    cases, load, found = kinds(), ForeignLoad(), dict[str, Any]()
    if "runs" in (given.parts or PARTS):
        found["runs"] = runs(cases, given, console)
    if "frames" in (given.parts or PARTS):
        found |= played(cases, given, console)
    busy = load.cores()
    console.print(
        f"{machine()}; other processes kept {busy:.2f} cores busy" if busy is not None else str(machine())
    )
    if given.json:
        kept = json.loads(given.json.read_text()) if given.json.exists() else {}
        data = {**kept, "machine": machine(), "foreign_cores": busy, **found}
        given.json.write_text(json.dumps(data, indent=1) + "\n")


def runs(cases: Sequence[Case], given: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Measure and print the first table."""
    sizes = given.sizes or ([1, 8] if given.quick else [1, 2, 3, 4, 6, 8, 12, 16, 18])
    found = threads_table(cases, sizes, 0.3 if given.quick else 2.0)
    rows = [
        [
            str(run["size"]),
            f"{run['us']['one'] / 1e3:.2f}",
            f"{run['us']['threads'] / 1e3:.2f}",
            f"{run['threaded_ratio']:.2f}",
            f"{run['us']['ort'] / 1e3:.2f}",
            f"{run['ort_ratio']:.2f}",
        ]
        for run in found
    ]
    columns = [
        "agents per model",
        "run, ms",
        "run_threaded, ms",
        "threaded / single",
        "loop over onnxruntime, ms",
        "run / loop",
    ]
    console.print(table(f"{3 * EACH} models, push and run everything", columns, rows, given.markdown))
    return found


def played(cases: Sequence[Case], given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure and print the second table."""
    count = given.frames or (60 if given.quick else 1000)
    fractions = given.fractions or ((0.5,) if given.quick else (0.25, 0.5, 1.0))
    kept, slowest = budgets_table(cases, fractions, count, given.hz, CLOCKS[given.clock])
    rows = [
        [
            f"{k.budget:.2f}",
            k.contender,
            f"{k.over:.1%}",
            f"{k.late:.1%}",
            f"{k.p99:.3f}",
            f"{k.worst:.2f}",
            f"{k.answered:.0%}",
        ]
        for k in kept
    ]
    columns = [
        "budget, ms",
        "contender",
        "frames over",
        f"late (by > {slowest * 1e3:.2f} ms)",
        "p99 over, ms",
        "worst, ms",
        "agents answered",
    ]
    title = f"run_for, {count} frames, {given.clock} clock, 1 to {LARGEST} agents per model and frame"
    console.print(table(title, columns, rows, given.markdown))
    return {"count": count, "slowest": slowest, "frames": [asdict(one) for one in kept]}


if __name__ == "__main__":
    main()
