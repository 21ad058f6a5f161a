"""Coverage of operators: for each op-version in ONNX's list, how memojax lowers it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx.defs

from .registry import OpDef, definitions, lookup

Lowering = Literal["ours", "delegated", "function body", "host", "no"]
"""How an op-version is lowered.

ours: a function in `ops/`; delegated: a jaxonnxruntime handler; function body: ONNX's own definition by other
operators; host: NumPy, outside XLA; no: it is refused.
"""

UNKNOWN_OP = "memojax has no such operator"


@dataclass(frozen=True)
class Version:
    """One op-version: `since` is the opset that introduced it."""

    since: int
    by: Lowering
    reason: str = ""


@dataclass(frozen=True)
class OpCoverage:
    """One operator and all its versions, oldest first; `family` is ONNX's name for its kind."""

    domain: str
    op_type: str
    family: str
    versions: tuple[Version, ...]

    @property
    def name(self) -> str:
        """The operator's name, after its domain if that is not ONNX's own."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    def groups(self) -> list[tuple[Lowering, str, list[int]]]:
        """(how it is lowered, reason if refused, versions), for each run of versions that are alike."""
        groups: list[tuple[Lowering, str, list[int]]] = []
        for version in self.versions:
            if groups and groups[-1][:2] == (version.by, version.reason):
                groups[-1][2].append(version.since)
            else:
                groups.append((version.by, version.reason, [version.since]))
        return groups


def who_lowers(domain: str, op_type: str, opset: int) -> tuple[Lowering, str]:
    """How an operator is lowered at `opset`, and the reason if it is refused."""
    definition = lookup(domain, op_type, opset)
    if definition is not None:
        return (
            (definition.origin, definition.reason) if definition.fn is not None else ("no", definition.reason)
        )
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset, domain)  # onnx's stubs miss some of its attributes
    except onnx.defs.SchemaError:
        return "no", UNKNOWN_OP
    if schema.has_function or schema.has_context_dependent_function:
        return "function body", ""
    return (
        "no",
        "part of training, not of inference" if domain == "ai.onnx.preview.training" else "not written yet",
    )


def coverage() -> list[OpCoverage]:
    """Every operator that ONNX defines or that is registered, by domain and name; no deprecated versions."""
    found: dict[tuple[str, str], tuple[str, dict[int, Version]]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.deprecated:
            _, versions = found.setdefault((schema.domain, schema.name), (_family(schema.file), {}))
            since = schema.since_version
            versions[since] = Version(since, *who_lowers(schema.domain, schema.name, since))
    for definition in definitions():
        key = definition.domain, definition.op_type
        if key not in found or not found[key][1].keys() & set(_range(definition, found[key][1])):
            _, versions = found.setdefault(key, (definition.domain or "other", {}))
            by, reason = who_lowers(*key, definition.since)
            versions[definition.since] = Version(definition.since, by, reason)
    rows = [
        OpCoverage(domain, op_type, family, tuple(versions[since] for since in sorted(versions)))
        for (domain, op_type), (family, versions) in found.items()
    ]
    return sorted(rows, key=lambda row: (row.domain != "", row.domain, row.op_type))


def totals(rows: Iterable[OpCoverage]) -> dict[str, int]:
    """Numbers of op-versions by how they are lowered."""
    return dict(Counter(version.by for row in rows for version in row.versions))


def _range(definition: OpDef, versions: Iterable[int]) -> Sequence[int]:
    return [since for since in versions if definition.covers(since)]


def _family(file: str) -> str:
    match = re.search(r"defs/([^/]+)/", file)
    return match[1] if match else "other"
