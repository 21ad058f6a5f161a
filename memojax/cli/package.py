"""`memojax package`: puts a policy into a CRVO asset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import find_model, json_option, model_argument
from .to_stablehlo import check_replaced, force_option, report, written

if TYPE_CHECKING:
    from ..model.crvo import Asset


@click.command("package", short_help="Put a policy into a CRVO asset.")
@model_argument
@click.argument("output", metavar="[OUTPUT]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-O",
    "--optimize",
    is_flag=True,
    help="Export it first; it then loads without its ONNX file (see to-stablehlo).",
)
@click.option(
    "-N",
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="With -O: the only number of rows that the asset runs.  [default: any]",
)
@force_option
@json_option
def command(
    model: str,
    output: Path | None,
    optimize: bool,
    batch_size: int | None,
    force: bool,
    json_file: str | None,
) -> None:
    """Put an ONNX file into a CRVO asset, cervo's container.

    OUTPUT defaults to NAME.crvo in the current folder. It replaces an older asset there, but no other file.
    Every command and `memojax.load` take assets like ONNX files. cervo reads assets that are not optimized.

    \b
    Examples:
      memojax package policy.onnx
      memojax package policy.onnx assets/policy.crvo -O
    """
    from ..stablehlo import to_stablehlo

    if batch_size and not optimize:
        raise click.UsageError(
            "--batch-size needs --optimize: an ONNX file keeps the batch of its own export"
        )
    file = find_model(model)
    target = output or Path(f"{file.name}.crvo")
    check_replaced(file, target, force)
    asset = to_stablehlo(file.path, batch_size=batch_size) if optimize else _as_it_is(file.path)
    report([written(file, asset, target)], json_file)


def _as_it_is(path: Path) -> Asset:
    from ..model import load_model
    from ..model.crvo import Asset, AssetKind
    from ..stablehlo import find_stablehlo, read_header

    exported = find_stablehlo(path)
    if exported is None:
        return Asset(AssetKind.ONNX, load_model(path).content)
    read_header(exported)
    return exported
