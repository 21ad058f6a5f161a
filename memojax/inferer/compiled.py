"""The part that the four inferers share: plans by size, rows in and out, on the host and on devices."""

from __future__ import annotations

import abc
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Arrays
from ..display import Card, html_of, text_of
from ..display.inferer_card import model_card
from ..errors import BatchSizeError, RowsMixError
from ..lowering.new_weights import with_new_weights
from ..lowering.typed_model import TypedModel
from ..model.signature import ModelApi
from ..plans.autotune import DEFAULT_BUDGET_MB, Autotune, Tuner
from ..plans.cache import CacheInfo
from ..plans.compiler import Weights
from ..plans.disk_cache import disk_cache
from ..plans.engine import Engine
from ..plans.plan import Plan, PlanInfo
from ..plans.preload import Preload
from ..plans.recommend import Recommendation, recommend
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView, aligned_empty
from ..xla.background import submit
from ..xla.cpu_client import cpu_device, device_name, resolve_device
from ..xla.fork import was_forked
from ..xla.settings import own_settings
from .base import (
    Inferer,
    check_mapping,
    checked_rows,
    chosen_device,
    device_rows,
    lives_on_device,
    on_device,
    run_view,
)
from .forked import ForkedInferer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
_MOST_TEMPLATES = 256


