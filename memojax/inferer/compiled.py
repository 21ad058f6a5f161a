"""The base of the four inferers: one model, its plans, its weights, and calls with whole batches."""

from __future__ import annotations

import abc
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from .._types import Arrays
from ..display import Card, html_of, text_of
from ..display.inferer_card import model_card
from ..lowering.free_function import Binding
from ..lowering.typed_model import TypedModel
from ..model.signature import ModelApi
from ..plans.artifact import PlanArtifact
from ..plans.autotune import Tuner
from ..plans.cache import CacheInfo, PlanCache
from ..plans.disk_cache import disk_cache
from ..plans.engine import Engine
from ..plans.family import Family
from ..plans.plan import Plan, PlanInfo
from ..plans.preload import Preload
from ..plans.recommend import Recommendation, recommend_for
from ..rows.checks import check_mapping, lives_on_device
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView
from ..xla.background import submit
from ..xla.cpu_client import cpu_device, device_name, resolve_device
from ..xla.fork import was_forked
from .auto_device import verdict_on
from .base import Inferer
from .compiled_rows import CompiledRows
from .engine_rows import refuse_mixing
from .forked import ForkedInferer
from .of_model import InfererOfModel
from .options import InferOptions
from .revival import is_revived, revival
from .routes import Route
from .rows_by_binding import RowsByBinding
from .sizes import Size, bound_size, sizes_of
from .weight_updates import WeightUpdates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")


