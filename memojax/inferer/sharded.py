"""An inferer that spreads the rows of a batch over several devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._argument_checks import named_options
from .._types import Arrays, Source
from ..errors import DeviceError, DimensionError, InputShapeError, RowsMixError
from ..lowering.loading import typed_model
from ..lowering.new_weights import with_new_weights
from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import checked_size
from ..plans.cache import CacheInfo, PlanCache
from ..plans.plan import PlanInfo
from ..plans.sharded import ShardedCompiler
from ..rows.checks import as_jax, check_mapping, check_names, checked_rows, lives_on_device, shared_value
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView
from ..xla.background import submit
from ..xla.cpu_client import resolve_device
from ..xla.fork import was_forked
from .base import Inferer
from .constant_outputs import ConstantOutputs
from .forked import ForkedInferer
from .histogram import BatchHistogram
from .of_model import InfererOfModel
from .revival import is_revived, revival

T = TypeVar("T")

_TRIES = 3
_NO_ROWS = "no input of this model has a row for each agent: there are no rows to spread"


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
        preloaded_sizes: Iterable[int] = (),
        *,
        devices: str | Sequence[str | jax.Device] = "all",
        sharding: NamedSharding | None = None,
        maxsize: int | None = None,
        precision: str | None = "highest",
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
            maxsize: number of plans to keep beside the preloaded ones.
            precision: precision of matrix products on accelerators, by JAX's names.
            strict: refuse `jax.Array`s that would have to move.

        Raises:
            DeviceError: a device does not exist, or the sharding is of another kind.
            RowsMixError: rows of the model influence each other, so devices cannot compute them apart.
            DimensionError: the model has free dimensions, or runs only one number of rows.
        """
        self._sharding = _rows_sharding(devices, sharding)
        self._maxsize, self._precision, self._strict = maxsize, precision, strict
        self._choice = DeviceChoice(strict)
        _check_shardable(typed)
        self._compiler = ShardedCompiler(typed, self._sharding, precision)
        self._cache = PlanCache(lambda size: self._compiler.lower(size), maxsize)
        self._constants = ConstantOutputs(typed)
        self._histogram = BatchHistogram()
        self._updating = threading.Lock()
        self.preload(preloaded_sizes)

    @classmethod
    @named_options
    def from_model(
        cls,
        model: Source | TypedModel,
        preloaded_sizes: Iterable[int] = (),
        *,
        devices: str | Sequence[str | jax.Device] = "all",
        sharding: NamedSharding | None = None,
        maxsize: int | None = None,
        precision: str | None = "highest",
        strict: bool = False,
        dims: Mapping[str, int] | None = None,
    ) -> ShardedInferer:
        """Load an ONNX model; `dims` is as in `TypedModel.from_model`, other options as in the constructor.

        Raises:
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
            DeviceError, RowsMixError: see the constructor.
        """
        return cls(
            typed_model(model, dims=dims),
            preloaded_sizes,
            devices=devices,
            sharding=sharding,
            maxsize=maxsize,
            precision=precision,
            strict=strict,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model, options, sizes and device names; the unpickled inferer compiles at first use."""
        mesh: Any = self._sharding.mesh
        names = [f"{device.platform}:{index}" for device, index in _places(mesh)]
        options = {"maxsize": self._maxsize, "precision": self._precision, "strict": self._strict}
        sizes = sorted({*self._cache.sizes(), *self._cache.expected()})
        return _rebuild, (
            self.typed,
            sizes,
            names,
            mesh.devices.shape,
            mesh.axis_names,
            self._sharding.spec[0],
            options,
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
    def placement(self) -> DeviceChoice:
        return self._choice

    def select_batch_size(self, max_count: int) -> int:
        return max(0, max_count)

    def padded(self, count: int) -> int:
        """The size of the plan that runs `count` rows: the next multiple of the number of devices."""
        return -(-count // self._compiler.count) * self._compiler.count

    def is_ready(self, count: int) -> bool:
        return count < 1 or self.padded(count) in self._cache

    def prepare(self, count: int) -> Future[None]:
        return submit(lambda: self.preload([count] if count > 0 else []))

    def preload(self, sizes: Iterable[int]) -> None:
        """Compile plans for `sizes`; `maxsize` never drops these plans.

        Raises:
            BatchSizeError: a size is not a positive whole number; nothing is compiled.
        """
        wanted = [self.padded(size) for size in map(checked_size, sizes)]
        if is_revived():
            self._cache.expect(wanted)
            return
        for size in self._cache.pin(wanted):
            self._cache.get(size)

    def cache_info(self) -> CacheInfo:
        """Counts of hits, misses and evictions, the sizes, seconds spent compiling, and padded rows."""
        return self._cache.info()

    def cache_clear(self, size: int | None = None) -> None:
        """Drop the plans for a padded size, or all plans and counts."""
        self._cache.clear(size)

    def plans(self) -> list[PlanInfo]:
        """One `PlanInfo` per plan, by padded size."""
        return [plan.info() for plan in self._cache.plans()]

    def batch_sizes(self) -> dict[int, int]:
        """Number of batches of each size that callers asked for."""
        return dict(sorted(self._histogram.counts(self._cache.calls()).items()))

    def update_params(self, source: Any) -> None:
        """Replace the weights without a recompile; `source` is as in `MemoizingDynamicInferer.update_params`.

        Raises:
            IncompatibleModelError: names, shapes or dtypes differ; nothing changes.
        """
        with self._updating:
            self._compiler.update(with_new_weights(self.typed, source))

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        # A weight update between two parts would mix old and new rows, so such a run is repeated. A loop that
        # updates all the time must not starve the call: after some tries, the lock blocks updates.
        for _ in range(_TRIES):
            before = self.typed
            result = run()
            if self.typed is before:
                return result
        with self._updating:
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
        named = self.with_one_set_of_weights(lambda: self._on_host(rows, n))
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
            return self.with_one_set_of_weights(lambda: self._on_host(rows, n))
        given = {spec.name: as_jax(inputs[spec.name]) for spec in specs}
        if all(self._lies_right(spec.shared, spec.dtype, given[spec.name]) for spec in specs):
            n = self._rows_in(given)
            return self.with_one_set_of_weights(lambda: self._in_place(given, n))
        moved = [name for name, value in given.items() if isinstance(value, jax.Array)]
        if self._strict:
            raise DeviceError(
                f"strict=True refuses to move input {moved[0]!r}, which does not lie as {self._sharding} "
                f"in {self._compiler.count} equal parts: jax.device_put(x, policy.sharding) puts it there"
            )
        rows, n = checked_rows(specs, {name: np.asarray(value) for name, value in given.items()})
        home = given[moved[0]].sharding
        back = home if isinstance(home, jax.sharding.SingleDeviceSharding) else min(home.device_set, key=_id)
        results = self.with_one_set_of_weights(lambda: self._on_host(rows, n))
        return {name: jax.device_put(value, back) for name, value in results.items()}

    def _lies_right(self, shared: bool, dtype: Any, value: Any) -> bool:
        if not isinstance(value, jax.Array) or value.dtype != dtype:
            return False
        if not shared and not value.ndim:
            return False  # `checked_rows` raises the error for it.
        wanted = self._compiler.everywhere if shared else self._sharding
        return value.sharding.is_equivalent_to(wanted, value.ndim)

    def _rows_in(self, given: Mapping[str, jax.Array]) -> int:
        """Number of rows that lie over the devices.

        Raises:
            InputShapeError: no input has rows, or the shapes do not fit.
        """
        specs = self.api.inputs
        n = next((given[spec.name].shape[0] for spec in specs if not spec.shared), -1)
        if n < 0:
            raise InputShapeError(_NO_ROWS)
        for spec, value in zip(specs, given.values(), strict=True):
            wanted = tuple(spec.shape) if spec.shared else (n, *spec.shape)
            if value.shape != wanted:
                raise InputShapeError(
                    f"input {spec.name!r} has shape {list(value.shape)}, expected {list(wanted)}"
                )
        return n

    def _in_place(self, given: Mapping[str, jax.Array], n: int) -> Arrays:
        """Run `n` rows that already lie over the devices, without moving them."""
        self._histogram.arrived(n)
        self._histogram.ran(n)
        named = dict(zip(self.typed.computed, self._cache.get(n)(list(given.values())), strict=True))
        for name in self.typed.constant:
            named[name] = self._compiler.put(self._constants.template(self.typed, n)[name], shared=False)
        return {spec.name: named[spec.name] for spec in self.api.outputs}

    def _on_host(self, rows: Sequence[np.ndarray], n: int) -> Arrays:
        """Run NumPy rows: pad, spread, compute, gather and cut them."""
        if n < 0:
            raise InputShapeError(_NO_ROWS)
        if n == 0:
            return {spec.name: np.zeros(spec.rows(0), spec.dtype) for spec in self.api.outputs}
        size = self.padded(n)
        plan = self._cache.get(size)
        self._histogram.arrived(n)
        self._histogram.ran(size)
        self._cache.count_padding(size - n)
        spread = [
            self._compiler.put(row if spec.shared else _padded(row, n, size), shared=spec.shared)
            for spec, row in zip(self.api.inputs, rows, strict=True)
        ]
        results = [np.asarray(value)[:n] for value in plan(spread)]
        return self._constants.in_order(self.typed, dict(zip(self.typed.computed, results, strict=True)), n)


def _padded(row: np.ndarray, n: int, size: int) -> np.ndarray:
    """A copy of `row`, padded with zeros, which JAX may keep."""
    padded = np.zeros((size, *row.shape[1:]), row.dtype)
    padded[:n] = row
    return padded


def _check_shardable(typed: TypedModel) -> None:
    """Check that devices can compute rows of `typed` apart.

    Raises:
        DimensionError, RowsMixError: they cannot; the message says why.
    """
    name = typed.name or "this model"
    if typed.is_open:
        raise DimensionError(
            f"{name} has free dimensions ({', '.join(typed.api.free)}): load it with dims= to spread its "
            "rows over devices"
        )
    if typed.only_rows:
        raise DimensionError(
            f"{name} runs exactly {typed.only_rows} row(s) at a time, so its rows cannot be spread over "
            "devices: use MemoizingDynamicInferer on one device"
        )
    if typed.random:
        raise RowsMixError(
            f"{name} draws random numbers for the whole batch, so devices would repeat each other's draws: "
            "use MemoizingDynamicInferer on one device"
        )
    mixing = () if is_revived() else typed.mixing_outputs()
    if mixing:
        raise RowsMixError(
            f"rows over devices must not influence each other, but in {name} they do (output "
            f"{', '.join(map(repr, mixing))}): use MemoizingDynamicInferer on one device"
        )


def _rows_sharding(
    devices: str | Sequence[str | jax.Device], sharding: NamedSharding | None
) -> NamedSharding:
    """The sharding of rows, from either option.

    Raises:
        DeviceError: a device does not exist, or the sharding is of another kind.
    """
    if sharding is not None:
        return _checked_sharding(sharding)
    if devices == "all":
        chosen = jax.devices()
    elif isinstance(devices, str):
        raise DeviceError(f"devices= is 'all' or a list such as ['gpu:0', 'gpu:1'], not {devices!r}")
    else:
        chosen = [_shared_client(device) for device in devices]
    if not chosen or len(set(chosen)) < len(chosen):
        raise DeviceError(f"devices= needs one or more different devices, got {devices!r}")
    if len({device.platform for device in chosen}) > 1:
        raise DeviceError(f"devices= needs devices of one kind, got {devices!r}")
    return NamedSharding(Mesh(np.array(chosen), ("batch",)), PartitionSpec("batch"))


def _checked_sharding(sharding: Any) -> NamedSharding:
    if not isinstance(sharding, NamedSharding):
        raise DeviceError(
            f"sharding= is NamedSharding(mesh, PartitionSpec('batch')), not {type(sharding).__name__}"
        )
    first = sharding.spec[0] if len(sharding.spec) else None
    axes = first if isinstance(first, tuple) else (first,)
    names = sharding.mesh.axis_names
    if set(axes) != set(names) or any(entry is not None for entry in sharding.spec[1:]):
        raise DeviceError(
            "sharding= must spread the first axis over every axis of the mesh "
            f"({', '.join(map(str, names))}) and nothing else; got {sharding.spec}, expected "
            f"PartitionSpec({first_of(names)})"
        )
    return NamedSharding(sharding.mesh, PartitionSpec(first))


def first_of(names: Sequence[Any]) -> str:
    """The axes of a mesh as the first entry of a `PartitionSpec`."""
    return repr(names[0]) if len(names) == 1 else repr(tuple(names))


def _shared_client(device: str | jax.Device) -> jax.Device:
    # The name "cpu" means memojax's own client, which has a single device; "cpu:0" is JAX's first one.
    return resolve_device("cpu:0" if device == "cpu" else device)


def _places(mesh: Any) -> list[tuple[jax.Device, int]]:
    return [(device, jax.devices(device.platform).index(device)) for device in mesh.devices.flat]


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
    mesh = Mesh(np.array([_shared_client(name) for name in names]).reshape(shape), axes)
    with revival():
        return ShardedInferer(typed, sizes, sharding=NamedSharding(mesh, PartitionSpec(rows)), **options)
