"""The key by which a plan, or a tuning choice, is found on disk."""

from __future__ import annotations

from typing import Any

from ..kernels.library import kernels_key
from ..xla.options import over_defaults
from .candidates import Candidate
from .compiler import PlanCompiler
from .disk_cache import environment_key
from .hoist import Residual
from .serialized import accelerator_key

_LAYOUT = 5
"""Raised with each change of an entry's meaning, so that older entries are not found."""


def plan_key(
    compiler: PlanCompiler,
    model: str | None,
    name: str,
    size: int,
    candidate: Candidate | None,
    residual: Residual | None = None,
) -> dict[str, Any]:
    """The key of a plan; without a candidate, the key of the tuning choice.

    Args:
        compiler: what compiles the plan.
        model: fingerprint of the model.
        name: short name of the model.
        size: number of rows.
        candidate: the way in which the plan is compiled.
        residual: the plan's trace if weights are arguments: it gives their order. Their values do not matter.
    """
    return {
        **environment_key(),
        "model": model,
        "name": name,
        "size": size,
        "platform": compiler.device.platform,
        "precision": compiler.precision,
        "candidate": candidate.name if candidate else None,
        "kernels": kernels_key() if candidate is None or candidate.kernels else None,
        "options": over_defaults(compiler.device, candidate.options if candidate else {}),
        "arguments": residual.origin() if residual else None,
        "layout": _LAYOUT,
        **accelerator_key(compiler.device),
        **({} if compiler.host else {"arrays": "jax"}),
        **({} if compiler.threads is None else {"threads": compiler.threads}),
        **({} if candidate is not None and candidate.kernels else {"run on": compiler.cores}),
    }