class ModelInferer(InfererOfModel):
    """An inferer that runs a `TypedModel` itself (abstract: the four kinds differ in their `Route`)."""

    def __init__(
        self,
        typed: TypedModel,
        preloaded_sizes: Iterable[Size] | Size,
        options: InferOptions,
        route: Route,
        rows: int = 0,
    ):
        """Compile `preloaded_sizes` now.

        Args:
            typed: the model.
            preloaded_sizes: batch sizes to compile now and never drop; see `preload`.
            options: the options that the four kinds share.
            route: the rule that deals rows out to plans.
            rows: the most rows that are expected in a plan, for `device="auto"`; 0 where nothing says so.

        Raises:
            DeviceError: the machine has no such device.
        """
        self.options = options
        self._verdict = verdict_on(options.device, typed, rows)
        self._device = self._verdict.device
        self._choice = DeviceChoice(options.strict, None if self._device == cpu_device() else self._device)
        self._tuner = Tuner(options.autotune, options.autotune_budget_mb)
        given = options.cache_dir
        self._disk = given if isinstance(given, PlanArtifact) else disk_cache(given)
        self._route = route
        self._seed = options.seed & 0xFFFFFFFF
        self._draws = itertools.count()
        self._family = Family(typed, self._engine_for)
        self._updates = WeightUpdates(self._family)
        self._rows = RowsByBinding(self._family, self._rows_of)
        self._only = None if typed.is_open else self._rows.at(Binding())
        self._n_names = len(typed.api.inputs)
        self._first_name = self._only.first_name if self._only else ""
        self._hit = self._only.cache.hit if self._only and not options.checked else _no_plan
        self._has_constants = self._only is not None and self._only.has_constants
        if self._only and typed.computed == tuple(spec.name for spec in typed.api.outputs):
            self.quick_api: ModelApi | None = typed.api
        self.preload(preloaded_sizes)

    def _engine_for(self, typed: TypedModel, beside: Engine | None) -> Engine:
        return Engine(
            typed,
            self._device,
            weights=self.options.weights,
            precision=self.options.precision,
            maxsize=self.options.maxsize,
            disk=self._disk,
            tuner=self._tuner,
            beside=beside,
            compile_in=self.options.compile_in,
            threads=self.options.threads,
            pads=self._route.pads or bool(typed.only_rows),
        )

    def _rows_of(self, engine: Engine) -> CompiledRows:
        return CompiledRows(engine, self._route, self._key, self._choice, self.options.checked)

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        return self._only.engine.with_one_set_of_weights(run) if self._only else run()

    @abc.abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """The options of this kind's constructor beside the shared ones."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle model, options and sizes; the unpickled inferer compiles or loads plans at first use."""
        # "auto" may choose another device on another machine.
        device = "auto" if self._verdict.why else device_name(self._device)
        options = {**self.options.arguments(), "device": device, **self._arguments()}
        return _rebuild, (type(self), self.typed, options, self._ready_sizes())

    def __repr__(self) -> str:
        """Inputs, outputs, options and plans; the text computes nothing."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        return model_card(
            type(self).__name__,
            self.typed,
            device=device_name(self._device),
            why=self._verdict.why,
            options={**self._arguments(), "maxsize": self.options.maxsize},
            cache=self.cache_info(),
            plans=self._all_plans(),
            mixing=self._known_mixing(),
        )

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights."""
        return self._only.engine.typed if self._only else self._family.typed

    @property
    def device(self) -> jax.Device:
        """The device on which NumPy batches run."""
        return self._device

    @property
    def device_choice(self) -> DeviceChoice:
        return self._choice

    @property
    def mixing_outputs(self) -> tuple[str, ...]:
        """Outputs in which one row influences another, from the first plan of two rows or from a probe."""
        if self._only is None:
            return self._known_mixing() or self.typed.mixing_outputs()
        engine = self._only.engine
        if engine.mixing is None:
            engine.mixing = self.typed.mixing_outputs()
        return engine.mixing

    @property
    def _engine(self) -> Engine:
        return self._family.at(Binding())

    @property
    def _cache(self) -> PlanCache:
        return self._engine.cache

    def _known_mixing(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for engine in self._family.engines() for name in engine.mixing or ()))

    def select_batch_size(self, max_count: int) -> int:
        if max_count < 1:
            return 0
        rows = self._only or next(iter(self._rows.all()), None)
        if rows is None:
            return max_count
        taken = rows.route.of(max_count, rows.cache)[0]
        if taken < max_count:
            rows.refuse_mixing(f"running {max_count} rows in parts")
        return taken

    def infer_raw(self, view: ScratchPadView) -> None:
        n = len(view)
        if n == 0:
            return
        given: Sequence[Any] = view.inputs
        rows = self._only
        if rows is None:
            rows, given = self._rows.of_arrays(given)
        if view.whole:
            rows.arrived(view.whole)
        results = dict(zip(rows.typed.computed, rows.run_at_once(given, n, view.ids), strict=True))
        for slot, spec in enumerate(self.raw_api.outputs):
            found = results.get(spec.name)
            view.set_output(slot, rows.constant_rows(spec.name, n) if found is None else found)

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        try:
            plan = self._hit(inputs[self._first_name].shape[0])
        except (KeyError, IndexError, AttributeError, TypeError):
            plan = None
        if plan is not None and len(inputs) == self._n_names:
            named: Any = plan.answer(inputs, self._key)
            if named is None and (narrowed := self._only.narrowed(inputs)) is not None:  # pyright: ignore[reportOptionalMemberAccess]
                named = plan.answer(narrowed, self._key)
            if named is not None:
                return self._only.in_order(named, plan.size) if self._has_constants else named  # pyright: ignore[reportOptionalMemberAccess]
        check_mapping(inputs)
        rows, given = (self._only, inputs) if self._only else self._rows.of_inputs(inputs)
        if any(lives_on_device(value) for value in given.values()):
            return rows.on_device.infer(given)
        quick = self._only is None and not self.options.checked
        return (rows.hit(given) if quick else None) or rows.infer(given, ids)

    def rows_at_once(self, rows: Sequence[np.ndarray], n: int) -> list[np.ndarray] | None:
        plan = self._hit(n)
        return None if plan is None else plan(rows, self._key() if plan.random else None)

    def is_ready(self, count: int) -> bool:
        rows = self._rows.all()
        return bool(rows) and all(
            size in one.cache for one in rows for size in one.route.sizes(count, one.cache)
        )

    def prepare(self, count: int) -> Future[None]:
        wanted = [(one.cache, size) for one in self._rows.all() for size in one.route.sizes(count, one.cache)]

        def compile_all() -> None:
            for cache, size in wanted:
                cache.get(size)

        return submit(compile_all)

    def preload(
        self,
        sizes: Iterable[Size] | Size,
        *,
        workers: int = 1,
        background: bool = False,
        progress: bool = False,
        device: str | jax.Device | None = None,
    ) -> Preload:
        """Compile plans for `sizes`; `maxsize` never drops these plans.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.preload([1, 8])
        Preload(2 of 2 sizes done)
        >>> policy.is_ready(8)
        True

        Args:
            sizes: one batch size or several. For a model with free dimensions, {"batch": 8, "seq": 16} names
                every dimension; a number alone is compiled in the background for each set of dimensions that
                comes into use.
            workers: number of compiling threads. XLA uses several cores by itself, so more than one thread
                pays only on machines with many cores.
            background: return at once and compile on the background worker, at low priority.
            progress: show a bar in a terminal or notebook. In the background, the bar shows during the
                handle's `wait`.
            device: compile plans for `jax.Array`s on this device. Without it, plans for NumPy batches compile
                now, and those for `jax.Array`s on an accelerator behind the first call there. On a CPU both
                have the same plans.

        Raises:
            BatchSizeError: a size is not a positive whole number; nothing is compiled.
            DimensionError: a dimension is missing or unknown; nothing is compiled.
            DeviceError: the machine has no such device.
        """
        wanted = sizes_of(sizes, self.api)
        if is_revived():
            self._expect(wanted)
            return Preload.finished([])
        where = None if device is None else resolve_device(device)
        alone = [size for size, binding in wanted if binding is None]
        if self._only is None:
            self._rows.pin(alone)
        tasks = [(self._rows.at(binding), size) for size, binding in wanted if binding is not None]
        if self._only is not None:
            only = self._only
            tasks += [(only, only.typed.only_rows or size) for size in alone]
        caches = {
            bound_size(size, rows.typed.binding): (rows.cache_on(where), size)
            for rows, size in dict.fromkeys(tasks)
        }
        for cache, size in caches.values():
            cache.pin([size])
        if not background and workers <= 1 and not progress:
            for cache, size in caches.values():
                cache.get(size)
            return Preload.finished(list(caches))
        handle = Preload(list(caches), lambda one: PlanCache.get(*caches[one]), workers, background, progress)
        if not background:
            handle.wait()
        return handle

    def _expect(self, wanted: Sequence[tuple[int, Binding | None]]) -> None:
        """Remember sizes to compile when a call first uses them."""
        for size, binding in wanted:
            if binding is not None:
                self._rows.at(binding).cache.expect([size])
        alone = [size for size, binding in wanted if binding is None]
        if self._only is None:
            self._rows.expect(alone)
        else:
            self._only.cache.expect(self._only.typed.only_rows or size for size in alone)

    def update_params(self, source: Any, *, background: bool = False) -> Future[None]:
        """Replace the weights without a recompile, as a training loop needs.

        A concurrent call sees all the old weights or all the new ones. A call that starts after this method
        returns (in the background: after the future is done) sees the new ones. On a CPU, small weights are
        constants of the executables, so the first update compiles the used plans again while calls use the
        old plans. `weights="argument"` at load avoids this step.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1], weights="argument")
        >>> done = policy.update_params({name: 0.5 * weight for name, weight in policy.params.items()})
        >>> with memojax.forbid_compile():
        ...     answer = policy.infer_single({"obs": np.ones(6)})

        Args:
            source: new weights by name (all or some), a pytree like `params`, or another export of the same
                network (path, bytes, `ModelProto`).
            background: return once `source` is checked, and compile on a separate thread, which does not wait
                for background compiles.

        Raises:
            IncompatibleModelError: names, shapes or dtypes differ, or the file holds another network; nothing
                changes.
        """
        return self._updates.update(source, background)

    def batch_sizes(self) -> dict[int, int]:
        """Number of batches of each size that callers asked for.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> for n in (2, 3, 2):
        ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
        >>> policy.batch_sizes()
        {2: 2, 3: 1}
        """
        total: Counter[int] = Counter()
        for rows in self._rows.all():
            total += rows.histogram.counts(rows.cache.calls())
        return dict(sorted(total.items()))

    def recommend_sizes(self, max_plans: int) -> Recommendation:
        """The best fixed sizes for the batches seen so far: at most `max_plans`, least time, compiles
        included.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> for n in (5, 6, 7):
        ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
        >>> policy.recommend_sizes(max_plans=1).sizes
        [7]

        Raises:
            BatchSizeError: nothing has run yet.
        """
        return recommend_for(self.plans(), self.batch_sizes(), max_plans)

    def cache_info(self) -> CacheInfo:
        """Counts of hits, misses and evictions, the sizes, seconds spent compiling, and padded rows, over all
        devices.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
        >>> answers = policy.infer_arrays({"obs": np.zeros((1, 6), np.float32)})
        >>> info = policy.cache_info()
        >>> info.hits, info.misses
        (1, 0)
        """
        infos = [engine.cache_info() for engine in self._family.engines()]
        return CacheInfo.total(infos, self.options.maxsize)

    def cache_clear(self, size: int | None = None) -> None:
        """Drop the plans for `size`, or all plans and counts, on every device."""
        for engine in self._family.engines():
            engine.clear(size)

    def plans(self) -> list[PlanInfo]:
        """One `PlanInfo` per plan, by size: compile time, calls, median time, bytes.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1, 8])
        >>> [(plan.size, plan.calls, plan.platform) for plan in policy.plans()]
        [(1, 0, 'cpu'), (8, 0, 'cpu')]
        """
        return [info for engine in self._family.engines() for info in engine.plan_infos()]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the median time of a call against the batch size, with the histogram of the sizes seen.

        Plans without a call are hollow, at a time interpolated from their neighbours. The figure does not use
        pyplot: a notebook shows it, and `savefig` writes it.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1, 8])
        >>> answers = policy.infer_arrays({"obs": np.zeros((8, 6), np.float32)})
        >>> policy.plot().axes[0].get_xlabel()
        'batch size'

        Args:
            ax: matplotlib axes to draw into; by default a new figure.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from ..display.latency import draw_latency

        times: dict[str, dict[int, float | None]] = {}
        for plan, batches in self._all_plans():
            times.setdefault(f"{batches} batches", {})[plan.size] = plan.info().median_us
        return draw_latency(times, self.batch_sizes(), ax)

    def _all_plans(self) -> list[tuple[Plan, str]]:
        """Every plan, and whose batches it runs."""
        found: list[tuple[Plan, str]] = []
        for engine in self._family.engines():
            where = f" {engine.typed.binding}" if engine.typed.binding else ""
            found += [(plan, f"{arrays}{where}") for plan, arrays in engine.all_plans()]
        return found

    def _ready_sizes(self) -> list[Any]:
        """The argument of `preload` that makes the present plans again."""
        if self._only is not None:
            return _ready(self._only.cache)
        bound = [
            {"batch": size, **engine.typed.binding.shown()}
            for engine in self._family.engines()
            for size in _ready(engine.cache)
        ]
        return [*self._rows.pinned, *bound]

    def _refuse_mixing(self, what: str) -> None:
        if is_revived():
            return  # The check ran before the pickling, and its probe would compile.
        refuse_mixing(self.mixing_outputs, what)

    def _key(self) -> np.ndarray:
        return np.array([self._seed, next(self._draws)], np.uint32)


def _ready(cache: PlanCache) -> list[int]:
    return sorted({*cache.sizes(), *cache.expected()})


def _no_plan(size: int) -> None:
    """The fast way of a model with free dimensions: a batch size alone never selects its plan."""


def _rebuild(
    kind: type[ModelInferer], typed: TypedModel, arguments: dict[str, Any], sizes: list[Any]
) -> Inferer:
    if was_forked():
        return ForkedInferer(typed.api)
    with revival():
        inferer = kind(typed, **arguments)
        inferer.preload(sizes)
    return inferer
