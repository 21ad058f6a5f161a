"""`memojax to-stablehlo`: exports policies, which then load without their ONNX files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .options import (
    Command,
    ModelFile,
    ModelName,
    check_target,
    find_model,
    json_option,
    loading_of,
    loading_options,
)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def force_option(command: Command) -> Command:
    """`--force`, for `check_replaced`."""
    return click.option("-f", "--force", is_flag=True, help="Also replace a file that is not an asset.")(
        command
    )


@click.command("to-stablehlo", short_help="Export policies, to load them without their ONNX files.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=ModelName())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Output.  [default: NAME.crvo in this folder]",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="The only number of rows that the export runs.  [default: any]",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=click.Choice(PLATFORMS),
    help="Platform to export for.  [default: all]",
)
@force_option
@loading_options
@json_option
def command(
    models: tuple[str, ...],
    output: Path | None,
    batch_size: int | None,
    platforms: tuple[str, ...],
    force: bool,
    json_file: str | None,
    **loading: Any,
) -> None:
    """Export policies with jax.export: program (StableHLO), weights and names, in one CRVO asset each.

    Every command and `memojax.load` take the result, with the same answers as the ONNX file's. By default it
    runs batches of any size. Several MODELs get a file each in the folder --output; a failed export does not
    stop the others. An older asset is replaced, but no other file.

    \b
    Examples:
      memojax to-stablehlo policy.onnx
      memojax to-stablehlo policies/*.onnx --output assets --platform cpu
    """
    from ..errors import MemojaxError, ModelLoadError
    from ..stablehlo import to_stablehlo

    files = [find_model(model) for model in models]
    folder = output is not None and (output.is_dir() or len(files) > 1)
    if folder and output is not None:
        output.mkdir(parents=True, exist_ok=True)
    targets = [
        (output or Path()) / f"{file.name}.crvo" if folder or output is None else output for file in files
    ]
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise click.UsageError(
            f"two models would be written to {twice[0]}: export them one by one, with --output"
        )
    for file, target in zip(files, targets, strict=True):
        check_replaced(file, target, force)
    results, failures = [], {}
    for file, target in zip(files, targets, strict=True):
        started = time.perf_counter()
        try:
            asset = to_stablehlo(
                file.path, batch_size=batch_size, platforms=platforms or None, **loading_of(**loading)
            )
        except MemojaxError as failure:
            failures[file.name] = failure
        else:
            results.append(written(file, asset, target, seconds=time.perf_counter() - started))
    if results:
        report(results, json_file)
    if len(files) == 1 and failures:
        raise failures[files[0].name]
    if failures:
        listing = "\n  ".join(f"{name}: {failure}" for name, failure in failures.items())
        raise ModelLoadError(f"{len(failures)} of {len(files)} models could not be exported:\n  {listing}")


def check_replaced(file: ModelFile, target: Path, force: bool) -> None:
    """Check that writing `target` can only replace an older asset.

    Raises:
        InputError: the folder of `target` does not exist.
        click.UsageError: `target` is the source file, a folder, or (without `force`) a file that is not an
            asset.
    """
    from ..model.crvo import HEADER_BYTES, is_asset

    if not target.exists():
        check_target(target)
        return
    if target.is_dir():
        raise click.UsageError(f"{target} is a folder: name a file in it")
    if target.samefile(file.path):
        raise click.UsageError(f"{target} would be written over itself: name another file")
    with target.open("rb") as there:
        if not force and not is_asset(there.read(HEADER_BYTES)):
            raise click.UsageError(
                f"{target} exists and is not a CRVO asset: name another file, or replace it with --force"
            )


def written(file: ModelFile, asset: Any, target: Path, **more: Any) -> dict[str, Any]:
    """Write an asset and return facts about it."""
    from ..model.crvo import AssetKind
    from ..stablehlo import read_header

    asset.write(target)
    about = {
        "model": file.name,
        "file": str(target),
        "kind": str(asset.kind),
        "bytes": target.stat().st_size,
        **more,
    }
    if asset.kind is AssetKind.STABLEHLO:
        header = read_header(asset)
        about |= {
            "batch_size": header.batch_size,
            "platforms": list(header.platforms),
            "program_bytes": header.program_bytes,
        }
    return about


def report(results: list[dict[str, Any]], json_file: str | None) -> None:
    """Print the facts of `written`."""
    from .output import show, table, write_json

    if json_file:
        write_json(json_file, {"assets": results})
    if json_file != "-":
        rows = [(one["model"], one["file"], one["kind"], _batch(one), f"{one['bytes']:,}") for one in results]
        show(table(["model", "written to", "kind", "batch", "bytes"], rows, left=4))


def _batch(about: dict[str, Any]) -> str:
    return (
        "as in the file"
        if "batch_size" not in about
        else "any"
        if about["batch_size"] is None
        else str(about["batch_size"])
    )
