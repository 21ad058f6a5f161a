"""Options of several commands: MODEL, loading, devices, `--json`."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelFile:
    """A MODEL argument: its name, its file, and the card beside it (`NAME.json` with an `env_id`) or {}."""

    name: str
    path: Path
    card: Mapping[str, Any]


def find_model(text: str) -> ModelFile:
    """The file of a MODEL argument, which is a path or the name of a bundled policy.

    Raises:
        ModelLoadError: `text` is neither.
    """
    from .. import policies
    from ..errors import ModelLoadError
    from ..model.files import path_of

    path = path_of(text)
    if not path.exists():
        if text not in policies.names():
            close = difflib.get_close_matches(text, policies.names(), 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ModelLoadError(
                f"{text}: no such file, and no bundled policy has that name{hint}; bundled are "
                f"{', '.join(policies.names())}"
            )
        path = policies.bundled(text)
    return ModelFile(path.stem, path, _card(path.with_suffix(".json")))


def _card(path: Path) -> Mapping[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) and isinstance(card.get("env_id"), str) else {}


class ModelName(click.ParamType):
    """A MODEL argument; the shell completes files and the names of bundled policies."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from .. import policies

        bundled = [
            CompletionItem(name, help="bundled") for name in policies.names() if name.startswith(incomplete)
        ]
        return [*bundled, CompletionItem(incomplete, type="file")]


def model_argument(command: Command) -> Command:
    """The MODEL argument."""
    return click.argument("model", metavar="MODEL", type=ModelName())(command)


def loading_options(command: Command) -> Command:
    """`--dim`, `--constant`, `--batch-axis`, gathered into the keyword `loading` by `loading_of`."""
    for option in reversed(
        (
            click.option(
                "--dim",
                "dims",
                multiple=True,
                metavar="NAME=SIZE",
                help="Size of a symbolic dimension other than the batch.",
            ),
            click.option(
                "--constant",
                "constants",
                multiple=True,
                metavar="INPUT=VALUE",
                help="Value of an input that all agents share.",
            ),
            click.option(
                "--batch-axis",
                multiple=True,
                metavar="AXIS|SYMBOL|none|INPUT=AXIS",
                help="Place of the batch, if the file states it wrongly; none: one run for each agent.",
            ),
        )
    ):
        command = option(command)
    return command


def loading_of(
    dims: tuple[str, ...], constants: tuple[str, ...], batch_axis: tuple[str, ...]
) -> dict[str, Any]:
    """Options of `TypedModel.from_model`, from the options of the command line."""
    loading: dict[str, Any] = {}
    if dims:
        loading["dims"] = {name: _whole(value, f"--dim {name}") for name, value in pairs(dims, "--dim")}
    if constants:
        loading["constants"] = {name: _literal(value, name) for name, value in pairs(constants, "--constant")}
    if batch_axis and len(batch_axis) == 1 and "=" not in batch_axis[0]:
        (only,) = batch_axis
        number = only.removeprefix("-").isdigit()
        loading["batch_axis"] = False if only == "none" else int(only) if number else only
    elif batch_axis:
        loading["batch_axis"] = {
            name: None if value == "none" else _whole(value, f"--batch-axis {name}")
            for name, value in pairs(batch_axis, "--batch-axis")
        }
    return loading


def onnx_option(command: Command) -> Command:
    """`--onnx FILE`: the file for another runtime, if MODEL has no graph."""
    return click.option(
        "--onnx",
        metavar="FILE",
        type=ModelName(),
        help="ONNX file for the other runtime, if MODEL was exported from it.",
    )(command)


def loaded_pair(file: ModelFile, onnx: str | None, loading: Mapping[str, Any]) -> tuple[Any, Any]:
    """Load MODEL and the model of `--onnx` (None without it); loading options go to the ONNX file of the two.

    Raises:
        ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
    """
    from ..lowering.loading import typed_model
    from ..stablehlo import find_stablehlo, load_stablehlo

    asset = find_stablehlo(file.path)
    typed = load_stablehlo(asset) if asset is not None and onnx else typed_model(file.path, **loading)
    return typed, typed_model(find_model(onnx).path, **loading) if onnx else None


