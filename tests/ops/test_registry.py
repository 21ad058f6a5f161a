"""Contracts over the whole registry, against ONNX's schemas: families, version bounds, attributes, inputs."""

from __future__ import annotations

from collections import defaultdict

import onnx.defs
import pytest
from onnx.defs import OpSchema

from memojax.model import LATEST_REVIEWED_OPSET
from memojax.ops import definitions, lookup, register, registry
from memojax.ops.registry import OpDef

SCHEMAS: dict[tuple[str, str], dict[int, OpSchema]] = defaultdict(dict)
for schema in onnx.defs.get_all_schemas_with_history():
    SCHEMAS[schema.domain, schema.name][schema.since_version] = schema

KNOWN = [definition for definition in definitions() if (definition.domain, definition.op_type) in SCHEMAS]
OURS = [definition for definition in KNOWN if definition.origin == "ours" and definition.fn is not None]


def label(definition: OpDef) -> str:
    return f"{definition.op_type}-{definition.since}"


def covered(definition: OpDef) -> list[OpSchema]:
    """Schemas of the versions that a definition covers."""
    versions = SCHEMAS[definition.domain, definition.op_type]
    return [
        schema for since, schema in versions.items() if since >= definition.since and definition.covers(since)
    ]


def family_of(schema: OpSchema) -> str:
    return schema.file.split("/defs/")[1].split("/")[0]


def test_every_operator_of_ai_onnx_is_placed() -> None:
    """Each operator is registered, refused with a reason, or expanded by ONNX's function body."""
    newest = {name: max(versions.items())[1] for (domain, name), versions in SCHEMAS.items() if domain == ""}
    missing = [
        name
        for name, schema in newest.items()
        if lookup("", name, LATEST_REVIEWED_OPSET) is None
        and not schema.deprecated
        and not (schema.has_function or schema.has_context_dependent_function)
    ]
    assert missing == []


@pytest.mark.parametrize("definition", [d for d in OURS if d.domain == "" and (d.until or 99) > 7], ids=label)
def test_an_operator_lives_in_the_file_of_its_family(definition: OpDef) -> None:
    family = family_of(next(iter(SCHEMAS["", definition.op_type].values())))
    module = definition.fn.__module__.removeprefix("memojax.ops.").split(".")[0] if definition.fn else ""
    assert module in (family, "_common", "registry") or module.startswith(("numpy", "jax"))


@pytest.mark.parametrize("definition", KNOWN, ids=label)
def test_bounds_are_real_versions(definition: OpDef) -> None:
    versions = set(SCHEMAS[definition.domain, definition.op_type])
    assert definition.since in versions or definition.since == 1
    assert definition.until is None or definition.until in versions


@pytest.mark.parametrize("definition", [d for d in OURS if d.attributes or not d.variadic], ids=label)
def test_signatures_match_onnx(definition: OpDef) -> None:
    for schema in covered(definition):
        if definition.domain == "" and schema.since_version < 7 and definition.since < 7:
            continue
        missing = set(schema.attributes) - definition.attributes
        assert missing == set(), f"{definition.op_type}-{schema.since_version} lacks {missing}"
        if not definition.variadic:
            assert len(schema.inputs) <= len(definition.positional)


def test_overlaps_and_bad_ranges_are_refused() -> None:
    def nothing(x):
        return x

    try:
        register("Nothing", domain="test", since=3, until=5)(nothing)
        register("Nothing", domain="test", since=5)(nothing)
        for since, until in ((1, 4), (4, None), (6, 7)):
            with pytest.raises(ValueError, match="overlap"):
                register("Nothing", domain="test", since=since, until=until)(nothing)
        with pytest.raises(ValueError, match="is empty"):
            register("Other", domain="test", since=3, until=3)(nothing)
        with pytest.raises(ValueError, match="names no input"):
            register("Other", domain="test", static=("y",))(nothing)
        found = lookup("test", "Nothing", 4)
        assert found is not None
        assert found.since == 3
        assert lookup("test", "Nothing", 2) is None
    finally:
        registry.remove("test", "Nothing")
        registry.remove("test", "Other")


def test_newest_opset_is_reviewed() -> None:
    """A newer onnx has operators that were not reviewed: raise LATEST_REVIEWED_OPSET once they are."""
    assert onnx.defs.onnx_opset_version() <= LATEST_REVIEWED_OPSET


def test_refusals_have_a_reason() -> None:
    for definition in definitions():
        assert definition.fn is not None or len(definition.reason) > 20
