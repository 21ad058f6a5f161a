"""`memojax package`: a policy as a CRVO asset."""

from __future__ import annotations

from pathlib import Path

import click

from .options import find_model, json_option, model_argument


@click.command("package", short_help="Put a policy into a CRVO asset.")
@model_argument
@click.argument("output", metavar="[OUTPUT]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("-O", "--optimize", is_flag=True, help="Export it first, so that it loads without its ONNX file (see to-stablehlo).")
@click.option("-N", "--batch-size", type=click.IntRange(1), metavar="N", help="With -O: the only number of rows to run.  [default: any]")
@json_option
def command(model: str, output: Path | None, optimize: bool, batch_size: int | None, json_file: str | None) -> None:
    """Put an ONNX file into a CRVO asset, cervo's container, which says what kind of policy it holds.

    OUTPUT is NAME.crvo in the current folder by default. Every command and `memojax.load` take assets as they take ONNX files; cervo reads
    those that are not optimized.

    \b
    Examples:
      memojax package policy.onnx
      memojax package policy.onnx assets/policy.crvo -O
    """
    from ..asset import AssetData, AssetKind
    from ..model import load_model
    from ..stablehlo import to_stablehlo
    from .to_stablehlo import report, written

    if batch_size and not optimize:
        raise click.UsageError("--batch-size goes with --optimize: an ONNX file keeps the batch that it was exported with")
    file = find_model(model)
    asset = to_stablehlo(file.path, batch_size=batch_size) if optimize else AssetData(AssetKind.ONNX, load_model(file.path).content)
    report([written(file, asset, output or Path(f"{file.name}.crvo"))], json_file)
