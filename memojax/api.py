"""The main functions: `load` gives an inferer, `to_jax` a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict, Unpack, cast, overload

import jax
from jax.sharding import NamedSharding

from ._argument_checks import named_options
from ._types import Params, Source
from .errors import IncompatibleModelError, InputError, OptionError
from .inferer.base import Inferer
from .inferer.memoizing import MemoizingDynamicInferer
from .inferer.of_model import InfererOfModel
from .inferer.options import InferOptions
from .inferer.routes import OnMiss
from .inferer.sharded import ShardedInferer
from .inferer.sizes import Size
from .kernels.function import with_kernels
from .lowering.batch_evidence import BatchAxis
from .lowering.pure_function import PureFunction, of_graph, of_rows
from .lowering.typed_model import TypedModel
from .model import Model, load_model
from .plans.artifact import PlanArtifact
from .plans.autotune import DEFAULT_BUDGET_MB, Autotune
from .plans.batch_sizes import Bucketing
from .plans.compiler import Weights
from .plans.helper import CompileIn


class ShardedOptions(TypedDict, total=False):
    """Options of `load` for policies over several devices."""

    preload: Iterable[int] | int
    dims: Mapping[str, int] | None
    batch_axis: BatchAxis
    constants: Mapping[str, Any] | None
    outputs: Sequence[str] | str | None
    inputs: Sequence[str] | str
    bucketing: Bucketing
    max_batch_size: int | None
    on_miss: OnMiss
    maxsize: int | None
    precision: str | None
    cache_dir: str | PathLike[str] | PlanArtifact | None
    strict: bool


@overload
def load(
    source: Source | TypedModel,
    *,
    devices: str | Sequence[str | jax.Device],
    **options: Unpack[ShardedOptions],
) -> ShardedInferer: ...
@overload
def load(
    source: Source | TypedModel,
    *,
    sharding: NamedSharding,
    **options: Unpack[ShardedOptions],
) -> ShardedInferer: ...
@overload
def load(
    source: Source | TypedModel,
    *,
    preload: Iterable[Size] | Size = (),
    dims: Mapping[str, int] | None = None,
    batch_axis: BatchAxis = None,
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    inputs: Sequence[str] | str = (),
    bucketing: Bucketing = "exact",
    max_batch_size: int | None = None,
    on_miss: OnMiss = "compile",
    maxsize: int | None = None,
    devices: None = None,
    sharding: None = None,
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
) -> MemoizingDynamicInferer: ...
@named_options
def load(
    source: Source | TypedModel,
    *,
    preload: Iterable[Size] | Size = (),
    dims: Mapping[str, int] | None = None,
    batch_axis: BatchAxis = None,
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    inputs: Sequence[str] | str = (),
    bucketing: Bucketing = "exact",
    max_batch_size: int | None = None,
    on_miss: OnMiss = "compile",
    maxsize: int | None = None,
    devices: str | Sequence[str | jax.Device] | None = None,
    sharding: NamedSharding | None = None,
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
) -> MemoizingDynamicInferer | ShardedInferer:
    """Load a policy for any number of agents.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[4])
    >>> policy.infer_arrays({"obs": np.zeros((4, 6), np.float32)})["logits"].shape
    (4, 3)

    Args:
        source: path, name of a bundled policy, bytes, file object, `onnx.ModelProto`, or `TypedModel`.
        preload: batch sizes to compile now; {"batch": 8, "seq": 16} for a model with free dimensions.
        dims: sizes of named dimensions that the file leaves open; as in `TypedModel.from_model`, like the
            next four.
        batch_axis: the batch axis, if the file does not determine it.
        constants: inputs that are the same for all agents and calls, name -> value in the file layout.
        outputs: outputs to keep.
        inputs: inputs with a default in the file that callers give with each call.
        bucketing: sizes that get a plan; as in `MemoizingDynamicInferer`, like the next two.
        max_batch_size: largest plan; larger batches are split.
        on_miss: action of a call whose size has no plan yet.
        devices: devices that share the rows of each batch: "all", or a list. The result is then a
            `ShardedInferer`.
        sharding: alternative to `devices`: `NamedSharding(mesh, PartitionSpec("batch"))`.
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
        OptionError: an option does not exist, has the wrong type, or does not fit several devices.
        DeviceError: the machine has no such device.
        ModelLoadError: the file cannot be loaded.
        UnsupportedOpError: the file has operators that cannot be lowered; the message lists all of them.
        DimensionError: the batch or a dimension is not determined.
    """
    if devices is not None or sharding is not None:
        # The other options choose between ways to run on one device, so they are refused here.
        one = InferOptions()
        given = {
            "device": device,
            "seed": seed,
            "weights": weights,
            "autotune": autotune,
            "autotune_budget_mb": autotune_budget_mb,
            "checked": checked,
            "compile_in": compile_in,
            "threads": threads,
        }
        if unfit := [name for name, value in given.items() if value != getattr(one, name)]:
            raise OptionError(
                f"{unfit[0]}= is for one device, but {'devices' if devices is not None else 'sharding'}= "
                "spreads rows over several: leave one of them out"
            )
        return ShardedInferer.from_model(
            source,
            cast("Iterable[int]", preload),
            dims=dims,
            batch_axis=batch_axis,
            constants=constants,
            outputs=outputs,
            inputs=inputs,
            devices="all" if devices is None else devices,
            sharding=sharding,
            bucketing=bucketing,
            max_batch_size=max_batch_size,
            on_miss=on_miss,
            maxsize=maxsize,
            precision=precision,
            cache_dir=cache_dir,
            strict=strict,
        )
    return MemoizingDynamicInferer.from_model(
        source,
        preload,
        dims=dims,
        batch_axis=batch_axis,
        constants=constants,
        outputs=outputs,
        inputs=inputs,
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


def to_jax(
    source: Source | Model | TypedModel | InfererOfModel,
    *,
    outputs: tuple[str, ...] | None = None,
    constants: Mapping[str, Any] | None = None,
    kernels: bool = False,
) -> tuple[PureFunction, Params]:
    """A policy as a pure function and its weights.

    `fn(params, inputs)` maps `{name: array}` to `{name: array}`; a model with random operators has
    `fn(params, inputs, key)`. Arrays have the file's own layout, or, for an inferer, rows `[n,
    *element_shape]` and its present weights. `fn` works under `jit`, `vmap`, `grad`, `lax.scan` and
    `shard_map` (an exported program not under `vmap` and `grad`). Dtypes follow the caller's x64 setting.
    Tracing checks names, shapes and kinds of numbers. A file for one row takes more rows if traces or trial
    runs show that they do not influence each other.

    >>> fn, params = memojax.to_jax(memojax.policies.bundled("acrobot_ppo"))
    >>> loss = lambda params: (fn(params, {"obs": np.ones((4, 6), np.float32)})["logits"] ** 2).mean()
    >>> jax.tree.structure(jax.grad(loss)(params)) == jax.tree.structure(params)
    True

    Args:
        source: a source for `load`, an inferer, or a `TypedModel`.
        outputs: outputs to keep, with the nodes that they need.
        constants: values of inputs, bound now. Inputs that decide a shape need one.
        kernels: run layers in memojax's CPU kernels, if they are built. Derivatives and other devices take
            the pure function; so does a part that the kernels cannot run.

    Raises:
        ModelLoadError, UnsupportedOpError: as for `load`.
        UnknownInputError: `constants` names an unknown input.
        InputError: `outputs` or `constants` for a loaded policy; from `fn`, inputs that do not fit.
        IncompatibleModelError: an inferer that keeps state; from `fn`, weights that do not fit.
    """
    if isinstance(source, Inferer) and not isinstance(source, InfererOfModel):
        raise IncompatibleModelError(
            f"a pure function keeps no state between calls, but {type(source).__name__} does: pass the "
            "inferer inside, whose function has noise and hidden state as inputs"
        )
    way = with_kernels if kernels else None
    if isinstance(source, (InfererOfModel, TypedModel)):
        if outputs is not None or constants is not None:
            raise InputError(
                "outputs= and constants= concern loading, but this policy is loaded already: pass them to "
                "memojax.load"
            )
        return of_rows(source if isinstance(source, TypedModel) else source.typed, way)
    return of_graph(
        source if isinstance(source, Model) else load_model(source, outputs=outputs),
        constants or {},
        way,
    )
