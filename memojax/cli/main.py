"""`memojax`: the group of commands, and the display of their errors."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

COMMANDS = (
    "evaluate",
    "api",
    "describe",
    "run",
    "verify",
    "benchmark",
    "package",
    "to-stablehlo",
    "cache",
    "ops",
)
"""Each is `memojax.cli.NAME:command` (`_` for `-`), imported when it is used."""

EPILOG = """
\b
Examples:
  memojax evaluate                                   a bundled, trained policy on its environment
  memojax evaluate policy.onnx --env CartPole-v1     your own
  memojax api policy.onnx                            its inputs and outputs

MODEL is an ONNX file or the name of a bundled policy: acrobot_ppo, pendulum_ppo, recurrent_lstm.

\b
Exit codes: 0 done; 1 an error of the model, the environment or the data, or a difference in 'verify'
(--debug shows the traceback); 2 an error in the command line; 130 stopped by Ctrl-C.

\b
Shell completion, for bash (zsh and fish likewise), in ~/.bashrc:
  eval "$(_MEMOJAX_COMPLETE=bash_source memojax)"
"""


class LazyGroup(click.Group):
    """Imports a command when it is used, and shows memojax's errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"memojax.cli.{cmd_name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as failure:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            raise click.UsageError(
                failure.message + (f" Did you mean {close[0]!r}?" if close else ""), ctx
            ) from None

    def invoke(self, ctx: click.Context) -> Any:
        from ..errors import MemojaxError

        try:
            return super().invoke(ctx)
        except (MemojaxError, OSError, MemoryError) as failure:
            if ctx.params.get("debug"):
                raise
            from .output import show_error

            show_error(failure)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            ctx.exit(130)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        from .. import __version__

        others = ", ".join(f"{name} {version(name)}" for name in ("jax", "onnx"))
        click.echo(f"memojax {__version__} ({others}, Python {sys.version.split()[0]})")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show versions and exit.",
)
def cli(debug: bool) -> None:
    """ONNX policies as memoized XLA executables: one per batch size, compiled once."""


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Import without garbage collections, which find no garbage among modules, yet read each object again.

    Later collections leave the imported objects alone, too.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from ..xla.quiet_start import restore

    given = sys.argv[1:] if args is None else list(args)
    if given and not {"-h", "--help", "--version"}.intersection(given):
        # Before `restore`, while Ctrl-C still ends the process at once: NumPy would report an interrupted
        # import as an error of its own.
        with no_collections():
            importlib.import_module("memojax.api")
    restore()
    cli.main(args=given, prog_name="memojax")
