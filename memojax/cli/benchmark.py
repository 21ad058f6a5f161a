"""`memojax benchmark`: time per call by batch size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np

from .options import (
    check_bound,
    check_plot,
    device_option,
    devices_option,
    find_model,
    json_option,
    loaded_pair,
    loading_of,
    loading_options,
    model_argument,
    onnx_option,
    places,
)
from .sizes import SIZES
from .wrapping import wrapped, wrapping_options

_SIZES = (1, 2, 4, 8, 16, 32, 64)

_BLOCK = 8
"""Calls of one contender before the next one's turn; several in a row keep its caches warm."""

_WARM_UP = 3


@click.command("benchmark", short_help="Time calls over the batch size.")
@model_argument
@click.option(
    "-b",
    "--batch-sizes",
    type=SIZES,
    metavar="SIZES",
    help="Batch sizes, such as 1-8,16.  [default: 1,2,4,8,16,32,64]",
)
@click.option(
    "-c",
    "--count",
    type=click.IntRange(2),
    metavar="N",
    default=200,
    help="Timed calls per size.  [default: 200]",
)
@wrapping_options
@click.option(
    "--call",
    type=click.Choice(("arrays", "batch")),
    default="arrays",
    help="infer_arrays or infer_batch.  [default: arrays]",
)
@click.option(
    "--against",
    type=click.Choice(("onnxruntime", "tract")),
    multiple=True,
    help="Also time another runtime.",
)
@click.option("--plot", metavar="FILE.png", help="Draw the median time over the batch size.")
@onnx_option
@click.option(
    "--seed", type=click.IntRange(0), metavar="S", default=0, help="Seed of the random inputs.  [default: 0]"
)
@loading_options
@device_option
@devices_option
@json_option
def command(
    model: str,
    batch_sizes: list[int] | None,
    count: int,
    recurrent: str | None,
    with_epsilon: str | None,
    call: str,
    against: tuple[str, ...],
    plot: str | None,
    onnx: str | None,
    seed: int,
    device: str | None,
    devices: str | None,
    json_file: str | None,
    **loading: Any,
) -> None:
    """Time calls at each batch size, interleaved with other runtimes.

    Compiles are timed separately. With --recurrent and --with-epsilon the call goes through the wrappers, as
    in a game loop. Other runtimes get the same rows, with hidden state and noise, laid out beforehand. For an
    exported policy, --onnx names the file that they run. A runtime that cannot run MODEL is left out: the
    table comes without it, the reason follows, and the exit code is 1.

    \b
    Examples:
      memojax benchmark acrobot_ppo --batch-sizes 1-8,16 --against onnxruntime
      memojax benchmark recurrent_lstm --recurrent auto --call batch
      memojax benchmark my_policy.onnx --plot latency.png
    """
    from ..api import load
    from ..lowering.exported import only_size
    from ..lowering.row_probe import random_rows
    from ..plans.progress import progress_bar
    from ..verification import contender

    check_plot(plot)
    file = find_model(model)
    typed, reference = loaded_pair(file, onnx, loading_of(**loading))
    only = only_size(typed)
    sizes = batch_sizes or ([only] if only else _SIZES)
    inferer: Any = load(typed, **places(device, devices, seed=seed))
    check_bound(inferer.api)
    agents = wrapped(inferer, recurrent, with_epsilon, seed)
    others = {name: contender(name, typed, reference) for name in dict.fromkeys(against)}
    for agent in range(max(sizes)):
        agents.begin_agent(agent)
    results: list[dict[str, Any]] = []
    unable: dict[str, Exception] = {}
    rng = np.random.default_rng(seed)
    with progress_bar(f"{file.name}, batch sizes", len(sizes), transient=True) as report:
        for done, size in enumerate(sizes, 1):
            rows = {spec.name: random_rows(rng, size, spec) for spec in inferer.api.inputs}
            calls, compiles = _contenders(agents, others, rows, size, call, unable)
            timings = _timed(calls, count)
            results += [_statistics(name, size, times, compiles[name]) for name, times in timings.items()]
            report(done, "")
    data = {
        "model": file.name,
        "call": f"infer_{call}",
        "count": count,
        "device": f"{inferer.sharding.num_devices} devices" if devices else str(inferer.device),
        "results": results,
    }
    if unable:
        data["unable"] = {name: str(failure) for name, failure in unable.items()}
    _give(data, json_file, plot)
    if unable:
        from .output import show_error

        for failure in unable.values():
            show_error(failure)
        click.get_current_context().exit(1)


def _give(data: Mapping[str, Any], json_file: str | None, plot: str | None) -> None:
    """Write, print and draw the results."""
    if json_file:
        from .output import write_json

        write_json(json_file, data)
    if json_file != "-":
        _show(data)
    if plot:
        _draw(data, plot)
        if json_file != "-":
            click.echo(f"\ndrawn: {plot}")