def json_option(command: Command) -> Command:
    """`--json FILE`."""
    help = "Write the result as JSON; - writes it to stdout instead of the tables."
    return click.option("--json", "json_file", metavar="FILE|-", callback=checked_target, help=help)(command)


def checked_target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A callback of options that name an output file; it checks the file before the work begins.

    Raises:
        InputError: the path is a folder, or its folder does not exist.
    """
    if value is not None and value != "-" and not ctx.resilient_parsing:
        check_target(value)
    return value


def check_bound(api: Any) -> None:
    """Check that random rows can be made: every dimension and static input must have a value.

    Raises:
        DimensionError: one has none; the message names the options that set it.
    """
    from ..errors import DimensionError

    wanted = [f"--dim {symbol}=16" for symbol in api.free]
    wanted += [f"--constant {spec.name}=1" for spec in api.inputs if spec.static]
    if wanted:
        raise DimensionError(f"the model leaves sizes open: give {' '.join(wanted)} (or other values)")


def check_target(path: str | Path) -> None:
    """Check that `path` can become a file, without writing it.

    Raises:
        InputError: `path` is a folder, or its folder does not exist.
    """
    from ..errors import InputError

    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist: make it first")
    if target.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")


def device_option(command: Command) -> Command:
    """`--device D`."""
    return click.option(
        "--device",
        metavar="DEVICE",
        help="cpu, gpu, gpu:1, tpu, ...  [default: auto, the accelerator if the model is big enough to gain]",
    )(command)


def devices_option(command: Command) -> Command:
    """`--devices all|D,D`."""
    return click.option(
        "--devices",
        metavar="all|DEVICE,...",
        help="Spread the rows of each batch over several devices.",
    )(command)


def places(device: str | None, devices: str | None, **alone: Any) -> dict[str, Any]:
    """`device=` (with `alone`) or `devices=` of `memojax.load`, from the options of the command line.

    Raises:
        click.UsageError: both are given.
    """
    if device and devices:
        raise click.UsageError("--device names one device, --devices several: give one of them")
    if devices:
        return {"devices": devices if devices == "all" else devices.split(",")}
    return {"device": device or "auto", **alone}


def recurrent_pairs(given: Iterable[str]) -> list[tuple[str, str]] | None:
    """The pairs of `--recurrent` (IN:OUT, separated by commas); None for "auto".

    Raises:
        click.UsageError: `given` is neither.
    """
    parts = tuple(part for value in given for part in value.split(","))
    return (
        None
        if parts == ("auto",)
        else pairs(parts, "--recurrent", ":", "auto, or IN:OUT separated by commas")
    )


def pairs(
    values: tuple[str, ...], option: str, mark: str = "=", form: str = "NAME=VALUE"
) -> list[tuple[str, str]]:
    """Split `NAME=VALUE` options; `form` shows the right form in the message.

    Raises:
        click.UsageError: an option lacks the mark.
    """
    result = []
    for value in values:
        name, found, rest = value.rpartition(mark)
        if not found or not name or not rest:
            raise click.UsageError(f"{option} {value!r}: write it as {form}")
        result.append((name, rest))
    return result


def _whole(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(f"{what}: {text!r} is not a whole number") from None


def _literal(text: str, name: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise click.UsageError(f"--constant {name}: {text!r} is not a number or a list of numbers") from None


def check_plot(path: str | None) -> None:
    """Check, before the work begins, that a picture can be written to `path`.

    Raises:
        MissingPackageError: matplotlib is not installed.
        InputError: matplotlib does not know the file's suffix, or see `check_target`.
    """
    if path is None:
        return
    from ..display.figure import NotebookFigure
    from ..errors import InputError

    target = Path(path)
    known = NotebookFigure().canvas.get_supported_filetypes()
    if target.suffix.lstrip(".").lower() not in known:
        raise InputError(
            f"{path}: matplotlib cannot write {target.suffix or 'a file without a suffix'!r}: "
            f"use {', '.join(sorted(known))}"
        )
    check_target(path)
