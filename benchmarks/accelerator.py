"""Measures memojax on an accelerator: GPU tests, times by batch size, transfers and preloads.

    python benchmarks/accelerator.py [--dry] [--seconds 480] [--json FILE] [--markdown FILE]

A run takes at most `--seconds`. It compares memojax with NumPy arrays, with `jax.Array`s, and with other
options: other precisions of products, constant weights, and autotuning's candidates for GPUs. If they are
installed, it adds PyTorch (eager, `torch.compile`, CUDA graphs) and ONNX Runtime's CUDA provider. The report
lists each missing measurement with its reason; a part that fails costs no other part. The files are written
again after each row, so a run that is killed leaves what it has measured. `--dry` runs the script on the CPU
with few calls, as a test of the script itself.

On a machine that is lent for minutes, `benchmarks/on_device.sh` does all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from _measure import as_dict, interleaved, machine
from _models import Case, lstm, mlp, nature_cnn
from onnx import numpy_helper

import memojax
from memojax.lowering.row_probe import random_rows
from memojax.plans.candidates import LAYOUTS, NO_TRITON, THREE_PASSES, Candidate
from memojax.plans.compiler import PlanCompiler

Rows = dict[str, np.ndarray]
Call = Callable[[], Any]

SIZES = (1, 8, 64, 512, 4096)
TORCH_COMPILES = (1, 64, 4096)
"""Sizes for `torch.compile`, which takes some ten seconds for each."""

BYTES = (4 << 10, 256 << 10, 16 << 20, 256 << 20)
BASE = "memojax, NumPy"
_TESTS_SHARE = 0.35
"""Share of the time that the tests may take."""

_LAST_SECONDS = 20
"""With fewer seconds left, no new measurement begins."""


@dataclass
class Report:
    """Results of all measurements; `absent` has the reason for each missing one."""

    device: str
    machine: dict[str, Any]
    tests: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    transfers: list[dict[str, Any]] = field(default_factory=list)
    preloads: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    json: Path | None = None
    markdown: Path | None = None

    def save(self) -> None:
        """Write the files."""
        if self.json:
            facts = {name: value for name, value in asdict(self).items() if name not in ("json", "markdown")}
            self.json.write_text(json.dumps(facts, indent=1) + "\n")
        if self.markdown:
            self.markdown.write_text(markdown(self))

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """Measure a part, and save the report; a part that fails is absent."""
        try:
            measure()
        except Exception as cause:
            self.absent[name] = f"it failed: {_why(cause)}"
        self.save()


def _why(cause: Exception) -> str:
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:160]


def surroundings() -> dict[str, Any]:
    """Versions of everything that takes part, the driver, and the commit; None for what is not here."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def said(*command: str) -> str | None:
        try:
            return subprocess.run(
                command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    packages = "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "onnxruntime-gpu", "torch", "triton"
    return {
        **machine(),
        **{name: version(name) for name in packages},
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "kernels": memojax.kernels.available(),
    }


class Clock:
    """Counts down the seconds of a run."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


def tests(report: Report, clock: Clock) -> None:
    """Run the tests that need a GPU, in another process, before this process takes the GPU's memory."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    root = Path(__file__).parents[1]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "tests/system/test_gpu.py", "tests/system/test_devices.py"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=clock.seconds * _TESTS_SHARE,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if late.stdout else ""
        report.absent["tests"] = f"they took more than their share of the time; so far: {said[-200:]!r}"
        return
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    report.tests = {
        "exit": done.returncode,
        "summary": lines[-1] if lines else done.stderr[-300:],
        "failed": failed,
        "seconds": round(time.monotonic() - started, 1),
    }


def cases(dry: bool) -> list[Case]:
    """A small MLP, a wide MLP, a convolutional and a recurrent policy; a dry run has only two of them."""
    small = mlp([64, 256, 256, 8])
    return [small, lstm(64)] if dry else [small, mlp([512, 1024, 1024, 1024, 64]), nature_cnn(), lstm(64)]


def contenders(
    case: Case, size: int, device: jax.Device, clock: Clock, absent: dict[str, str]
) -> dict[str, Call]:
    """Calls with `size` rows, by contender; each call waits for its results."""
    typed = memojax.TypedModel.from_model(case.content)
    rng = np.random.default_rng(0)
    rows: Rows = {spec.name: random_rows(rng, size, spec) for spec in typed.api.inputs}
    makers: dict[str, Callable[[], Call]] = {
        BASE: lambda: _numpy(typed, rows, device),
        "memojax, jax.Array": lambda: _arrays(typed, rows, device),
        "memojax, precision default": lambda: _numpy(typed, rows, device, precision="default"),
        "memojax, precision high": lambda: _numpy(typed, rows, device, precision="high"),
        "memojax, weights constant": lambda: _numpy(typed, rows, device, weights="constant"),
        "memojax, no Triton": lambda: _candidate(typed, rows, device, NO_TRITON),
        "memojax, tf32 x 3": lambda: _candidate(typed, rows, device, THREE_PASSES),
        "memojax, XLA's layouts": lambda: _candidate(typed, rows, device, LAYOUTS),
        "torch": lambda: _torch(case, rows, device, None),
        "torch.compile": lambda: _torch(case, rows, device, "default"),
        "torch.compile, CUDA graphs": lambda: _torch(case, rows, device, "reduce-overhead"),
        "ORT CUDA": lambda: _onnxruntime(case, rows, device),
    }
    calls: dict[str, Call] = {}
    for name, make in makers.items():
        if "compile" in name and size not in TORCH_COMPILES:
            continue
        try:
            if clock.left() < _LAST_SECONDS:
                raise TimeoutError("no time left")
            call = make()
            call()
        except Exception as cause:
            absent.setdefault(f"{name}: {case.name}, {size} rows", _why(cause))
        else:
            calls[name] = call
    return calls


def _numpy(typed: memojax.TypedModel, rows: Rows, device: jax.Device, **options: Any) -> Call:
    size = len(next(iter(rows.values())))
    inferer = memojax.MemoizingDynamicInferer(typed, [size], device=device, **options)
    return lambda: inferer.infer_arrays(rows)


def _arrays(typed: memojax.TypedModel, rows: Rows, device: jax.Device) -> Call:
    inferer = memojax.MemoizingDynamicInferer(typed, device=device)
    there = {name: jax.device_put(value, device) for name, value in rows.items()}
    return lambda: jax.block_until_ready(dict(inferer.infer_arrays(there)))


def _candidate(typed: memojax.TypedModel, rows: Rows, device: jax.Device, candidate: Candidate) -> Call:
    size = len(next(iter(rows.values())))
    plan = PlanCompiler(typed, device, "argument").lower(size, candidate).compile()
    given = list(rows.values())
    return lambda: plan(given)


def _torch(case: Case, rows: Rows, device: jax.Device, mode: str | None) -> Call:
    import torch  # pyright: ignore[reportMissingImports]

    if mode is not None and device.platform == "cpu":
        raise RuntimeError("torch.compile is measured on accelerators only")
    module = _module(torch, onnx.load_from_string(case.content))
    place = "cpu" if device.platform == "cpu" else "cuda"
    module = module.to(place).eval()
    run = module if mode is None else torch.compile(module, mode=mode)
    (given,) = rows.values()

    def call() -> Any:
        with torch.inference_mode():
            return run(torch.from_numpy(given).to(place)).cpu().numpy()

    return call


def _module(torch: Any, model: onnx.ModelProto) -> Any:
    """The `torch.nn.Sequential` for a file that is a chain of layers."""
    nn, graph = torch.nn, model.graph
    weights = {item.name: numpy_helper.to_array(item).copy() for item in graph.initializer}
    layers: list[Any] = []
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Gemm":
            w, b = (torch.from_numpy(weights[name]) for name in node.input[1:])
            layer = nn.Linear(w.shape[1], w.shape[0])
        elif node.op_type == "Conv":
            w, b = (torch.from_numpy(weights[name]) for name in node.input[1:])
            layer = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], attributes.get("strides", [1, 1]))
        else:
            simple = {"Relu": nn.ReLU, "Tanh": nn.Tanh, "Flatten": nn.Flatten}
            if node.op_type not in simple:
                raise RuntimeError(f"only chains of layers become torch modules, not {node.op_type}")
            layers.append(simple[node.op_type]())
            continue
        layer.weight.data, layer.bias.data = w, b
        layers.append(layer)
    return nn.Sequential(*layers)


