"""`memojax describe`: the content of a model file."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import click

from .options import find_model, json_option, model_argument


@click.command("describe", short_help="Show the content of a model file.")
@model_argument
@json_option
def command(model: str, json_file: str | None) -> None:
    """Print a model's structure: opsets, producer, declared inputs and outputs, operators, weights, metadata.

    Works for every readable file, even if memojax cannot run it.

    \b
    Example:
      memojax describe pendulum_ppo
    """
    from ..model import load_model
    from ..stablehlo import find_stablehlo
    from .output import write_json

    file = find_model(model)
    asset = find_stablehlo(file.path)
    data = _describe(load_model(file.path), file) if asset is None else _describe_exported(asset, file)
    if json_file:
        write_json(json_file, data)
    if json_file != "-":
        (_show if asset is None else _show_exported)(data)


def _describe(loaded: Any, file: Any) -> dict[str, Any]:
    graph = loaded.graph
    ops = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.all_nodes()
    )
    weights = {name: array for name, array in graph.initializers.items() if array.dtype.kind in "fV"}
    constants = {
        node.outputs[0]: node.attributes["value"]
        for node in graph.all_nodes()
        if node.op_type == "Constant"
        and getattr(node.attributes.get("value"), "ndim", 0) > 0
        and node.attributes["value"].dtype.kind in "fV"
    }
    weights |= constants
    return {
        "model": file.name,
        "file": str(file.path),
        "bytes": len(loaded.content),
        "sha256": loaded.digest,
        "producer": loaded.producer,
        "ir_version": loaded.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in loaded.opsets.items()},
        "inputs": [_value(value) for value in graph.inputs],
        "outputs": [_value(value) for value in graph.outputs],
        "nodes": sum(ops.values()),
        "ops": dict(ops.most_common()),
        "parameters": int(sum(array.size for array in weights.values())),
        "parameter_bytes": int(sum(array.nbytes for array in weights.values())),
        "tensors": [
            {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in sorted(weights.items(), key=lambda item: -item[1].size)
        ],
        "metadata": dict(loaded.metadata),
        "notes": list(graph.notes),
    }


def _describe_exported(asset: Any, file: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from ..stablehlo import read_header

    header = asdict(read_header(asset))
    api = header.pop("api")
    tensors = sorted(header.pop("params"), key=lambda spec: -math.prod(spec["shape"]))
    about = {
        "model": file.name,
        "file": str(file.path),
        "kind": str(asset.kind),
        "bytes": len(asset.data),
        **api,
    }
    return {
        **about,
        **header,
        "parameters": sum(math.prod(spec["shape"]) for spec in tensors),
        "tensors": tensors,
    }


def _show_exported(data: dict[str, Any]) -> None:
    from .output import facts, show, table

    rows = [
        (side, spec["name"], str(spec["dtype"]), f"[{', '.join(map(str, ('n', *spec['shape'])))}]")
        for side in ("input", "output")
        for spec in data[f"{side}s"]
    ]
    about = [
        ("file", f"{data['file']} ({data['bytes']:,} bytes), StableHLO"),
        ("written by", ", ".join(f"{name} {version}" for name, version in data["written_by"].items())),
        ("runs on", ", ".join(data["platforms"])),
        ("batch", "any number of rows" if data["batch_size"] is None else f"{data['batch_size']} rows only"),
        ("program", f"{data['program_bytes']:,} bytes, calling convention {data['calling_convention']}"),
        ("weights", f"{data['parameters']:,} in {len(data['tensors'])} tensors"),
        *((f"metadata {key}", value[:200]) for key, value in data["metadata"].items()),
    ]
    show(
        f"[bold]{data['model']}[/]",
        table(["", "name", "dtype", "shape per batch"], rows, left=4),
        facts(about),
    )


def _value(value: Any) -> dict[str, Any]:
    shape = None if value.shape is None else ["?" if dim is None else dim for dim in value.shape]
    return {
        "name": value.name,
        "kind": value.kind,
        "dtype": None if value.dtype is None else str(value.dtype),
        "shape": shape,
    }


def _shape(shape: list[Any] | None) -> str:
    return "?" if shape is None else f"[{', '.join(map(str, shape))}]"


_LARGEST = 8


def _show(data: dict[str, Any]) -> None:
    from .output import facts, show, table

    rows = [
        (
            side,
            value["name"],
            value["dtype"] or value["kind"],
            "?" if value["shape"] is None else f"[{', '.join(map(str, value['shape']))}]",
        )
        for side in ("input", "output")
        for value in data[f"{side}s"]
    ]
    about = [
        ("file", f"{data['file']} ({data['bytes']:,} bytes)"),
        ("producer", f"{data['producer']}, IR version {data['ir_version']}"),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in data["opsets"].items())),
        (
            "weights",
            f"{data['parameters']:,} in {len(data['tensors'])} tensors ({data['parameter_bytes']:,} bytes)",
        ),
        *((f"metadata {key}", value[:200]) for key, value in data["metadata"].items()),
        *(("note", note) for note in data["notes"]),
    ]
    largest = [
        (tensor["name"], tensor["dtype"], str(tensor["shape"])) for tensor in data["tensors"][:_LARGEST]
    ]
    show(
        f"[bold]{data['model']}[/]",
        table(["", "name", "dtype", "shape as declared"], rows, left=4),
        facts(about),
        table(["operator", "nodes"], [*data["ops"].items(), ("all", data["nodes"])]),
        *([table(["largest tensors", "dtype", "shape"], largest, left=3)] if largest else []),
    )
