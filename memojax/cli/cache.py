"""`memojax cache`: the folder of compiled plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import Command, json_option


@click.group("cache", short_help="List, measure and clear compiled plans on disk.")
def command() -> None:
    """List, measure and clear the folder of compiled plans (`cache_dir=` of an inferer, or
    MEMOJAX_CACHE_DIR).

    These commands read only the headers of entries, never load compiled code, and never touch other files.
    Each takes --dir FOLDER and --json FILE|-.

    \b
    Examples:
      memojax cache list --dir ~/.cache/memojax
      memojax cache clear --model policy
    """


def _folder_options(command: Command) -> Command:
    """`--dir` and `--json`."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option(
        "--dir", "folder", type=kind, metavar="FOLDER", help="The folder.  [default: $MEMOJAX_CACHE_DIR]"
    )(json_option(command))


def _model_option(help: str) -> Callable[[Command], Command]:
    return click.option("--model", metavar="NAME", help=help)


@command.command("list")
@_folder_options
@_model_option("Only plans of this model (its file's name, with or without suffix).")
def list_(folder: Path | None, model: str | None, json_file: str | None) -> None:
    """Print every compiled plan: model, batch size, bytes, last use.

    \b
    Example:
      memojax cache list --model policy --json -
    """
    cache, choices = _open(folder)
    entries, labels = cache.entries(model), choices.labels(model)
    data = {
        "folder": str(cache.folder),
        "bytes": sum(entry.bytes for entry in entries),
        "entries": [
            {
                "model": one.model,
                "batch_size": one.size,
                "bytes": one.bytes,
                "last_used": _date(one.last_used),
                "file": one.path.name,
            }
            for one in entries
        ],
        "autotuned": labels,
    }

    def shown() -> list[Any]:
        from .output import table

        rows = [
            (
                one.model,
                _date(one.last_used),
                one.path.stem[:12],
                one.size or ("?" if one.is_plan else "weights"),
                f"{one.bytes:,}",
            )
            for one in entries
        ]
        columns = ["model", "last used", "entry", "batch size", "bytes"]
        return [*([table(columns, rows, left=3)] if rows else []), _total(cache, entries, labels)]

    _report(data, json_file, shown)


@command.command("size")
@_folder_options
def size(folder: Path | None, json_file: str | None) -> None:
    """Print the number of plans of each model, and their size.

    \b
    Example:
      memojax cache size --dir ~/.cache/memojax
    """
    cache, choices = _open(folder)
    entries, labels = cache.entries(), choices.labels()
    models = {
        name: [entry for entry in entries if entry.model == name]
        for name in sorted({entry.model for entry in entries})
    }
    data = {
        "folder": str(cache.folder),
        "plans": sum(one.is_plan for one in entries),
        "bytes": sum(entry.bytes for entry in entries),
        "models": [
            {"model": name, "plans": sum(one.is_plan for one in own), "bytes": sum(one.bytes for one in own)}
            for name, own in models.items()
        ],
        "autotuned": len(labels),
    }

    def shown() -> list[Any]:
        from .output import table

        rows = [(one["model"], one["plans"], f"{one['bytes']:,}") for one in data["models"]]
        return [*([table(["model", "plans", "bytes"], rows)] if rows else []), _total(cache, entries, labels)]

    _report(data, json_file, shown)


@command.command("clear")
@_folder_options
@_model_option("Only plans of this model (its file's name, with or without suffix).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clear(folder: Path | None, model: str | None, yes: bool, json_file: str | None) -> None:
    """Remove compiled plans and the results of autotuning; other files in the folder stay.

    Processes that use the folder keep the plans that they have loaded, and compile others again. Exits with 1
    if you answer no.

    \b
    Example:
      memojax cache clear --model policy --yes
    """
    cache, choices = _open(folder)
    entries, labels = cache.entries(model), choices.labels(model)
    if (entries or labels) and not yes:
        click.confirm(f"Remove {_total(cache, entries, labels, model)}?", abort=True, err=True)
    data = {
        "folder": str(cache.folder),
        "bytes": sum(entry.bytes for entry in entries),
        "removed": cache.clear(model),
        "autotuned_removed": choices.clear(model),
    }
    _report(data, json_file, lambda: [f"removed: {_total(cache, entries[: data['removed']], labels, model)}"])
    if data["removed"] < len(entries):
        click.echo(f"{len(entries) - data['removed']} entries could not be removed", err=True)
        click.get_current_context().exit(1)


def _open(folder: Path | None) -> tuple[Any, Any]:
    from ..plans.disk_cache import ENVIRONMENT, disk_cache
    from ..plans.tuning_log import Choices

    cache = disk_cache(folder, shared=True)  # Safe in any folder, as nothing here loads an entry.
    if cache is None:
        raise click.UsageError(f"no cache folder is set: give --dir FOLDER, or set {ENVIRONMENT}")
    return cache, Choices(cache.folder)


def _report(data: dict[str, Any], json_file: str | None, shown: Callable[[], list[Any]]) -> None:
    from .output import show, write_json

    if json_file:
        write_json(json_file, data)
    if json_file != "-":
        show(*shown())


def _total(cache: Any, entries: list[Any], labels: list[str], model: str | None = None) -> str:
    count = sum(one.is_plan for one in entries)
    plans = f"{count} plan{'' if count == 1 else 's'}"
    tuned = f", {len(labels)} autotuned choice{'' if len(labels) == 1 else 's'}" if labels else ""
    size = sum(entry.bytes for entry in entries)
    return f"{plans}{f' of {model}' if model else ''} ({size:,} bytes){tuned} in {cache.folder}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
