"""`memojax verify`: compares with another runtime."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from .options import (
    find_model,
    json_option,
    loaded_pair,
    loading_of,
    loading_options,
    model_argument,
    onnx_option,
)
from .sizes import SIZES

_SIZES = (1, 5, 32)


@click.command("verify", short_help="Compare with another runtime.")
@model_argument
@click.option(
    "-b",
    "--batch-sizes",
    "--sizes",
    "sizes",
    type=SIZES,
    metavar="SIZES",
    help="Batch sizes, such as 1-8,16.  [default: 1,5,32, or the model's only size]",
)
@click.option(
    "--against",
    type=click.Choice(("onnxruntime", "tract")),
    default="onnxruntime",
    help="Other runtime.  [default: onnxruntime]",
)
@onnx_option
@click.option(
    "--seed", type=click.IntRange(0), metavar="S", default=0, help="Seed of the random inputs.  [default: 0]"
)
@loading_options
@json_option
def command(
    model: str,
    sizes: list[int] | None,
    against: str,
    onnx: str | None,
    seed: int,
    json_file: str | None,
    **loading: Any,
) -> None:
    """Compare every output with another runtime on random inputs, at several batch sizes.

    Prints the largest error, and how often the largest element (the action of a discrete policy) is the same.
    Exits with 1 if an output differs by more than rtol 1e-3 and atol 1e-5, or, where float16 or bfloat16 in
    the file reach an output, by more than the note beside it says. It compares with the other runtime on the
    batch and on each row alone, so a file that mixes rows also exits with 1. An exported policy
    (StableHLO) has no graph for another runtime: name its file with --onnx.

    \b
    Examples:
      memojax verify policy.onnx --batch-sizes 1-4,64
      memojax verify policy.crvo --onnx policy.onnx
    """
    from ..lowering.exported import only_size
    from ..verification import ATOL, RTOL, verify

    file = find_model(model)
    options = loading_of(**loading)
    typed, reference = loaded_pair(file, onnx, options)
    only = only_size(typed)
    wanted = sizes or ([only] if only else _SIZES)
    checks = verify(typed, wanted, against=against, reference=reference, seed=seed)
    worst = [check for check in checks if check.same is False]
    if json_file:
        from .output import write_json

        data = {"model": file.name, "against": against, "rtol": RTOL, "atol": ATOL, "same": not worst}
        data["contradictions"] = list(checks.contradictions)
        write_json(json_file, {**data, "checks": [dataclasses.asdict(check) for check in checks]})
    if json_file != "-":
        from rich.markup import escape
        from rich.text import Text

        from .output import show, table

        marks = {
            True: Text("same", "green"),
            False: Text("differs", "red"),
            None: Text("not compared", "yellow"),
        }
        rows = [
            (
                check.output,
                marks[check.same],
                check.note,
                check.size,
                _small(check.max_abs),
                _small(check.max_rel),
                "-" if check.argmax_agreement is None else f"{check.argmax_agreement:.1%}",
            )
            for check in checks
        ]
        columns = ["output", "", "", "batch size", "max abs error", "max rel error", "same argmax"]
        compared = sum(check.same is not None for check in checks)
        verdict = (
            f"[red]{len(worst)} of {compared} differ[/]"
            if worst
            else f"[green]all {compared} are the same[/]"
        )
        show(
            f"[bold]{escape(file.name)}[/] against {against}",
            table(columns, rows, left=3),
            f"{verdict} within rtol {RTOL:g}, atol {ATOL:g}"
            + (", or as noted" if any(check.rtol > RTOL for check in checks) else ""),
            *(f"[yellow]{escape(line)}[/]" for line in checks.contradictions),
        )
    if worst:
        click.get_current_context().exit(1)


def _small(value: float) -> str:
    return "-" if value != value else "0" if value == 0 else f"{value:.1e}"
