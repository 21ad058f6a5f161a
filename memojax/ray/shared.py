"""Shared by this room: Ray, if it is installed, and a policy that travels with its plans."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from .._types import Source
from ..errors import IncompatibleModelError, MissingPackageError
from ..inferer.base import Inferer
from ..inferer.memoizing import MemoizingDynamicInferer
from ..inferer.of_model import InfererOfModel
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..plans.artifact import PlanArtifact
from ..xla.cores import pin_cores, threads_for


def imported_ray(what: str) -> Any:
    """Import Ray itself.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as cause:
        raise MissingPackageError("ray", what, "ray") from cause


def model_of(policy: InfererOfModel | TypedModel | Source) -> TypedModel:
    """The model of a policy, with its present weights.

    Raises:
        IncompatibleModelError: `policy` is a wrapper, whose state stays in this process.
        ModelLoadError: as for `memojax.load`.
    """
    if isinstance(policy, InfererOfModel):
        return policy.typed
    if isinstance(policy, Inferer):
        raise IncompatibleModelError(
            f"{type(policy).__name__} keeps state in this process: pass the inferer inside it, or the "
            "model's file"
        )
    return policy if isinstance(policy, TypedModel) else typed_model(policy)


def with_plans(
    typed: TypedModel, sizes: Iterable[int], *, compile_here: bool = True, **options: Any
) -> MemoizingDynamicInferer:
    """A policy that pickles together with its plans for `sizes`, so the other process compiles nothing.

    With `compile_here` False (this machine lacks the device), the other process compiles them.
    """
    sizes = sorted(set(sizes))
    policy = MemoizingDynamicInferer.from_typed(typed, bucketing=sizes, cache_dir=PlanArtifact(), **options)
    if compile_here:
        policy.preload(sizes)
    return policy


def pin_assigned() -> tuple[int, ...]:
    """Pin a worker process of Ray to as many whole cores as Ray has assigned to it."""
    cores = _assigned()
    return pin_cores(cores) if cores else ()


def threads_for_assigned() -> AbstractContextManager[None]:
    """Let XLA and the kernels start inside with threads for the whole cores that Ray has assigned."""
    return threads_for(_assigned())


def _assigned() -> int:
    """Number of whole cores that Ray has assigned to this process; 0 for a part of a core, or for none."""
    ray = imported_ray("counting cores")
    assigned: Any = None
    with contextlib.suppress(Exception):  # Ray assigns nothing to the driver.
        assigned = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return int(assigned) if assigned is not None and float(assigned).is_integer() else 0


def compiles(policy: Inferer) -> int:
    """Number of plans that this process compiled, without those from disk."""
    info: Any = policy.cache_info()  # pyright: ignore[reportAttributeAccessIssue]
    return info.currsize - info.disk_hits
