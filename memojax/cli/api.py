"""`memojax api`: inputs, outputs, batch rule and operators of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from .options import find_model, json_option, loading_of, loading_options, model_argument


@click.command("api", short_help="Inputs, outputs, batch rule and operators of a model.")
@model_argument
@loading_options
@click.option(
    "--probe/--no-probe",
    default=True,
    help="Run two small batches to see whether rows influence each other.",
)
@json_option
def command(model: str, probe: bool, json_file: str | None, **loading: Any) -> None:
    """Print a model's inputs, outputs, batch rule and operators.

    \b
    Example:
      memojax api acrobot_ppo
      memojax api silero_vad.onnx --constant sr=16000 --no-probe
    """
    from ..lowering.loading import typed_model
    from ..ops.coverage import who_lowers

    file = find_model(model)
    typed = typed_model(file.path, **loading_of(**loading))
    graph = typed.model.graph if typed.model else None
    counts = Counter((node.domain, node.op_type, node.opset) for node in (graph.all_nodes() if graph else ()))
    ops = [
        (name, op, opset, count, *who_lowers(name, op, opset))
        for (name, op, opset), count in sorted(counts.items())
    ]
    mixing = list(typed.mixing_outputs()) if probe else None
    notes = (
        list(graph.notes)
        if graph
        else ["an exported program (StableHLO), which needs neither its ONNX file nor its operators"]
    )
    if typed.random:
        notes.append("draws random numbers itself; its inferer's seed= makes runs repeatable")
    if wide := [spec.name for spec in (*typed.api.inputs, *typed.api.outputs) if spec.dtype.itemsize == 8]:
        notes.append(f"64-bit numbers in {', '.join(wide)}: they stay so, whatever JAX's x64 setting")
    if host := [op for _, op, _, _, by, _ in ops if by == "host"]:
        notes.append(f"graph breaks: {', '.join(host)} run on the host, between compiled parts")
    if typed.constant:
        notes.append(f"constant outputs, computed once: {', '.join(typed.constant)}")
    data = {
        "model": file.name,
        "inputs": [_spec(spec) for spec in typed.api.inputs],
        "outputs": [{**_spec(spec), "constant": spec.name in typed.constant} for spec in typed.api.outputs],
        "batch_rule": typed.rule,
        "rows_mix": mixing,
        "ops": [
            dict(zip(("domain", "op", "opset", "count", "by", "reason"), row, strict=True)) for row in ops
        ],
        "notes": notes,
    }
    if json_file:
        from .output import write_json

        write_json(json_file, data)
    if json_file != "-":
        _show(file.name, typed, ops, mixing, notes)


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


def _show(name: str, typed: Any, ops: list[Any], mixing: list[str] | None, notes: list[str]) -> None:
    from rich.markup import escape

    from ..errors import printable
    from .output import facts, show, table

    rows = [("input", spec.name, str(spec.dtype), _shape(spec)) for spec in typed.api.inputs]
    rows += [("output", spec.name, str(spec.dtype), _shape(spec)) for spec in typed.api.outputs]
    if mixing is None:
        independent = "not probed"
    elif mixing:
        independent = f"influence each other in {', '.join(mixing)}: batches are never padded or split"
    else:
        independent = "independent: batches may be padded and split"
    lowered = [
        (f"{domain}.{op}" if domain else op, by, reason, opset, count)
        for domain, op, opset, count, by, reason in ops
    ]
    if any(row[2] for row in lowered):
        ops_table = table(["operator", "lowered by", "why", "opset", "nodes"], lowered, left=3)
    else:
        ops_table = table(
            ["operator", "lowered by", "opset", "nodes"], [(a, b, d, e) for a, b, _, d, e in lowered], left=2
        )
    show(
        f"[bold]{escape(printable(name))}[/]",
        table(["", "name", "dtype", "shape per batch"], rows, left=4),
        facts([("batch rule", typed.rule), ("rows", independent), *(("note", note) for note in notes)]),
        *([ops_table] if ops else []),
    )


def _shape(spec: Any) -> str:
    return f"[{', '.join(map(str, ('n', *spec.shape)))}]"