def _draw(data: Mapping[str, Any], path: str) -> None:
    from ..display.latency import draw_latency

    times: dict[str, dict[int, float | None]] = {}
    for one in data["results"]:
        times.setdefault(one["runtime"], {})[one["batch_size"]] = one["p50_us"]
    figure = draw_latency(times, {})
    figure.axes[0].set_title(f"{data['model']} on {data['device']}")
    figure.savefig(path)


def _contenders(
    inferer: Any,
    others: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    size: int,
    call: str,
    unable: dict[str, Exception],
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Calls to time, and each runtime's milliseconds to prepare this size; failing ones go to `unable`."""
    from ..verification.runtimes import ContenderError

    given = {spec.name: rows[spec.name] for spec in inferer.api.inputs}
    if call == "batch":
        states = {agent: {name: value[agent] for name, value in given.items()} for agent in range(size)}
        calls: dict[str, Callable[[], Any]] = {"memojax": lambda: inferer.infer_batch(states)}
    else:
        ids = range(size)
        calls = {"memojax": lambda: inferer.infer_arrays(given, ids=ids)}
    compiles = {}
    started = time.perf_counter()
    calls["memojax"]()
    compiles["memojax"] = (time.perf_counter() - started) * 1e3
    for name, other in others.items():
        if name in unable:
            continue
        started = time.perf_counter()
        try:
            other.prepare(size)
            compiles[name] = (time.perf_counter() - started) * 1e3
            other(rows)
        except ContenderError as failure:
            unable[name] = failure
        else:
            calls[name] = other.bound(rows)
    return calls, compiles


def _timed(calls: Mapping[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Seconds of `count` calls of each contender, in alternating blocks."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    clock = time.perf_counter
    for start in range(0, count, _BLOCK):
        for name, call in calls.items():
            for _ in range(min(_BLOCK, count - start)):
                begun = clock()
                call()
                times[name].append(clock() - begun)
    return times


def _statistics(name: str, size: int, times: Sequence[float], compile_ms: float) -> dict[str, Any]:
    us = np.array(times) * 1e6
    p50, p90, p99 = np.percentile(us, (50, 90, 99)).tolist()
    return {
        "runtime": name,
        "batch_size": size,
        "compile_ms": compile_ms,
        "mean_us": float(us.mean()),
        "std_us": float(us.std(ddof=1)),
        "p50_us": p50,
        "p90_us": p90,
        "p99_us": p99,
        "mean_us_per_element": float(us.mean()) / size,
        "std_us_per_element": float(us.std(ddof=1)) / size,
    }


def _show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape
    from rich.text import Text

    from .output import number, show, table

    results = data["results"]
    mine = {one["batch_size"]: one["p50_us"] for one in results if one["runtime"] == "memojax"}
    several = len({one["runtime"] for one in results}) > 1
    rows = []
    for one in results:
        size = one["batch_size"]
        ratio = one["p50_us"] / mine[size]
        against = (
            Text("")
            if one["runtime"] == "memojax"
            else Text(f"{ratio:.2f}x", "green" if ratio >= 1 else "red")
        )
        per_call = f"{number(one['mean_us'])} ± {number(one['std_us'])}"
        per_element = f"{number(one['mean_us_per_element'], 2)} ± {number(one['std_us_per_element'], 2)}"
        tail = [number(one[key]) for key in ("p50_us", "p90_us", "p99_us", "compile_ms")]
        rows.append((one["runtime"], size, per_call, per_element, *tail, *([against] if several else [])))
    columns = [
        "runtime",
        "batch size",
        "us per call",
        "us per element",
        "p50",
        "p90",
        "p99",
        "compile ms",
        *(["time"] if several else []),
    ]
    items: list[Any] = [
        f"[bold]{escape(data['model'])}[/]: {data['call']}, {data['count']} calls per size on "
        f"{escape(data['device'])}",
        table(columns, rows),
    ]
    if several:
        items.append(
            "[dim]time: median divided by memojax's, above 1 is slower than memojax; geometric mean "
            f"{_overall(results, mine)}[/]"
        )
    show(*items)


def _overall(results: Sequence[Mapping[str, Any]], mine: Mapping[int, float]) -> str:
    names = dict.fromkeys(one["runtime"] for one in results if one["runtime"] != "memojax")
    logs = {
        name: [math.log(one["p50_us"] / mine[one["batch_size"]]) for one in results if one["runtime"] == name]
        for name in names
    }
    return ", ".join(f"{name} {math.exp(sum(values) / len(values)):.2f}x" for name, values in logs.items())