class ModelInferer(Inferer):
    """An inferer that runs a `TypedModel` itself (abstract: how rows are dealt out to plans is what the four kinds differ in)."""

    def __init__(
        self,
        typed: TypedModel,
        preloaded_sizes: Iterable[int] = (),
        *,
        maxsize: int | None = None,
        device: str | jax.Device | None = None,
        seed: int = 0,
        precision: str | None = "highest",
        weights: Weights = "auto",
        cache_dir: str | PathLike[str] | None = None,
        autotune: Autotune = "off",
        autotune_budget_mb: float = DEFAULT_BUDGET_MB,
        strict: bool = False,
    ):
        """Compile `preloaded_sizes` now; the four kinds take the options below beside their own.

        Args:
            typed: the model.
            preloaded_sizes: batch sizes to compile now and never to drop.
            maxsize: the most plans to keep that were not preloaded; the least recently used go. None: no limit.
            device: where NumPy batches run: None or "cpu", "gpu", "gpu:1", or a `jax.Device`.
            seed: of the numbers that a random model draws.
            precision: of matrix products on accelerators, by JAX's names.
            weights: "constant" (part of each executable), "argument" (`update_params` then recompiles nothing), or "auto".
            cache_dir: folder that keeps compiled plans for other processes; `MEMOJAX_CACHE_DIR` without it.
            autotune: whether plans are tried in other candidates too: "off", "preload" (the preloaded ones, at once), "background" (those in use).
            autotune_budget_mb: memory that tuning may use.
            strict: refuse `jax.Array`s that lie on several devices, or elsewhere than on the accelerator that `device` names.

        Raises:
            DeviceError: there is no such device.
        """
        self._device = resolve_device(device)
        self._placement = DeviceChoice(strict, None if self._device == cpu_device() else self._device)
        self._precision = precision
        self._weights: Weights = weights
        self._cache_dir = cache_dir
        self._tuner = Tuner(autotune, autotune_budget_mb)
        self._engine = Engine(
            typed,
            self._device,
            weights=weights,
            precision=precision,
            maxsize=maxsize,
            disk=disk_cache(cache_dir),
            tuner=self._tuner,
        )
        self._cache = self._engine.cache
        self._seed = seed & 0xFFFFFFFF
        self._draws = itertools.count()
        self._local = threading.local()
        self._updating, self._accepting = threading.Lock(), threading.Lock()
        self._wanted = typed
        self._names = [spec.name for spec in typed.api.inputs]
        self._first_name, self._n_names = next(iter(self._names), ""), len(self._names)
        self._constant_slots = [
            (slot, spec.name) for slot, spec in enumerate(typed.api.outputs) if spec.name in typed.constant
        ]
        position = {name: index for index, name in enumerate(typed.computed)}
        self._computed_names = list(typed.computed)
        self._computed_slots = [
            (slot, position[spec.name])
            for slot, spec in enumerate(typed.api.outputs)
            if spec.name in position
        ]
        self._templates: tuple[TypedModel, dict[int, dict[str, Any]]] = typed, {}
        self._counting = threading.Lock()
        self._sizes_seen: Counter[int] = Counter()
        self._uncounted: Counter[int] = Counter()
        self.preload(preloaded_sizes)

    @abc.abstractmethod
    def _route(self, count: int) -> tuple[int, int]:
        """How `count` waiting rows would go now: (rows to take at once, size of the plan that runs them); changes nothing.

        A plan larger than the rows means padding.
        """

    @abc.abstractmethod
    def _arrived(self, count: int) -> None:
        """`count` rows came as one batch and are about to be dealt out; called once per batch."""

    @abc.abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """What this kind's constructor takes beside the options that all kinds share."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as model, configuration and sizes: plans are made anew (or found on disk) where it is loaded."""
        return _rebuild, (
            type(self),
            self.typed,
            {**self._options(), **self._arguments()},
            self._cache.sizes(),
        )

    def _options(self) -> dict[str, Any]:
        device = device_name(self._device)
        return {
            "device": device,
            "seed": self._seed,
            "precision": self._precision,
            "weights": self._weights,
            "cache_dir": self._cache_dir,
            "autotune": self._tuner.mode,
            "autotune_budget_mb": self._tuner.budget / (1 << 20),
            "strict": self.placement.strict,
        }

    def __repr__(self) -> str:
        """What it takes and gives, how it runs, and its plans; nothing is computed for it."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        return model_card(
            type(self).__name__,
            self.typed,
            device=device_name(self._device),
            options=self._arguments(),
            cache=self.cache_info(),
            plans=self._all_plans(),
            mixing=self.__dict__.get("mixing_outputs", ()),
        )

    @property
    def typed(self) -> TypedModel:
        """The model with its present weights."""
        return self._engine.typed

    @property
    def raw_api(self) -> ModelApi:
        return self.typed.api

    @property
    def api(self) -> ModelApi:
        return self.typed.api

    @property
    def device(self) -> jax.Device:
        """Where NumPy batches run."""
        return self._device

    @property
    def placement(self) -> DeviceChoice:
        return self._placement

    @property
    def params(self) -> Any:
        """The weights, as a pytree."""
        return self.typed.params

    @property
    def metadata(self) -> dict[str, str]:
        """What the model file says about itself (`metadata_props`)."""
        return dict(self.typed.metadata)

    @functools.cached_property
    def mixing_outputs(self) -> tuple[str, ...]:
        """Outputs in which one row influences another; found by a probe when first asked for."""
        return self.typed.mixing_outputs()

    def begin_agent(self, agent: int) -> None:
        """Nothing is kept by agent here."""

    def end_agent(self, agent: int) -> None:
        """Nothing is kept by agent here."""

    def select_batch_size(self, max_count: int) -> int:
        if max_count < 1:
            return 0
        if max_count != getattr(self._local, "rest", 0):
            with self._counting:
                self._sizes_seen[max_count] += 1
            self._arrived(max_count)
        rows, size = self._route(max_count)
        if rows < max_count:
            refuse_mixing(self, f"running {max_count} rows in parts")
        self._local.rest = max_count - rows
        # What was found to run these rows may be evicted before they run.
        self._local.chosen = rows, size, self._cache.peek(size)
        return rows

    def infer_raw(self, view: ScratchPadView) -> None:
        n = len(view)
        if n == 0:
            return
        results = self._run_rows(view.inputs, n)
        for slot, index in self._computed_slots:
            view.set_output(slot, results[index])
        for slot, name in self._constant_slots:
            view.set_output(slot, self._constant_rows(name, n))

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        try:
            plan = self._cache.hit(inputs[self._first_name].shape[0])
        except (KeyError, IndexError, AttributeError, TypeError):
            plan = None
        if plan is not None and len(inputs) == self._n_names:
            named: Any = plan.answer(inputs, self._key)
            if named is not None:
                return self._in_order(named, plan.size) if self._constant_slots else named
        check_mapping(inputs)
        rows = [inputs.get(name) for name in self._names]
        if any(lives_on_device(row) for row in rows):
            return self._infer_on_device(inputs)
        return self._infer_checked(inputs)

    def is_ready(self, count: int) -> bool:
        return all(size in self._cache for size in self._sizes_for(count))

    def prepare(self, count: int) -> Future[None]:
        sizes = self._sizes_for(count)
        return submit(lambda: self._compile_all(sizes))

    def preload(
        self, sizes: Iterable[int], *, workers: int = 1, background: bool = False, progress: bool = False
    ) -> Preload:
        """Compile plans for `sizes`; `maxsize` never drops them.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.preload([1, 8])
        Preload(2 of 2 sizes done)
        >>> policy.is_ready(8)
        True

        Args:
            sizes: batch sizes.
            workers: threads that compile; more than one pays on machines with many cores only, XLA uses several by itself.
            background: return at once and compile on the background worker, at low priority.
            progress: show a bar, in a terminal or a notebook; in the background, while the handle's `wait` is waited for.

        Raises:
            BatchSizeError: a size that is no positive whole number; nothing is compiled then.
        """
        wanted = self._cache.pin(sizes)
        if not background and workers <= 1 and not progress:
            self._compile_all(wanted)
            return Preload.finished(wanted)
        handle = Preload(wanted, self._cache.get, workers, background, progress)
        if not background:
            handle.wait()
        return handle

    def update_params(self, source: Any, *, background: bool = False) -> Future[None]:
        """Go on with other weights, without a recompile: what a training loop needs.

        A call that runs meanwhile sees all the old weights or all the new ones; calls that start after this returns (in the background:
        after the future is done) see the new ones. On a CPU, where small weights are constants of the executables, the first update makes
        the plans in use anew while calls go on with the old ones; load with `weights="argument"` to begin that way.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1], weights="argument")
        >>> done = policy.update_params({name: 0.5 * weight for name, weight in policy.params.items()})
        >>> with memojax.forbid_compile():
        ...     answer = policy.infer_single({"obs": np.ones(6)})

        Args:
            source: new weights by name (all or some), a pytree like `params`, or another export of the same network (path, bytes,
                `ModelProto`).
            background: return once `source` is checked, and make the plans anew on the background worker.

        Raises:
            IncompatibleModelError: names, shapes or dtypes differ, or the file holds another network; nothing is changed then.
        """
        with self._accepting:
            self._wanted = with_new_weights(self._wanted, source)
        if background:
            return submit(self._apply_wanted)
        self._apply_wanted()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _apply_wanted(self) -> None:
        with self._updating:
            wanted = self._wanted
            if self._engine.typed is not wanted:
                self._apply(wanted)

    def _apply(self, wanted: TypedModel) -> None:
        try:
            self._engine.update(wanted)
        except BaseException:
            with self._accepting:
                if self._wanted is wanted:
                    self._wanted = self._engine.typed
            raise

    def batch_sizes(self) -> dict[int, int]:
        """How many batches of each size were asked for so far.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> for n in (2, 3, 2):
        ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
        >>> policy.batch_sizes()
        {2: 2, 3: 1}
        """
        exact = self._cache.calls()
        with self._counting:
            exact.subtract(self._uncounted)
            exact += self._sizes_seen
        return {size: count for size, count in sorted(exact.items()) if count > 0}

    def recommend_sizes(self, max_plans: int) -> Recommendation:
        """The at most `max_plans` fixed sizes that would have served the batches seen so far in the least time, compiles included.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> for n in (5, 6, 7):
        ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
        >>> policy.recommend_sizes(max_plans=1).sizes
        [7]

        Raises:
            BatchSizeError: nothing has run yet.
        """
        plans = self.plans()
        latency = {plan.size: plan.median_us / 1e6 for plan in plans if plan.median_us is not None}
        compiling = {plan.size: plan.compile_ms / 1e3 for plan in plans}
        return recommend(
            self.batch_sizes(), latency, compiling, max_plans, {plan.size: plan.calls for plan in plans}
        )

    def cache_info(self) -> CacheInfo:
        """Hits, misses, evictions, sizes, seconds spent compiling, padded rows.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
        >>> answers = policy.infer_arrays({"obs": np.zeros((1, 6), np.float32)})
        >>> info = policy.cache_info()
        >>> info.hits, info.misses
        (1, 0)
        """
        return replace(self._cache.info(), disk_hits=self._engine.disk_hits)

    def cache_clear(self, size: int | None = None) -> None:
        """Drop the plans for `size`, or all plans and counts, on every device."""
        self._engine.clear(size)

    def plans(self) -> list[PlanInfo]:
        """What is compiled, by size: cost to compile, calls, median time, bytes.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1, 8])
        >>> [(plan.size, plan.calls, plan.platform) for plan in policy.plans()]
        [(1, 0, 'cpu'), (8, 0, 'cpu')]
        """
        return [plan.info() for plan in self._cache.plans()]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the median time of a call over the batch size, with the histogram of the sizes seen.

        Plans that were not called yet are hollow, at the time that their neighbours suggest. The figure is free of pyplot: a notebook
        shows it, `savefig` writes it.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1, 8])
        >>> answers = policy.infer_arrays({"obs": np.zeros((8, 6), np.float32)})
        >>> policy.plot().axes[0].get_xlabel()
        'batch size'

        Args:
            ax: matplotlib axes to draw into; a new figure without it.

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
        elsewhere = [
            (plan, device) for device, cache in self._engine.elsewhere().items() for plan in cache.plans()
        ]
        return [(plan, "NumPy") for plan in self._cache.plans()] + [
            (plan, f"{on.platform}:{on.id}") for plan, on in elsewhere
        ]

    def _sizes_for(self, count: int) -> list[int]:
        """Sizes of the plans that `count` rows run on."""
        sizes = []
        while count > 0:
            rows, size = self._route(count)
            sizes.append(size)
            count -= rows
        return sizes

    def _plan_size(self, n: int) -> int:
        rows, size = self._route(n)
        if rows < n:
            raise BatchSizeError(
                f"{n} rows cannot run at once here, {rows} can: take what select_batch_size gives, or call infer_arrays"
            )
        if size > n:
            refuse_mixing(self, f"padding {n} rows to a plan for {size}")
        return size

    def _compile_all(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            self._cache.get(size)

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        return self._engine.with_one_set_of_weights(run)

    def _infer_checked(self, inputs: Mapping[str, Any]) -> Arrays:
        rows, n = checked_rows(self.api.inputs, inputs)
        return self._infer_rows(rows, n)

    def _infer_rows(self, rows: Sequence[np.ndarray], n: int) -> Arrays:
        view = ScratchPadView(self.api.inputs, self.api.outputs, rows, n)
        run_view(self, view)
        return {spec.name: view.output_slot(slot) for slot, spec in enumerate(self.api.outputs)}

    def _run_rows(self, rows: Sequence[Any], n: int) -> list[np.ndarray]:
        size, plan = self._chosen(n)
        with self._counting:
            self._uncounted[size] += 1
        key = self._key() if plan.random else None
        if size == n:
            return plan(rows, key)
        self._cache.count_padding(size - n)
        return [result[:n] for result in plan(self._padded(rows, n, size), key)]

    def _chosen(self, n: int) -> tuple[int, Plan]:
        """The size and the plan for `n` rows that this thread has just selected, else those that are right now."""
        rows, size, plan = self._local.__dict__.pop("chosen", None) or (0, 0, None)
        if rows != n:
            size, plan = self._plan_size(n), None
        elif size > n:
            refuse_mixing(self, f"padding {n} rows to a plan for {size}")
        return size, self._cache.hit(size) or plan or self._cache.get(size)

    def _padded(self, rows: Sequence[Any], n: int, size: int) -> list[np.ndarray]:
        kept: dict[int, list[np.ndarray]] = self._local.__dict__.setdefault("buffers", {})
        if (buffers := kept.get(size)) is None:
            buffers = kept[size] = [
                aligned_empty((size, *spec.shape), spec.dtype) for spec in self.api.inputs
            ]
        for buffer, row in zip(buffers, rows, strict=True):
            buffer[:n] = row
            buffer[n:] = 0
        return buffers

    def _key(self) -> np.ndarray:
        return np.array([self._seed, next(self._draws)], np.uint32)

    def _constant_rows(self, name: str, n: int) -> np.ndarray:
        return self._template(n)[name]

    def _in_order(self, named: Arrays, n: int) -> Arrays:
        """What was computed and what is constant, in the model's order."""
        results = self._template(n).copy()
        results.update(named)
        return results

    def _template(self, n: int) -> dict[str, Any]:
        """All outputs for `n` rows in order, those filled in that are constant; made once, as each broadcast costs some 10 us."""
        typed, kept = self._templates
        if typed is not self._engine.typed or len(kept) > _MOST_TEMPLATES:
            typed, kept = self._templates = self._engine.typed, {}
        if (template := kept.get(n)) is None:
            constant = {
                name: np.broadcast_to(value, (n, *value.shape)) for name, value in typed.constant.items()
            }
            template = kept[n] = {spec.name: constant.get(spec.name) for spec in typed.api.outputs}
        return template

    def _infer_on_device(self, inputs: Mapping[str, Any]) -> Arrays:
        specs = self.api.inputs
        given, _, device = chosen_device(specs, inputs, self.placement)
        if device.platform == "cpu" and self._device.platform == "cpu":
            # No trip: NumPy reads the memory of a CPU's arrays. So they have the same plans, and the same promises.
            rows = {spec.name: np.asarray(value) for spec, value in zip(specs, given, strict=True)}
            return {name: on_device(answer, device) for name, answer in self.infer_arrays(rows).items()}
        rows, n, device = device_rows(specs, inputs, self.placement)
        if n == 0:
            return {
                spec.name: on_device(np.zeros((0, *spec.shape), spec.dtype), device)
                for spec in self.api.outputs
            }
        results = self.with_one_set_of_weights(lambda: self._run_on_device(rows, n, device))
        named: Arrays = dict(zip(self._computed_names, results, strict=True))
        constants = {name: on_device(self._constant_rows(name, n), device) for name in self.typed.constant}
        return {spec.name: named.get(spec.name, constants.get(spec.name)) for spec in self.api.outputs}  # pyright: ignore[reportReturnType]

    def _run_on_device(self, rows: Sequence[jax.Array], n: int, device: jax.Device) -> Sequence[jax.Array]:
        cache = self._engine.on(device)
        parts: list[Sequence[jax.Array]] = []
        done = 0
        while done < n:
            take = self.select_batch_size(n - done)
            self._local.__dict__.pop("chosen", None)
            size = self._plan_size(take)
            plan = cache.get(size)
            part = rows if take == n else [row[done : done + take] for row in rows]
            if size > take:
                cache.count_padding(size - take)
                with own_settings():
                    part = [
                        jnp.concatenate([row, jnp.zeros((size - take, *row.shape[1:]), row.dtype)])
                        for row in part
                    ]
            results = plan(part, self._key() if plan.random else None)
            parts.append(results if size == take else [result[:take] for result in results])
            done += take
        return (
            parts[0] if len(parts) == 1 else [jnp.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        )


def _rebuild(
    kind: type[ModelInferer], typed: TypedModel, arguments: dict[str, Any], sizes: list[int]
) -> Inferer:
    if was_forked():
        return ForkedInferer(typed.api)
    inferer = kind(typed, **arguments)
    inferer.preload(sizes)
    return inferer


def refuse_mixing(inferer: ModelInferer, what: str) -> None:
    """Make sure that rows do not influence each other.

    Raises:
        RowsMixError: they do; the outputs are named.
    """
    if mixing := inferer.mixing_outputs:
        raise RowsMixError(
            f"{what} needs rows that do not influence each other, but in this model they do (output {', '.join(map(repr, mixing))}): "
            "use MemoizingDynamicInferer, which runs every batch at its exact size"
        )
