"""`memojax to-stablehlo`: policies that load without their ONNX files."""

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
    return click.option("-f", "--force", is_flag=True, help="Replace a file that is no asset, too.")(command)


@click.command("to-stablehlo", short_help="Export policies so that they load without their ONNX files.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=ModelName())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Where to.  [default: NAME.crvo here]",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="The only number of rows to run.  [default: any]",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=click.Choice(PLATFORMS),
    help="Where it is to run.  [default: all of them]",
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
    """Export one or more policies with jax.export: the program in StableHLO, the weights and the names, in one CRVO asset each.

    Every command and `memojax.load` take the result, and give what they give for the ONNX file. By default it runs batches of any size.
    With several MODELs, each gets a file of its name in the folder --output; one that cannot be exported does not keep the others from it.
    An older asset there is replaced, no other file is.

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
            f"two models would be written to {twice[0]}: convert them one by one, with --output"
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
    """Make sure that nothing but an older asset is overwritten.

    Raises:
        InputError: there is no folder for `target`.
        click.UsageError: `target` is the file that the asset is made from, a folder, or (without `force`) something else than an asset.
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
                f"{target} is there already and is no CRVO asset: name another file, or replace it with --force"
            )


def written(file: ModelFile, asset: Any, target: Path, **more: Any) -> dict[str, Any]:
    """Write an asset; what there is to say about it."""
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
    """Print what was written."""
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
