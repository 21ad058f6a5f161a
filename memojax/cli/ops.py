"""`memojax ops`: supported operators."""

from __future__ import annotations

from typing import Any

import click

from .options import json_option

_WHO = ("ours", "delegated", "function body", "host", "no")


@click.command("ops", short_help="List supported operators.")
@click.argument("names", nargs=-1, metavar="[OP]...")
@click.option("--domain", metavar="DOMAIN", help="Only this domain: ai.onnx, ai.onnx.ml, com.microsoft.")
@click.option("--by", type=click.Choice(_WHO), help="Only operators lowered this way.")
@click.option("--missing", is_flag=True, help="Only unsupported operators, with the reason (--by no).")
@json_option
def command(
    names: tuple[str, ...], domain: str | None, by: str | None, missing: bool, json_file: str | None
) -> None:
    """Print every ONNX operator, its versions, what lowers each, and the reason if nothing does.

    "ours" is a JAX function in memojax.ops. "delegated" is a handler of jaxonnxruntime. "function body" is
    ONNX's own definition by other operators. "host" runs outside of XLA.

    \b
    Example:
      memojax ops Softmax Gemm
      memojax ops --missing
    """
    from ..errors import InputError
    from ..ops.coverage import coverage, totals

    rows = coverage()
    if domain:
        rows = [row for row in rows if row.domain == ("" if domain == "ai.onnx" else domain)]
    if names:
        known = {row.op_type.casefold() for row in rows}
        if unknown := [name for name in names if name.casefold() not in known]:
            raise InputError(
                f"no operator is called {unknown[0]!r}{_close(unknown[0], [row.op_type for row in rows])}"
            )
        rows = [row for row in rows if row.op_type.casefold() in {name.casefold() for name in names}]
    wanted = "no" if missing else by
    listed = [(row, *group) for row in rows for group in row.groups() if wanted in (None, group[0])]
    if json_file:
        from .output import write_json

        write_json(json_file, {"totals": totals(rows), "operators": [_entry(*item) for item in listed]})
    if json_file != "-":
        from rich.text import Text

        from .output import show, table

        styles = {"no": "red", "host": "yellow", "function body": "cyan", "delegated": "magenta"}
        lines = [
            (row.name, row.family, ", ".join(map(str, versions)), Text(who, styles.get(who, "green")), reason)
            for row, who, reason, versions in listed
        ]
        counts = totals(rows)
        total = sum(counts.values())
        said = ", ".join(
            f"{counts[who]} {'not supported' if who == 'no' else who}" for who in _WHO if who in counts
        )
        show(
            table(["operator", "family", "versions", "lowered by", "why"], lines, left=5),
            f"{len(rows)} operators, {total} versions: {said} "
            f"({(total - counts.get('no', 0)) / max(total, 1):.1%} supported)",
        )


def _entry(row: Any, who: str, reason: str, versions: list[int]) -> dict[str, Any]:
    return {
        "domain": row.domain or "ai.onnx",
        "op": row.op_type,
        "family": row.family,
        "versions": versions,
        "by": who,
        "reason": reason,
    }


def _close(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {close[0]!r}?" if close else ""
