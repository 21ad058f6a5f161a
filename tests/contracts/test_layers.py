"""Imports point one way: a file imports only from rooms above its own, and no two files import each other."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

import memojax

ROOT = Path(memojax.__file__).parent
LAYERS = [
    "errors _types _argument_checks policies",
    "xla",
    "model",
    "ops",
    "rows",
    "spaces",
    "lowering",
    "plans kernels",
    "display",
    "inferer",
    "wrapper",
    "api backend stablehlo",
    "verification runtime evaluation",
    "ray",
    "cli",
]
EXEMPT = ("__init__", "__main__")
SANCTIONED = {
    ("memojax.inferer.base", "memojax.wrapper"): "cervo's methods with_epsilon and into_stateful",
}
"""Late imports that may point down: (module, room) -> reason."""


def _name(path: Path) -> str:
    parts = ("memojax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def imports(module: str) -> list[tuple[str, bool]]:
    """(imported module, whether the import is in a function) for each import of ours, except for types."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, late: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if _for_types_only(child):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = (
                    ".".join(
                        [
                            *package[: len(package) - child.level + 1],
                            *([child.module] if child.module else []),
                        ]
                    )
                    if child.level
                    else child.module
                )
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    found.append((full if full in MODULES else str(base), late))
            visit(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(path.read_text()), False)
    return [(name, late) for name, late in found if name.split(".")[0] == "memojax"]


PLACE = {room: index for index, line in enumerate(LAYERS) for room in line.split()}


def test_every_room_has_its_place() -> None:
    rooms = {_layer(module) for module in MODULES} - set(EXEMPT)
    assert rooms == set(PLACE), "add new rooms to LAYERS, and drop the rooms that are gone"
    assert len(LAYERS) <= 16


def test_the_architecture_page_shows_every_room_in_order() -> None:
    """docs/architecture.md draws the rooms: a newcomer looks there first."""
    picture = (ROOT.parent / "docs" / "architecture.md").read_text().split("```text\n")[1].split("```")[0]
    drawn = [line for line in (re.findall(r"[a-z_]+", row) for row in picture.splitlines()) if line]
    where = {
        room: next(index for index, words in enumerate(drawn) if room in words[:8])
        for line in LAYERS
        for room in line.split()
    }
    order = [[where[room] for room in line.split()] for line in LAYERS]
    for above, below in itertools.pairwise(order):
        assert max(above) < min(below), "the picture and LAYERS have the rooms in another order"


@pytest.mark.parametrize("module", [module for module in MODULES if _layer(module) in PLACE])
def test_imports_point_one_way(module: str) -> None:
    for name, late in imports(module):
        room = _layer(name)
        if room == "__init__":
            assert late, f"{module} imports the package itself while that is being imported"
        elif room in PLACE and not (late and (module, f"memojax.{room}") in SANCTIONED):
            assert PLACE[room] <= PLACE[_layer(module)], f"{module} imports {name}, which stands below it"


def test_each_sanctioned_import_exists() -> None:
    found = {
        (module, f"memojax.{_layer(name)}") for module in MODULES for name, late in imports(module) if late
    }
    assert SANCTIONED.keys() <= found


def test_no_two_files_import_each_other() -> None:
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name, late in imports(module):
                if not late and name in MODULES:
                    walk(name, (*path, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


@pytest.mark.parametrize("library", ["jaxonnxruntime"])
def test_only_one_file_imports_the_library(library: str) -> None:
    importing = [
        module
        for module, path in MODULES.items()
        if f"import {library}" in path.read_text() or f"from {library}" in path.read_text()
    ]
    assert importing == ["memojax.ops.delegated"]
