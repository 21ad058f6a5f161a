"""Where options of the caller contradict the evidence in the file: the loader alone finds something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MemojaxError
from ..lowering.batch_axis import BatchedFunction
from ..lowering.typed_model import TypedModel
from ..model import Model

_TOLD = "verify compares under this option, and cannot tell which of the two is right"


def contradictions(typed: TypedModel) -> list[str]:
    """A line for each `batch_axis` and constant of `typed` that the loader alone would not choose.

    A file that does not load without the option has no evidence against it.
    """
    model, loading = typed.model, typed.loading
    if model is None:
        return []
    found: list[str] = []
    if loading.get("batch_axis") is not None:
        said, alone = _loaded(model, loading), _loaded(model, loading, "batch_axis")
        if said and alone and _axes(said) != _axes(alone):
            found.append(
                f"batch_axis={loading['batch_axis']!r} contradicts the file: without it, the loader finds "
                f"{_shown(alone)}; {_TOLD}"
            )
    alone = _loaded(model, loading, "constants") if loading.get("constants") else None
    own = {spec.name: spec for spec in alone.api.inputs} if alone else {}
    for name, value in (loading.get("constants") or {}).items():
        if name in own and not own[name].static:
            shape = f"{own[name].dtype}{list(own[name].shape)}"
            found.append(
                f"constants={name!r} contradicts the file: without it, each agent gives its own {name!r} "
                f"({shape}); {_TOLD}"
            )
        elif name in model.graph.defaults and not np.array_equal(value, model.graph.initializers[name]):
            found.append(f"constants={name!r} replaces another value, the file's own default; {_TOLD}")
    return found


def _loaded(model: Model, loading: Mapping[str, Any], without: str = "") -> TypedModel | None:
    try:
        return TypedModel.from_model(model, **{key: loading[key] for key in loading if key != without})
    except MemojaxError:
        return None


def _axes(typed: TypedModel) -> Any:
    """What the batch is: the axis of each input, or nothing for a file that runs row by row."""
    if not isinstance(typed.fn, BatchedFunction):
        return typed.api.inputs
    rule = typed.fn.rule
    return None if rule.kind == "vmap" else {name: axis for name, (axis, _) in rule.inputs.items()}


def _shown(typed: TypedModel) -> str:
    axes = _axes(typed)
    if not isinstance(axes, dict):
        return typed.rule or str(typed.api)
    return "the agents on " + ", ".join(
        f"axis {axis} of {name!r}" if axis is not None else f"no axis of {name!r}"
        for name, axis in axes.items()
    )
