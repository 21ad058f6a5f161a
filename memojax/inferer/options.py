"""What the four inferers have in common to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypedDict, get_args

import jax

from .._options import of_kind, one_of, unknown_option
from ..errors import OptionError
from ..plans.artifact import PlanArtifact
from ..plans.autotune import DEFAULT_BUDGET_MB, Autotune
from ..plans.batch_sizes import Bucketing
from ..plans.compiler import Weights
from ..plans.helper import CompileIn
from .routes import OnMiss


class SharedOptions(TypedDict, total=False):
    """`InferOptions` as keyword arguments."""

    maxsize: int | None
    device: str | jax.Device | None
    seed: int
    precision: str | None
    weights: Weights
    cache_dir: str | PathLike[str] | PlanArtifact | None
    autotune: Autotune
    autotune_budget_mb: float
    strict: bool
    checked: bool
    compile_in: CompileIn


class MemoizingOptions(SharedOptions, total=False):
    """Options of `MemoizingDynamicInferer` as keyword arguments."""

    bucketing: Bucketing
    max_batch_size: int | None
    on_miss: OnMiss


@dataclass(frozen=True)
class InferOptions:
    """Options of every inferer.

    Attributes:
        maxsize: the most plans to keep that were not preloaded, on all devices together; the least recently
            used go. None: no limit.
        device: where NumPy batches run: "cpu" (or None), "gpu", "gpu:1", or a `jax.Device`. "auto": the
            accelerator where JAX has one and the model is big enough to gain (`auto_device` has the rule),
            else the CPU; the card says which, and why.
        seed: of the numbers that a random model draws.
        precision: of matrix products on accelerators, by JAX's names.
        weights: "constant" (part of each executable), "argument" (`update_params` then recompiles nothing),
            or "auto".
        cache_dir: folder, or `PlanArtifact`, that keeps compiled plans for other processes;
            `MEMOJAX_CACHE_DIR` without it.
        autotune: whether plans are tried as other candidates too: "off", "preload" (the preloaded ones, at
            once), "background" (those in use).
        autotune_budget_mb: memory that tuning may use.
        strict: refuse what would be mended at a cost: `jax.Array`s that lie on several devices, or elsewhere
            than on the accelerator that `device` names, and, while loading, a file whose graph breaks, so
            that each row of it runs by itself, partly on the host.
        checked: raise an error where data gives an index that points at nothing, with the node, the index and
            the agent. Each row is looked at before the batch runs, which takes time; without it, such an
            index gives NaN.
        compile_in: where plans for NumPy batches on the CPU are compiled. "thread": in this process.
            "process": in a process of its own, which all inferers share, so that compiles do not slow down
            calls. "auto": there if it is done in the background (`on_miss="pad"`, `preload(background=True)`,
            a `Runtime`) and there is memory for it.
    """

    maxsize: int | None = None
    device: str | jax.Device | None = "auto"
    seed: int = 0
    precision: str | None = "highest"
    weights: Weights = "auto"
    cache_dir: str | PathLike[str] | PlanArtifact | None = None
    autotune: Autotune = "off"
    autotune_budget_mb: float = DEFAULT_BUDGET_MB
    strict: bool = False
    checked: bool = False
    compile_in: CompileIn = "auto"

    def __post_init__(self) -> None:
        """Check kinds.

        Raises:
            OptionError: an option of another kind.
        """
        if self.maxsize is not None:
            of_kind("maxsize", self.maxsize, int, "a whole number or None")
        of_kind("seed", self.seed, int, "a whole number")
        one_of("weights", self.weights, get_args(Weights))
        one_of("autotune", self.autotune, get_args(Autotune))
        of_kind("autotune_budget_mb", self.autotune_budget_mb, (int, float), "megabytes")
        of_kind("strict", self.strict, bool, "True or False")
        of_kind("checked", self.checked, bool, "True or False")
        one_of("compile_in", self.compile_in, get_args(CompileIn))
        if self.cache_dir is not None:
            of_kind("cache_dir", self.cache_dir, (str, PathLike, PlanArtifact), "a folder or a PlanArtifact")

    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def infer_options(what: str, given: Mapping[str, Any]) -> InferOptions:
    """Keyword arguments as `InferOptions`.

    Raises:
        OptionError: an option that does not exist, or of another kind.
    """
    known = [field.name for field in fields(InferOptions)]
    if unknown := [name for name in given if name not in known]:
        raise OptionError(unknown_option(what, unknown[0], known))
    return InferOptions(**given)
