"""`memojax run`: runs one batch through a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from .options import (
    check_bound,
    checked_target,
    device_option,
    devices_option,
    find_model,
    json_option,
    loading_of,
    loading_options,
    model_argument,
    places,
)
from .wrapping import wrapped, wrapping_options


@click.command("run", short_help="Run one batch.")
@model_argument
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="Number of rows.  [default: all of --inputs, or 1]",
)
@wrapping_options
@click.option(
    "--inputs",
    "inputs_file",
    metavar="FILE.npz",
    help="Inputs by name, one row per agent.  [default: random]",
)
@click.option(
    "--output", "output_file", metavar="FILE.npz", callback=checked_target, help="Write the outputs, by name."
)
@click.option("--print-input", is_flag=True, help="Print every input row, with --json in the JSON.")
@click.option("--print-output", is_flag=True, help="Print every output row, with --json in the JSON.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="S",
    default=0,
    help="Seed of random inputs and of random operators.  [default: 0]",
)
@loading_options
@device_option
@devices_option
@json_option
def command(
    model: str,
    batch_size: int | None,
    recurrent: str | None,
    with_epsilon: str | None,
    inputs_file: str | None,
    output_file: str | None,
    print_input: bool,
    print_output: bool,
    seed: int,
    device: str | None,
    devices: str | None,
    json_file: str | None,
    **loading: Any,
) -> None:
    """Run one batch on random or given inputs and print a summary of each output.

    With --recurrent and --with-epsilon, the wrappers feed hidden state (zero at the start) and noise.

    \b
    Examples:
      memojax run acrobot_ppo --batch-size 8 --print-output
      memojax run pendulum_ppo --with-epsilon epsilon
      memojax run policy.onnx --inputs observations.npz --output actions.npz
    """
    from ..api import load
    from ..lowering.exported import only_size
    from ..lowering.row_probe import random_rows

    file = find_model(model)
    bare: Any = load(file.path, **places(device, devices, seed=seed), **loading_of(**loading))
    inferer = wrapped(bare, recurrent, with_epsilon, seed)
    shared = {spec.name for spec in inferer.api.inputs if spec.shared}
    if inputs_file:
        inputs = _given(inputs_file, batch_size, shared)
    else:
        check_bound(inferer.api)
        rng = np.random.default_rng(seed)
        rows = batch_size or only_size(bare.typed) or 1
        inputs = {spec.name: random_rows(rng, rows, spec) for spec in inferer.api.inputs}
    size = next((len(rows) for name, rows in inputs.items() if name not in shared), 0)
    ids = range(size)
    for agent in ids:
        inferer.begin_agent(agent)
    started = time.perf_counter()
    outputs = {name: np.asarray(rows) for name, rows in inferer.infer_arrays(inputs, ids=ids).items()}
    first = time.perf_counter() - started
    started = time.perf_counter()
    inferer.infer_arrays(inputs, ids=ids)
    again = time.perf_counter() - started
    if output_file:
        np.savez(output_file, **outputs)  # pyright: ignore[reportArgumentType]
    data = {
        "model": file.name,
        "batch_size": size,
        "first_call_ms": first * 1e3,
        "second_call_us": again * 1e6,
        "outputs": {name: _summary(rows) for name, rows in outputs.items()},
    }
    printed = {"input": inputs if print_input else {}, "output": outputs if print_output else {}}
    data |= {f"{side}_rows": arrays for side, arrays in printed.items() if arrays}
    if json_file:
        from .output import write_json

        write_json(json_file, data)
    if json_file != "-":
        _show(data, inputs_file, output_file)
        for side, arrays in printed.items():
            _print_rows(side, arrays)


def _print_rows(side: str, arrays: Mapping[str, Any]) -> None:
    from ..errors import printable
    from .output import brief

    for name, rows in arrays.items():
        shown = np.array2string(np.asarray(rows), threshold=sys.maxsize, max_line_width=120)
        click.echo(f"\n{side} {brief(name)}:\n{printable(shown)}")


def _given(path: str, batch_size: int | None, shared: Collection[str]) -> dict[str, np.ndarray]:
    """The first `batch_size` rows of the arrays in a file, or all; inputs in `shared` have no rows.

    Raises:
        click.UsageError: the file has fewer rows.
    """
    inputs = _read(path)
    if batch_size is not None and (
        short := [name for name, rows in inputs.items() if len(rows) < batch_size]
    ):
        raise click.UsageError(
            f"--batch-size {batch_size}, but {short[0]!r} in {path} has only {len(inputs[short[0]])} rows"
        )
    return {name: rows if name in shared else rows[:batch_size] for name, rows in inputs.items()}


def _read(path: str) -> dict[str, np.ndarray]:
    from ..errors import InputError

    try:
        archive = np.load(path, allow_pickle=False)
        arrays = None if isinstance(archive, np.ndarray) else dict(archive)
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    except Exception as cause:
        raise InputError(
            f"{path}: not an .npz file of plain arrays: write it with numpy.savez(file, {{input}}=array)"
        ) from cause
    if arrays is None:
        raise InputError(
            f"{path}: one array, not an .npz file of arrays by name: save it with numpy.savez(file, "
            f"{{input}}=array)"
        )
    if scalars := [name for name, array in arrays.items() if array.ndim == 0]:
        raise InputError(f"{path}: {scalars[0]!r} is a single number, expected one row per agent")
    return arrays


_SHOWN = 4


def _summary(rows: np.ndarray) -> dict[str, Any]:
    numeric = rows.dtype.kind in "fiub" and rows.size > 0
    finite = rows.astype(np.float64) if numeric else np.zeros(0)
    return {
        "dtype": str(rows.dtype),
        "shape": list(rows.shape),
        "min": float(finite.min()) if numeric else None,
        "mean": float(finite.mean()) if numeric else None,
        "max": float(finite.max()) if numeric else None,
        "nan": int(np.isnan(finite).sum()),
        "first": rows.reshape(len(rows), -1)[0, :_SHOWN].tolist() if rows.ndim and rows.size else [],
    }


def _show(data: Mapping[str, Any], inputs_file: str | None, output_file: str | None) -> None:
    from rich.markup import escape

    from .output import facts, show, table

    def brief(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    rows = []
    for name, one in data["outputs"].items():
        first = ", ".join(
            brief(value) if isinstance(value, (int, float)) else str(value) for value in one["first"]
        )
        more = ", ..." if int(np.prod(one["shape"][1:])) > _SHOWN else ""
        rows.append(
            (
                name,
                one["dtype"],
                str(one["shape"]),
                f"{first}{more}",
                brief(one["min"]),
                brief(one["mean"]),
                brief(one["max"]),
            )
        )
    source = f"from {inputs_file}" if inputs_file else "of random inputs"
    about = [
        ("first call", f"{data['first_call_ms']:,.0f} ms, with the compile for this batch size"),
        ("next call", f"{data['second_call_us']:,.0f} us"),
    ]
    if nans := [name for name, one in data["outputs"].items() if one["nan"]]:
        about.append(("warning", f"NaN in {', '.join(nans)}"))
    if output_file:
        about.append(("written", str(Path(output_file))))
    show(
        f"[bold]{escape(data['model'])}[/]: a batch of {data['batch_size']} {escape(source)}",
        table(["output", "dtype", "shape", "first row", "min", "mean", "max"], rows, left=4),
        facts(about),
    )
