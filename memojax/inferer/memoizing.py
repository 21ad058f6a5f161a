"""Every batch size on its own plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, final, get_args

import jax

from .._argument_checks import named_options, one_of
from .._types import Source
from ..lowering.batch_evidence import BatchAxis
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..plans.artifact import PlanArtifact
from ..plans.autotune import DEFAULT_BUDGET_MB, Autotune
from ..plans.batch_sizes import Bucketing, bucket_of, is_exact
from ..plans.compiler import Weights
from ..plans.helper import CompileIn
from .compiled import ModelInferer
from .options import InferOptions
from .routes import Buckets, OnMiss
from .sizes import Size, most_rows


@final
class MemoizingDynamicInferer(ModelInferer):
    """Compiles a plan for each batch size at its first use, and keeps it.

    Pick it if the number of agents is unknown or changes; preload the sizes that you expect.

    >>> policy = memojax.MemoizingDynamicInferer.from_model(memojax.policies.bundled("acrobot_ppo"), [8])
    >>> for n in (8, 3, 8):
    ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
    >>> [(plan.size, plan.calls) for plan in policy.plans()]
    [(3, 1), (8, 2)]

    Pros:
        Best speed at every size, without tuning. By default no row is padded, so models that mix rows give
        right answers too.
    Cons:
        A new size costs a compile (tens to hundreds of milliseconds) unless it was preloaded. Memory grows
        with the number of sizes; `maxsize=` caps it.
    """

    @named_options
    def __init__(
        self,
        typed: TypedModel,
        preloaded_sizes: Iterable[Size] | Size = (),
        *,
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        maxsize: int | None = None,
        device: str | jax.Device | None = "auto",
        seed: int = 0,
        precision: str | None = "highest",
        weights: Weights = "auto",
        cache_dir: str | PathLike[str] | PlanArtifact | None = None,
        autotune: Autotune = "off",
        autotune_budget_mb: float = DEFAULT_BUDGET_MB,
        strict: bool = False,
        checked: bool = False,
        compile_in: CompileIn = "auto",
        threads: int | None = None,
    ):
        """Compile `preloaded_sizes` now.

        Args:
            typed: the model.
            preloaded_sizes: batch sizes to compile now and never drop; see `preload`.
            bucketing: sizes that get a plan: "exact" (each), "pow2", a list, or a function. Other sizes are
                padded.
            max_batch_size: largest plan; larger batches are split.
            on_miss: action of a call whose size has no plan yet. "compile": it waits for the compile. "pad":
                it runs at once, padded to the next larger plan or split over smaller ones. The background
                then compiles the right plan. Only the very first call waits. "warn": like "compile", with a
                warning in the log. "error": it raises.
            maxsize: number of plans to keep beside the preloaded ones. The options from here on are those of
                `InferOptions`, which says more.
            device: device of NumPy batches.
            seed: seed of the numbers that a random model draws.
            precision: precision of matrix products on accelerators.
            weights: "constant", "argument" or "auto".
            cache_dir: folder, or `PlanArtifact`, that keeps compiled plans for other processes.
            autotune: which plans to compile in several ways and keep the fastest.
            autotune_budget_mb: megabytes that autotuning may use.
            strict: raise instead of taking a slow way.
            checked: raise if an input makes an index point outside of its axis.
            compile_in: where plans for NumPy batches on the CPU are compiled.
            threads: most threads of memojax's kernels in one call.

        Raises:
            OptionError: an option does not exist, or has the wrong type.
            BatchSizeError: a size is not a positive whole number, or the bucketing is unknown.
            RowsMixError: "pad" for a model in which rows influence each other.
        """
        one_of("on_miss", on_miss, get_args(OnMiss))
        self._policy = {"bucketing": bucketing, "max_batch_size": max_batch_size, "on_miss": on_miss}
        options = InferOptions(
            maxsize,
            device,
            seed,
            precision,
            weights,
            cache_dir,
            autotune,
            autotune_budget_mb,
            strict,
            checked,
            compile_in,
            threads,
        )
        route = Buckets(
            bucket_of(bucketing, max_batch_size), on_miss, exact=is_exact(bucketing, max_batch_size)
        )
        if isinstance(preloaded_sizes, Iterable) and not isinstance(preloaded_sizes, (str, bytes, Mapping)):
            preloaded_sizes = list(preloaded_sizes)
        rows = most_rows(preloaded_sizes, bucketing, max_batch_size)
        super().__init__(typed, (), options, route, rows)
        if on_miss == "pad":
            self._refuse_mixing("on_miss='pad'")
        self.preload(preloaded_sizes)

    @classmethod
    @named_options
    def from_model(
        cls,
        model: Source,
        preloaded_sizes: Iterable[Size] | Size = (),
        *,
        dims: Mapping[str, int] | None = None,
        batch_axis: BatchAxis = None,
        constants: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | str | None = None,
        inputs: Sequence[str] | str = (),
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        maxsize: int | None = None,
        device: str | jax.Device | None = "auto",
        seed: int = 0,
        precision: str | None = "highest",
        weights: Weights = "auto",
        cache_dir: str | PathLike[str] | PlanArtifact | None = None,
        autotune: Autotune = "off",
        autotune_budget_mb: float = DEFAULT_BUDGET_MB,
        strict: bool = False,
        checked: bool = False,
        compile_in: CompileIn = "auto",
        threads: int | None = None,
    ) -> MemoizingDynamicInferer:
        """Load an ONNX model; options are those of `TypedModel.from_model` and of the constructor.

        Raises:
            OptionError: an option does not exist, or has the wrong type.
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
        """
        typed = typed_model(
            model,
            dims=dims,
            batch_axis=batch_axis,
            constants=constants,
            outputs=outputs,
            inputs=inputs,
            strict=strict,
        )
        return cls(
            typed,
            preloaded_sizes,
            bucketing=bucketing,
            max_batch_size=max_batch_size,
            on_miss=on_miss,
            maxsize=maxsize,
            device=device,
            seed=seed,
            precision=precision,
            weights=weights,
            cache_dir=cache_dir,
            autotune=autotune,
            autotune_budget_mb=autotune_budget_mb,
            strict=strict,
            checked=checked,
            compile_in=compile_in,
            threads=threads,
        )

    @classmethod
    @named_options
    def from_typed(
        cls,
        model: TypedModel,
        preloaded_sizes: Iterable[Size] | Size = (),
        *,
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        maxsize: int | None = None,
        device: str | jax.Device | None = "auto",
        seed: int = 0,
        precision: str | None = "highest",
        weights: Weights = "auto",
        cache_dir: str | PathLike[str] | PlanArtifact | None = None,
        autotune: Autotune = "off",
        autotune_budget_mb: float = DEFAULT_BUDGET_MB,
        strict: bool = False,
        checked: bool = False,
        compile_in: CompileIn = "auto",
        threads: int | None = None,
    ) -> MemoizingDynamicInferer:
        """Use a loaded `TypedModel`.

        Raises:
            OptionError: an option does not exist, or has the wrong type.
        """
        return cls(
            model,
            preloaded_sizes,
            bucketing=bucketing,
            max_batch_size=max_batch_size,
            on_miss=on_miss,
            maxsize=maxsize,
            device=device,
            seed=seed,
            precision=precision,
            weights=weights,
            cache_dir=cache_dir,
            autotune=autotune,
            autotune_budget_mb=autotune_budget_mb,
            strict=strict,
            checked=checked,
            compile_in=compile_in,
            threads=threads,
        )

    def _arguments(self) -> dict[str, Any]:
        return dict(self._policy)
