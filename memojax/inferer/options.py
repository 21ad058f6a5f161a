"""The options that the four inferers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypedDict, get_args

import jax

from .._argument_checks import as_count, of_kind, one_of, unknown_option
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
    threads: int | None


class MemoizingOptions(SharedOptions, total=False):
    """Options of `MemoizingDynamicInferer` as keyword arguments."""

    bucketing: Bucketing
    max_batch_size: int | None
    on_miss: OnMiss


@dataclass(frozen=True)
class InferOptions:
    """Options of every inferer.

    Attributes:
        maxsize: number of plans to keep beside the preloaded ones, over all devices. The cache drops the
            least recently used plan first. None means no limit.
        device: device of NumPy batches: "cpu" (or None), "gpu", "gpu:1", or a `jax.Device`. "auto" takes the
            accelerator where JAX has one and the model is big enough to gain, else the CPU; the card says
            which, and why.
        seed: seed of the numbers that a random model draws.
        precision: precision of matrix products on accelerators, by JAX's names.
        weights: "constant" (part of each executable), "argument" (`update_params` then recompiles nothing),
            or "auto".
        cache_dir: folder, or `PlanArtifact`, that keeps compiled plans for other processes; default
            `MEMOJAX_CACHE_DIR`.
        autotune: which plans to compile in several ways and keep the fastest: none ("off"), the preloaded
            ones at once ("preload"), or those in use ("background").
        autotune_budget_mb: megabytes that autotuning may use.
        strict: raise instead of taking a slow way. This concerns `jax.Array`s on several devices, or on
            another accelerator than `device`. While loading, it concerns a file whose graph breaks, so that
            each of its rows runs alone and partly on the host.
        checked: raise if an input makes an index point outside of its axis; the error names the node, the
            index and the agent. The check looks at each row before the batch runs, which takes time. Without
            it, such an index gives NaN.
        compile_in: where plans for NumPy batches on the CPU are compiled. "thread": in this process.
            "process": in a helper process that all inferers share, so compiles do not slow down calls.
            "auto": in the helper for background compiles (`on_miss="pad"`, `preload(background=True)`, a
            `Runtime`) if memory allows it.
        threads: most threads of memojax's kernels in one call; None means as many as there are cores. XLA's
            own code shares one pool in a process, which takes its size from `memojax.pin_cores`.
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
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the type of each option.

        Raises:
            OptionError: an option has the wrong type or an unknown value.
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
        if self.threads is not None:
            as_count("threads", self.threads, OptionError)
        if self.cache_dir is not None:
            of_kind("cache_dir", self.cache_dir, (str, PathLike, PlanArtifact), "a folder or a PlanArtifact")

    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def infer_options(what: str, given: Mapping[str, Any]) -> InferOptions:
    """`InferOptions` from keyword arguments of `what`.

    Raises:
        OptionError: an option does not exist, or has the wrong type.
    """
    known = [field.name for field in fields(InferOptions)]
    if unknown := [name for name in given if name not in known]:
        raise OptionError(unknown_option(what, unknown[0], known))
    return InferOptions(**given)
