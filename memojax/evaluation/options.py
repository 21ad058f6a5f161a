"""The keywords of `evaluate`, in groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypedDict, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from .._argument_checks import as_count, unknown_option
from ..errors import EvaluationError, OptionError
from ..inferer.memoizing import OnMiss
from ..plans.batch_sizes import Bucketing
from ..spaces.connection import Wiring
from ..spaces.hidden_state import RecurrentInfo
from ..spaces.transforms import Observations
from .envs import Vectorization
from .planning import Planning
from .watching import Watching

Group = TypeVar("Group")


class EvaluateOptions(TypedDict, total=False):
    """The optional keywords of `evaluate`; its docstring describes each."""

    vectorization: Vectorization
    workers: int | None
    max_steps: int | None
    observation: Mapping[str, str] | str | None
    action: str | None
    epsilon: str | None
    recurrent: Iterable[RecurrentInfo | tuple[str, str]] | None
    observation_transforms: Sequence[Callable[[Observations], Observations]]
    action_transforms: Sequence[Callable[[np.ndarray], np.ndarray]] | None
    bucketing: Bucketing | None
    on_miss: OnMiss
    preload: Iterable[int]
    cache_dir: str | PathLike[str] | None
    maxsize: int | None
    device: str | jax.Device | None
    devices: str | Sequence[str | jax.Device] | None
    sharding: NamedSharding | None
    render: bool
    video: str | PathLike[str] | None
    name: str | None


@dataclass(frozen=True)
class Stepping:
    """The processes that step the environments, and the limit of steps."""

    vectorization: Vectorization = "sync"
    workers: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for what in ("workers", "max_steps"):
            if getattr(self, what) is not None:
                as_count(what, getattr(self, what), EvaluationError)
        if self.vectorization not in ("sync", "async"):
            raise EvaluationError(f"vectorization is 'sync' or 'async', not {self.vectorization!r}")


@dataclass(frozen=True)
class Naming:
    """Name of the policy in the result."""

    name: str | None = None


GROUPS = (Stepping, Wiring, Planning, Watching, Naming)

NAMED = ("episodes", "num_envs", "seed", "deterministic", "progress", "on_episode")
"""Keywords in the signature of `evaluate` itself, which a misspelt one may mean as well."""


def check_names(options: Mapping[str, Any]) -> None:
    """Check that every keyword belongs to a group.

    Raises:
        OptionError: one does not; the message names the closest keyword.
    """
    known = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    for name in options:
        if name not in known:
            raise OptionError(unknown_option("evaluate", name, [*NAMED, *known]))


def group_of(kind: type[Group], options: Mapping[str, Any]) -> Group:
    """The keywords of one group as its dataclass.

    Raises:
        EvaluationError: a value is invalid.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in options.items() if name in names})


def refuse_planning(options: Mapping[str, Any]) -> None:
    """Check that no option concerns the plans of an inferer, which is loaded already.

    Raises:
        EvaluationError: one does.
    """
    names = {field.name for field in dataclasses.fields(Planning)}
    if given := [f"{name}=" for name in options if name in names]:
        raise EvaluationError(
            f"{', '.join(given)} concern loading, but this policy is loaded already: pass them to "
            "memojax.load"
        )
