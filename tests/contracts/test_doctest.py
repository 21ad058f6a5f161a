"""Every public name has an example in its docstring, and the example does what it says."""

from __future__ import annotations

import doctest
import functools
import inspect
import types
from typing import Any

import jax
import numpy as np
import pytest

import memojax

PUBLIC = {
    f"memojax.{name}": value
    for name in memojax.__all__
    if not isinstance(value := getattr(memojax, name), types.ModuleType)
}
"""Classes and functions. Modules are left out: `errors`, whose classes are raised, and the ones below."""

INSIDE = {
    "memojax.policies": ["names", "bundled", "card"],
    "memojax.ops": ["register"],
    "memojax.Inferer": [
        "infer_arrays",
        "infer_batch",
        "infer_single",
        "into_batched",
        "into_stateful",
        "with_default_epsilon",
        "with_epsilon",
        "__call__",
        "predict",
        "for_env",
    ],
    "memojax.MemoizingDynamicInferer": [
        "batch_sizes",
        "cache_info",
        "plans",
        "plot",
        "preload",
        "recommend_sizes",
        "update_params",
    ],
    "memojax.Batcher": ["execute", "extend"],
    "memojax.Runtime": ["replace_inferer", "run_for"],
    "memojax.StatefulInferer": ["with_new_inferer"],
    "memojax.TypedModel": ["from_function", "from_model", "with_params"],
    "memojax.NormalizeObs": ["from_vecnormalize"],
    "memojax.AssetData": ["write"],
    "memojax.evaluation": ["compare", "load", "merge"],
}
"""Functions of modules, and the methods through which a class is entered."""


def _objects() -> dict[str, Any]:
    found = dict(PUBLIC)
    for owner, names in INSIDE.items():
        parent = functools.reduce(getattr, owner.split(".")[1:], memojax)
        found |= {f"{owner}.{name}": getattr(parent, name) for name in names}
    return found


@pytest.mark.parametrize("name", OBJECTS := _objects())
def test_example(name: str) -> None:
    text = inspect.getdoc(OBJECTS[name]) or ""
    # Names that examples may use without an import.
    test = doctest.DocTestParser().get_doctest(
        text, {"memojax": memojax, "np": np, "jax": jax}, name, None, None
    )
    assert test.examples, f"{name} has no example in its docstring"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