def _onnxruntime(case: Case, rows: Rows, device: jax.Device) -> Call:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider")
    session = onnxruntime.InferenceSession(case.content, providers=["CUDAExecutionProvider"])
    return lambda: session.run(None, rows)


def calls(report: Report, clock: Clock, device: jax.Device, dry: bool) -> None:
    """Measure microseconds per call and rows per second, by network, batch size and contender."""
    chosen, sizes = cases(dry), (1, 8) if dry else SIZES
    left_to_do = len(chosen) * len(sizes)
    for case in chosen:
        for size in sizes:
            share = clock.left() / left_to_do
            left_to_do -= 1
            if clock.left() < _LAST_SECONDS:
                report.absent[f"calls: {case.name}, {size} rows"] = "no time left"
                continue
            seconds = 0.02 if dry else max(0.5, min(3.0, share / 3))
            row = partial(_row, report, clock, device, case, size, seconds, 4 if dry else 12)
            report.part(f"calls: {case.name}, {size} rows", row)


def _row(
    report: Report, clock: Clock, device: jax.Device, case: Case, size: int, seconds: float, rounds: int
) -> None:
    """Measure a network at one size."""
    made = contenders(case, size, device, clock, report.absent)
    if BASE not in made:
        return
    for name, timing in as_dict(interleaved(made, BASE, seconds, rounds)).items():
        rate = size / timing["median"] * 1e6
        row = {"case": case.name, "size": size, "contender": name, "rows_per_s": round(rate)}
        report.calls.append({**row, **timing})


