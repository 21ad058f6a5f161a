"""What the parts of this room share: Ray, where it is installed, and a policy that travels with its plans."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any

from .._types import Source
from ..errors import IncompatibleModelError, MissingPackageError
from ..inferer.base import Inferer
from ..inferer.memoizing import MemoizingDynamicInferer
from ..inferer.of_model import InfererOfModel
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..plans.artifact import PlanArtifact
from ..xla.cores import pin_cores


def imported_ray(what: str) -> Any:
    """Ray itself.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as cause:
        raise MissingPackageError("ray", what, "ray") from cause


def model_of(policy: InfererOfModel | TypedModel | Source) -> TypedModel:
    """The model with its present weights.

    Raises:
        IncompatibleModelError: a wrapper, whose state is in this process.
        ModelLoadError: what `memojax.load` raises.
    """
    if isinstance(policy, InfererOfModel):
        return policy.typed
    if isinstance(policy, Inferer):
        raise IncompatibleModelError(
            f"{type(policy).__name__} keeps state in this process: give the inferer inside of it, or the "
            "model's file"
        )
    return policy if isinstance(policy, TypedModel) else typed_model(policy)


def with_plans(
    typed: TypedModel, sizes: Iterable[int], *, compile_here: bool = True, **options: Any
) -> MemoizingDynamicInferer:
    """A policy that has plans for `sizes` and takes them along when it is pickled: the other process compiles
    nothing.

    Where `compile_here` is False (this machine lacks the device), the other process compiles them.
    """
    sizes = sorted(set(sizes))
    policy = MemoizingDynamicInferer.from_typed(typed, bucketing=sizes, cache_dir=PlanArtifact(), **options)
    if compile_here:
        policy.preload(sizes)
    return policy


def pin_assigned() -> tuple[int, ...]:
    """In a worker of Ray: pin this process to as many whole cores as Ray has assigned to it."""
    ray = imported_ray("pinning cores")
    assigned: Any = None
    with contextlib.suppress(Exception):  # the driver is assigned nothing
        assigned = ray.get_runtime_context().get_assigned_resources().get("CPU")
    if assigned is None or assigned < 1 or not float(assigned).is_integer():
        return ()
    return pin_cores(int(assigned))


def compiles(policy: Inferer) -> int:
    """Plans that this process compiled, rather than found."""
    info: Any = policy.cache_info()  # pyright: ignore[reportAttributeAccessIssue]
    return info.currsize - info.disk_hits
