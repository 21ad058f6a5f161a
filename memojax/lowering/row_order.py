"""The order of an axis with several entries for each row: rows outermost, or entries outermost."""

from __future__ import annotations

from dataclasses import replace

from .batch_axis import PROBE_SIZES, BatchedFunction, OddOutputError, OutputRows
from .row_probe import mixing_rows
from .trial_run import trial_run


def in_row_order(rows: BatchedFunction) -> BatchedFunction:
    """`rows` with the order of each axis of several entries for each row, found by running a few rows.

    A Reshape to -1 keeps a row's entries together; a Concat of two heads along the batch, or a Tile of it,
    does not.

    Raises:
        OddOutputError: rows influence each other in such an output by either order.
    """
    several = [name for name, how in rows.rule.outputs.items() if how.per_row > 1]
    if not (wrong := _mixing(rows, several)):
        return rows
    turned = _turned(rows, wrong)
    if wrong := _mixing(turned, several):
        how = rows.rule.outputs[wrong[0]]
        raise OddOutputError(
            f"output {wrong[0]!r} has {how.per_row} entries for each row on axis {how.axis}, and rows "
            "influence each other in it, so nothing tells which entries belong to which agent: keep only the "
            "other outputs with outputs=[...], or use memojax.run or memojax.to_jax"
        )
    return turned


def _mixing(rows: BatchedFunction, names: list[str]) -> list[str]:
    """Those of `names`, in the file, in which rows influence each other."""
    if not names:
        return []
    function, n = rows.function, PROBE_SIZES[0]
    run = trial_run(rows, function.params, rows.api.inputs, n, random=function.random, limited=True)
    shown = dict(zip(rows.file_names[1], (spec.name for spec in rows.api.outputs), strict=True))
    found = mixing_rows(rows.api.inputs, rows.computed, n, run, by_place=not function.random)
    return [name for name in names if shown[name] in found]


def _turned(rows: BatchedFunction, names: list[str]) -> BatchedFunction:
    def turn(how: OutputRows) -> OutputRows:
        return replace(how, rows_outermost=not how.rows_outermost)

    outputs = {name: turn(how) if name in names else how for name, how in rows.rule.outputs.items()}
    return replace(rows, rule=replace(rows.rule, outputs=outputs))