def transfers(report: Report, device: jax.Device, dry: bool) -> None:
    """Measure GB/s and microseconds for arrays of several sizes, to the device and back."""
    for count in BYTES[:1] if dry else BYTES:
        host = np.ones(count // 4, np.float32)
        there = jax.block_until_ready(jax.device_put(host, device))

        def to(host: np.ndarray = host) -> Any:
            return jax.block_until_ready(jax.device_put(host, device))

        def back(there: Any = there) -> Any:
            # JAX caches an array's copy in the host's memory, so each round fetches a new array.
            return np.asarray(there + 0)

        timings = interleaved({"to": to, "back": back}, None, 0.02 if dry else 1.0, 4 if dry else 8)
        for way, timing in timings.items():
            rate = count / timing.median / 1e3
            report.transfers.append(
                {"way": way, "bytes": count, "us": round(timing.median, 1), "gb_per_s": round(rate, 3)}
            )


def preloads(report: Report, clock: Clock, device: jax.Device, dry: bool) -> None:
    """Measure seconds for the plans of several sizes, compiled in this process without a cache on disk."""
    sizes = (1, 2) if dry else (1, 2, 4, 8, 16, 32, 64)
    for case in cases(dry):
        if clock.left() < _LAST_SECONDS:
            report.absent[f"preload: {case.name}"] = "no time left"
            continue
        typed = memojax.TypedModel.from_model(case.content)
        started = time.perf_counter()
        inferer = memojax.MemoizingDynamicInferer(typed, device=device)
        inferer.preload(sizes)
        seconds = time.perf_counter() - started
        report.preloads.append({"case": case.name, "sizes": len(sizes), "seconds": round(seconds, 3)})


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# memojax on {report.device}", f"`{json.dumps(report.machine)}`"]
    if report.tests:
        parts.append(f"Tests: {report.tests['summary']} ({report.tests['seconds']} s)")
        parts += [f"- {line}" for line in report.tests["failed"]]
    names = list(dict.fromkeys(row["contender"] for row in report.calls))
    cells = {(row["case"], row["size"], row["contender"]): row for row in report.calls}
    body = [
        [case, str(size), *(_cell(cells.get((case, size, name))) for name in names)]
        for case, size in dict.fromkeys((row["case"], row["size"]) for row in report.calls)
    ]
    parts.append("## Microseconds per call (rows per second)")
    parts.append(_table(["network", "rows", *names], body))
    parts.append("## Transfers")
    moved = [[r["way"], f"{r['bytes']:,}", f"{r['us']}", f"{r['gb_per_s']}"] for r in report.transfers]
    parts.append(_table(["way", "bytes", "us", "GB/s"], moved))
    parts.append("## Preloading")
    loaded = [[r["case"], str(r["sizes"]), f"{r['seconds']}"] for r in report.preloads]
    parts.append(_table(["network", "sizes", "seconds"], loaded))
    if report.absent:
        parts.append("## Not measured")
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, why in report.absent.items():
            what, _, where = name.partition(": ")
            reasons.setdefault((what, why), []).append(where)
        parts.append("\n".join(_absent(what, where, why) for (what, why), where in reasons.items()))
    return "\n\n".join(parts) + "\n"


def _absent(what: str, where: Sequence[str], why: str) -> str:
    places = f" ({where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''})" if where[0] else ""
    return f"- {what}{places}: {why}"


def _cell(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['median']:.0f} ({row['rows_per_s']:,})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def accelerator(dry: bool) -> jax.Device:
    """The first accelerator; the CPU in a dry run."""
    if dry:
        return jax.devices("cpu")[0]
    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("JAX has no accelerator here; --dry runs the script on the CPU")
    return device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="run on the CPU with few calls")
    parser.add_argument("--seconds", type=float, default=480.0, help="limit for the whole run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args()
    clock = Clock(given.seconds)
    report = Report("a device", surroundings(), json=given.json, markdown=given.markdown)
    if given.dry:
        report.absent["tests"] = "a dry run has no GPU"
    else:
        report.part("tests", lambda: tests(report, clock))
    device = accelerator(given.dry)
    report.device = f"{device.device_kind} ({device.platform})"
    # Short parts run first, and the long one takes the rest of the time.
    report.part("transfers", lambda: transfers(report, device, given.dry))
    report.part("preload", lambda: preloads(report, clock, device, given.dry))
    report.part("calls", lambda: calls(report, clock, device, given.dry))
    print(markdown(report))
    if report.tests.get("exit"):
        sys.exit(1)


if __name__ == "__main__":
    main()
