"""An inferer that spreads the rows of a batch over several devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, final, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._argument_checks import named_options, one_of
from .._types import Arrays, Source
from ..display import Card, html_of, text_of
from ..display.inferer_card import model_card
from ..errors import DeviceError, InputShapeError
from ..lowering.batch_evidence import BatchAxis
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..model.signature import TensorSpec
from ..plans.artifact import PlanArtifact
from ..plans.batch_sizes import Bucketing, bucket_of, checked_size
from ..plans.cache import CacheInfo, PlanCache
from ..plans.disk_cache import disk_cache
from ..plans.plan import PlanInfo
from ..plans.preload import Preload
from ..plans.recommend import Recommendation, recommend_for
from ..plans.sharded import ShardedCompiler
from ..rows.checks import as_jax, check_mapping, check_names, checked_rows, lives_on_device, shared_value
from ..rows.device_choice import DeviceChoice
from ..rows.input_checks import as_dtype, can_cast
from ..rows.scratch import ScratchPadView
from ..xla.background import submit
from ..xla.fork import was_forked
from .base import Inferer
from .forked import ForkedInferer
from .of_model import InfererOfModel
from .revival import is_revived, revival
from .routes import Buckets, OnMiss
from .sharded_rows import NO_ROWS, ShardedRows
from .sharding import check_shardable, first_of, names_of, rows_sharding, shared_client
from .weight_updates import WeightUpdates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

_TRIES = 3


@final
class ShardedInferer(InfererOfModel):
    """Runs each batch on several devices at once: rows spread over them, weights copied to each.

    Pick it if batches are so large that one device takes long. Batches are padded to multiples of the number
    of devices, and each such size is compiled at its first use. A `jax.Array` that already has this sharding
    is not moved, and gives arrays with it.

    >>> policy = memojax.ShardedInferer.from_model(memojax.policies.bundled("acrobot_ppo"), devices="all")
    >>> policy.infer_arrays({"obs": np.zeros((7, 6), np.float32)})["logits"].shape
    (7, 3)

    Pros:
        Each device computes only its own rows, and devices exchange nothing.
    Cons:
        It refuses models that mix rows or draw random numbers. Each call copies NumPy rows to every device.
    """

    @named_options
    def __init__(
        self,
        typed: TypedModel,
        preloaded_sizes: Iterable[int] | int = (),
        *,
        devices: str | Sequence[str | jax.Device] = "all",
        sharding: NamedSharding | None = None,
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        maxsize: int | None = None,
        precision: str | None = "highest",
        cache_dir: str | PathLike[str] | PlanArtifact | None = None,
        strict: bool = False,
    ):
        """Put the weights on every device, and compile `preloaded_sizes`.

        Args:
            typed: the model.
            preloaded_sizes: batch sizes to compile now and never drop, each padded to a multiple of the
                number of devices.
            devices: "all" devices of JAX's default backend, or a list of devices or their names, such as
                ["gpu:0", "gpu:1"].
            sharding: alternative to `devices`: `NamedSharding(mesh, PartitionSpec("batch"))` spreads rows
                over all axes of a mesh.
            bucketing: sizes that get a plan, as for `MemoizingDynamicInferer`; every size is rounded up to a
                multiple of the number of devices.
            max_batch_size: largest plan; larger batches are split.
            on_miss: action of a call whose size has no plan yet, as for `MemoizingDynamicInferer`.
            maxsize: number of plans to keep beside the preloaded ones.
            precision: precision of matrix products on accelerators, by JAX's names.
            cache_dir: folder, or `PlanArtifact`, that keeps compiled plans for other processes with as many
                devices; `MEMOJAX_CACHE_DIR` without it.
            strict: refuse `jax.Array`s that would have to move.

        Raises:
            OptionError: an option that does not exist, or of another kind.
            BatchSizeError: a size that is no positive whole number, or an unknown policy.
            DeviceError: a device does not exist, or the sharding is of another kind.
            RowsMixError: rows of the model influence each other, so devices cannot compute them apart.
            DimensionError: the model has free dimensions, or runs only one number of rows.
        """
        one_of("on_miss", on_miss, get_args(OnMiss))
        self._sharding = rows_sharding(devices, sharding)
        self._options: dict[str, Any] = {
            "bucketing": bucketing,
            "max_batch_size": max_batch_size,
            "on_miss": on_miss,
            "maxsize": maxsize,
            "precision": precision,
            "cache_dir": cache_dir,
            "strict": strict,
        }
        self._choice = DeviceChoice(strict)
        check_shardable(typed)
        disk = cache_dir if isinstance(cache_dir, PlanArtifact) else disk_cache(cache_dir)
        self._compiler = ShardedCompiler(typed, self._sharding, precision, disk)
        bucket = bucket_of(bucketing, max_batch_size)
        self._route = Buckets(lambda count: self.padded(bucket(count)), on_miss)
        self._cache = PlanCache(lambda size: self._compiler.lower(size), maxsize)
        self._rows = ShardedRows(self._compiler, self._cache, self._route)
        self._updates = WeightUpdates(self._compiler)
        self.preload(preloaded_sizes)

    @classmethod
    @named_options
    def from_model(
        cls,
        model: Source | TypedModel,
        preloaded_sizes: Iterable[int] | int = (),
        *,
        dims: Mapping[str, int] | None = None,
        batch_axis: BatchAxis = None,
        constants: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | str | None = None,
        inputs: Sequence[str] | str = (),
        devices: str | Sequence[str | jax.Device] = "all",
        sharding: NamedSharding | None = None,
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        maxsize: int | None = None,
        precision: str | None = "highest",
        cache_dir: str | PathLike[str] | PlanArtifact | None = None,
        strict: bool = False,
    ) -> ShardedInferer:
        """Load an ONNX model; options are those of `TypedModel.from_model` and of the constructor.

        Raises:
            OptionError: an option that does not exist, or of another kind.
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
            DeviceError, RowsMixError: see the constructor.
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
            devices=devices,
            sharding=sharding,
            bucketing=bucketing,
            max_batch_size=max_batch_size,
            on_miss=on_miss,
            maxsize=maxsize,
            precision=precision,
            cache_dir=cache_dir,
            strict=strict,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model, options, sizes and device names; the unpickled inferer compiles at first use."""
        mesh: Any = self._sharding.mesh
        sizes = sorted({*self._cache.sizes(), *self._cache.expected()})
        return _rebuild, (
            self.typed,
            sizes,
            names_of(mesh),
            mesh.devices.shape,
            mesh.axis_names,
            self._sharding.spec[0],
            self._options,
        )

    def __repr__(self) -> str:
        """Inputs, outputs, devices and plans as text; this computes nothing."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        mesh = self._sharding.mesh
        names = names_of(mesh)
        listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        count = f"{len(names)} device{'s' if len(names) > 1 else ''}"
        return model_card(
            type(self).__name__,
            self.typed,
            device=f"{count} ({listing}), rows over {first_of(mesh.axis_names)}, weights on each",
            options={
                name: self._options[name] for name in ("bucketing", "max_batch_size", "on_miss", "maxsize")
            },
            cache=self.cache_info(),
            plans=[(plan, "NumPy") for plan in self._cache.plans()],
            mixing=(),
        )

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights."""
        return self._compiler.typed

    @property
    def sharding(self) -> NamedSharding:
        """The sharding of `jax.Array`s that are not moved."""
        return self._sharding

    @property
    def device_choice(self) -> DeviceChoice:
        return self._choice

    def select_batch_size(self, max_count: int) -> int:
        return max(0, max_count)

    def padded(self, count: int) -> int:
        """The size of the plan that runs `count` rows: the next multiple of the number of devices."""
        return -(-count // self._compiler.count) * self._compiler.count

    def is_ready(self, count: int) -> bool:
        return all(size in self._cache for size in self._route.sizes(count, self._cache))

    def prepare(self, count: int) -> Future[None]:
        wanted = self._route.sizes(count, self._cache)

        def compile_all() -> None:
            for size in wanted:
                self._cache.get(size)

        return submit(compile_all)

    def preload(
        self,
        sizes: Iterable[int] | int,
        *,
        workers: int = 1,
        background: bool = False,
        progress: bool = False,
    ) -> Preload:
        """Compile plans for `sizes`; `maxsize` never drops these plans.

        The keywords are those of `MemoizingDynamicInferer.preload`.

        Raises:
            BatchSizeError: a size is not a positive whole number; nothing is compiled.
        """
        given = [sizes] if isinstance(sizes, int) or hasattr(sizes, "__index__") else sizes
        wanted = [self.padded(size) for size in map(checked_size, given)]  # pyright: ignore[reportArgumentType]
        if is_revived():
            self._cache.expect(wanted)
            return Preload.finished([])
        wanted = self._cache.pin(wanted)
        if not background and workers <= 1 and not progress:
            for size in wanted:
                self._cache.get(size)
            return Preload.finished(wanted)
        handle = Preload(wanted, self._cache.get, workers, background, progress)
        if not background:
            handle.wait()
        return handle

    def cache_info(self) -> CacheInfo:
        """Counts of hits, misses and evictions, the sizes, seconds spent compiling, and padded rows."""
        return replace(self._cache.info(), disk_hits=self._compiler.disk_hits)

    def cache_clear(self, size: int | None = None) -> None:
        """Drop the plans for a padded size, or all plans and counts."""
        self._cache.clear(size)

    def plans(self) -> list[PlanInfo]:
        """One `PlanInfo` per plan, by padded size."""
        return [plan.info() for plan in self._cache.plans()]

    def batch_sizes(self) -> dict[int, int]:
        """Number of batches of each size that callers asked for."""
        return dict(sorted(self._rows.histogram.counts(self._cache.calls()).items()))

    def recommend_sizes(self, max_plans: int) -> Recommendation:
        """The best fixed sizes for the batches so far, multiples of the number of devices.

        See `MemoizingDynamicInferer.recommend_sizes`.

        Raises:
            BatchSizeError: nothing has run yet.
        """
        padded: Counter[int] = Counter()
        for size, count in self.batch_sizes().items():
            padded[self.padded(size)] += count
        return recommend_for(self.plans(), padded, max_plans)

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the median time of a call against the batch size; see `MemoizingDynamicInferer.plot`.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from ..display.latency import draw_latency

        times = {plan.size: plan.median_us for plan in self.plans()}
        return draw_latency({f"{self._compiler.count} devices": times}, self.batch_sizes(), ax)

    def update_params(self, source: Any, *, background: bool = False) -> Future[None]:
        """Switch to other weights on every device, without a recompile.

        `source` and `background` are as in `MemoizingDynamicInferer.update_params`.

        Raises:
            IncompatibleModelError: names, shapes or dtypes differ; nothing changes.
        """
        return self._updates.update(source, background)

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        # A weight update between two parts would mix old and new rows, so such a run is repeated. A loop that
        # updates all the time must not starve the call: after some tries, the lock blocks updates.
        for _ in range(_TRIES):
            before = self.typed
            result = run()
            if self.typed is before:
                return result
        with self._updates.updating:
            return run()

    def infer_raw(self, view: ScratchPadView) -> None:
        n = len(view)
        if n == 0:
            return
        specs = self.raw_api.inputs
        rows: list[Any] = [
            shared_value(spec, row) if spec.shared else row
            for spec, row in zip(specs, view.inputs, strict=True)
        ]
        first = self._rows.arrived(view.whole) if view.whole else None
        if view.whole != n:
            first = None  # It says how the whole batch begins.
        named = self.with_one_set_of_weights(lambda: self._rows.on_host(rows, n, first))
        for slot, spec in enumerate(self.raw_api.outputs):
            view.set_output(slot, named[spec.name])

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        check_mapping(inputs)
        specs = self.api.inputs
        check_names(specs, inputs)
        if not any(lives_on_device(value) for value in inputs.values()):
            rows, n = checked_rows(specs, inputs)
            return self._run_on_host(rows, n)
        given = {spec.name: as_jax(inputs[spec.name]) for spec in specs}
        if all(self._lies_right(spec, given[spec.name]) for spec in specs):
            n = self._rows_in(given)
            there = {
                spec.name: value
                if isinstance(value := given[spec.name], jax.Array)
                else self._compiler.put(as_dtype(spec, value), shared=spec.shared)
                for spec in specs
            }
            first = self._rows.arrived(n) if n else None
            return self.with_one_set_of_weights(lambda: self._rows.in_place(there, n, first))
        moved = [name for name, value in given.items() if isinstance(value, jax.Array)]
        if self._choice.strict:
            raise DeviceError(
                f"strict=True refuses to move input {moved[0]!r}, which does not lie as {self._sharding} "
                f"in {self._compiler.count} equal parts: jax.device_put(x, policy.sharding) puts it there"
            )
        rows, n = checked_rows(specs, {name: np.asarray(value) for name, value in given.items()})
        home = given[moved[0]].sharding
        back = home if isinstance(home, jax.sharding.SingleDeviceSharding) else min(home.device_set, key=_id)
        return {name: jax.device_put(value, back) for name, value in self._run_on_host(rows, n).items()}

    def _run_on_host(self, rows: Sequence[np.ndarray], n: int) -> Arrays:
        first = self._rows.arrived(n) if n > 0 else None
        return self.with_one_set_of_weights(lambda: self._rows.on_host(rows, n, first))

    def _lies_right(self, spec: TensorSpec, value: Any) -> bool:
        """Whether a value needs no move: it is no `jax.Array`, or it has the right sharding and dtype."""
        if not isinstance(value, jax.Array):
            return spec.shared or value.ndim > 0
        if value.dtype != spec.dtype and (spec.shared or not _cast_in_place(value.dtype, spec.dtype)):
            return False
        if not spec.shared and not value.ndim:
            return False  # `checked_rows` raises the error for it.
        wanted = self._compiler.everywhere if spec.shared else self._sharding
        return value.sharding.is_equivalent_to(wanted, value.ndim)

    def _rows_in(self, given: Mapping[str, jax.Array]) -> int:
        """Number of rows that are spread over the devices.

        Raises:
            InputShapeError: no input has rows, or the shapes do not fit.
        """
        specs = self.api.inputs
        n = next((given[spec.name].shape[0] for spec in specs if not spec.shared), -1)
        if n < 0:
            raise InputShapeError(NO_ROWS)
        for spec, value in zip(specs, given.values(), strict=True):
            wanted = tuple(spec.shape) if spec.shared else (n, *spec.shape)
            if value.shape != wanted:
                raise InputShapeError(
                    f"input {spec.name!r} has shape {list(value.shape)}, expected {list(wanted)}"
                )
        return n


def _cast_in_place(given: Any, wanted: Any) -> bool:
    return jax.numpy.issubdtype(wanted, jax.numpy.floating) and can_cast(np.dtype(given), wanted)


def _id(device: jax.Device) -> int:
    return device.id


def _rebuild(
    typed: TypedModel,
    sizes: list[int],
    names: list[str],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    rows: Any,
    options: dict[str, Any],
) -> Inferer:
    if was_forked():
        return ForkedInferer(typed.api)
    mesh = Mesh(np.array([shared_client(name) for name in names]).reshape(shape), axes)
    with revival():
        return ShardedInferer(typed, sizes, sharding=NamedSharding(mesh, PartitionSpec(rows)), **options)
