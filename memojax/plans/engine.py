"""The engine of an inferer: its weights, its plan caches for NumPy and for each device, its plans on disk."""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeVar, get_args

import jax

from ..errors import CompileError, InputError
from ..lowering.row_probe import SOME_ROWS
from ..lowering.typed_model import TypedModel
from ..rows.journal import Journal
from ..xla.background import AtWork, is_compile_worker
from ..xla.frames import await_pause
from .artifact import PlanArtifact
from .autotune import Tuner
from .batch_memory import check_fits
from .cache import CacheInfo, PlanCache
from .candidates import CANDIDATES, DEFAULT, Candidate
from .compiler import PlanCompiler, Weights
from .disk_cache import DiskCache
from .elsewhere import Elsewhere
from .helper import CompileIn, helper, wanted
from .hoist import Residual
from .plan import Plan, PlanInfo
from .plan_key import plan_key
from .row_assembly import RowAssembly, RowJoin
from .row_check import plan_mixing
from .serialized import as_bytes, from_bytes
from .stored_weights import store, stored_weights
from .tuning_log import Choices
from .way import Lowered

log: logging.Logger = logging.getLogger("memojax")

# How often a call in parts runs again before it makes updates wait.
_TRIES = 3
# How often a check of rows runs again, because it must not make updates wait.
_CHECKS = 20
T = TypeVar("T")


class Engine:
    """Plan caches by device, over one set of weights.

    `cache` holds the plans for NumPy batches, and is the same object forever. `typed` is the model with its
    present weights.
    """

    typed: TypedModel
    cache: PlanCache

    def __init__(
        self,
        typed: TypedModel,
        device: jax.Device,
        *,
        weights: Weights,
        precision: str | None,
        maxsize: int | None,
        disk: DiskCache | PlanArtifact | None,
        tuner: Tuner | None = None,
        beside: Engine | None = None,
        compile_in: CompileIn = "auto",
        threads: int | None = None,
        pads: bool = False,
    ):
        """Make plans for `typed` on `device`.

        `beside` is an engine of the same weights with another binding; both share `maxsize`. With `pads`,
        batches may need padding or a split.
        """
        if weights not in get_args(Weights):
            raise InputError(f"weights must be 'auto', 'constant' or 'argument', got {weights!r}")
        self.typed = typed
        self.disk_hits: int = 0
        self.device = device
        self._precision = precision
        self._fingerprint = typed.fingerprint
        # Without a fingerprint (a function, new weights), a model's entries on disk could be another's.
        self._disk = disk if typed.fingerprint else None
        self._tuner = tuner or Tuner()
        self._compile_in: CompileIn = compile_in
        if (
            weights == "auto"
            and device.platform == "cpu"
            and (self._disk is not None or self._tuner.mode != "off")
        ):
            # Only plans with constant weights can be tuned, and load from disk without a trace.
            weights = "constant"
        # An update may have turned the weights into arguments: a new binding then begins with arguments, too.
        like = beside._compiler if beside else None
        weights = like.weights if like else weights
        self._compiler = PlanCompiler(typed, device, weights, precision, like=like, threads=threads)
        self._compiler.keep_traces = self._tuner.handles(self._compiler)
        self._choices = (
            Choices(disk.folder) if self._disk is not None and isinstance(disk, DiskCache) else None
        )
        self._pads = pads
        self._elsewhere: dict[jax.Device, Elsewhere] = {}
        self._lock = threading.Lock()
        self._journal = Journal()
        # Changes with each update of the weights; odd while an update is in progress.
        self.version = 0
        self.switching: threading.Lock = threading.Lock()
        self.cache = PlanCache(self._lower, maxsize, beside.cache if beside else None)
        self.mixing: tuple[str, ...] | None = () if typed.independent else None
        """Outputs in which rows influence each other; None until a plan of two or more rows was checked."""

    def clear(self, size: int | None = None) -> None:
        """Drop the plans of a size, or all plans and counts, on every device."""
        for cache in (self.cache, *self.elsewhere().values()):
            cache.clear(size)

    def on(self, device: jax.Device) -> Elsewhere:
        """The plans for `jax.Array`s on a device. The first call starts compiles of the preloaded sizes."""
        # Without the lock, as most calls find their plans here.
        found = self._elsewhere.get(device)
        if found is not None:
            return found
        with self._lock:
            if device not in self._elsewhere:
                # A separate compiler: its plans take `jax.Array`s and hold their weights on this device.
                compiler = PlanCompiler(
                    self.typed,
                    device,
                    self._compiler.weights if device.platform == "cpu" else "auto",
                    self._precision,
                    host=False,
                    threads=self._compiler.threads,
                )
                cache = PlanCache(functools.partial(self._lower_on, compiler), self.cache.maxsize, self.cache)
                # Only expected: to compile preloaded sizes now would delay this call.
                cache.expect(self.cache.pinned())
                self._elsewhere[device] = Elsewhere(compiler, cache, RowJoin(device))
            return self._elsewhere[device]

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        """The result of `run`, repeated if weights change meanwhile; after some tries, updates must wait."""
        for _ in range(_TRIES):
            before = self.version
            result = run()
            # Equal and even: no update began, ran or ended during `run`.
            if self.version == before and not before % 2:
                return result
        with self.switching:
            return run()

    def cache_info(self) -> CacheInfo:
        """Counts of the plans for NumPy batches and for `jax.Array`s, on all devices together."""
        infos = [self.cache.info(), *(cache.info() for cache in self.elsewhere().values())]
        return replace(CacheInfo.total(infos, self.cache.maxsize), disk_hits=self.disk_hits)

    def all_plans(self) -> list[tuple[Plan, str]]:
        """Every plan with the kind of its batches: "NumPy", or the device of `jax.Array`s."""
        found = [(plan, "NumPy") for plan in self.cache.plans()]
        for device, cache in self.elsewhere().items():
            found += [(plan, f"{device.platform}:{device.id}") for plan in cache.plans()]
        return found

    def plan_infos(self) -> list[PlanInfo]:
        """The plans for NumPy batches, by size, then those for `jax.Array`s, by device."""
        dims, mixing = self.typed.binding.shown(), self.mixing or ()
        return [
            replace(plan.info(), dims=dims, mixing=mixing, arrays=arrays) for plan, arrays in self.all_plans()
        ]

    @property
    def is_idle(self) -> bool:
        """Whether the engine holds no plan, so that dropping it loses only counts."""
        return (
            not len(self.cache)
            and not self.cache.expected()
            and not any(len(cache) for cache in self.elsewhere().values())
        )

    def elsewhere(self) -> dict[jax.Device, PlanCache]:
        """Plan caches for `jax.Array`s by device; no lock, because an update may hold it during a compile."""
        return {device: there.cache for device, there in self._elsewhere.copy().items()}

    def _lower_on(self, compiler: PlanCompiler, size: int) -> Lowered:
        check_fits(compiler, self.cache, size)
        # Tuning needs NumPy rows, so these plans are always the default.
        lowered = self._load_or_lower(compiler, size, compiler.default)
        finish = functools.partial(self._assembled, compiler), functools.partial(self._check_rows, compiler)
        return lowered.then(finish[0]).then(finish[1])

    def _assembled(self, compiler: PlanCompiler, plan: Plan) -> None:
        plan.assembly = RowAssembly(self.typed.api.inputs, plan.size, compiler.device)
        # Otherwise the first padded call would compile.
        if self._pads:
            plan.assembly.prepare()

    def _check_rows(self, compiler: PlanCompiler, plan: Plan) -> None:
        """Run the first plan of two rows or more with one row changed; note outputs that mix rows.

        If the batch is doubtful, and there are free dimensions, this is checked before the first row. If the
        batch size may decide something, each plan is checked.

        Raises:
            DimensionError: rows mix, and only the axis position suggested that the axis is a batch.
        """
        if self.mixing or (self.mixing is not None and not self.typed.by_size):
            return
        if plan.size > 1:
            mixing = self._mixing(compiler, plan)
        elif self.typed.weak and self.typed.binding:
            # Another symbol could be the batch as well, and then even the answer for one row is wrong.
            mixing = self.typed.mixing_outputs()
        else:
            return
        if mixing is None:
            return
        # It raises before `mixing` is noted, so the next plan is checked as well.
        self.typed.check_evidence(mixing)
        self.mixing = mixing
        if mixing:
            log.warning(
                "%s: rows of a batch influence each other (output %s), so every batch runs whole, at its "
                "exact size",
                self.typed.name or "this model",
                ", ".join(map(repr, mixing)),
            )

    def _mixing(self, compiler: PlanCompiler, plan: Plan) -> tuple[str, ...] | None:
        """Outputs in which rows of `plan` mix; None if weights changed during each try.

        New weights between two runs change all rows, as mixing does. No try waits for `switching`, because
        its holder may wait for this plan.
        """
        for _ in range(_CHECKS):
            before = self.version
            mixing = plan_mixing(compiler, plan)
            if not mixing and self.mixing is None and (self.typed.by_size or plan.size < SOME_ROWS):
                # Rows that only meet in larger batches, such as every second one, show there.
                mixing = self.typed.mixing_outputs()
            if not mixing or (self.version == before and not before % 2):
                return mixing
        return None

    def update(self, typed: TypedModel, like: Engine | None = None) -> None:
        """Switch to the weights of `typed`; a concurrent call sees either all old or all new weights.

        If weights are constants of the executables, this thread first makes plans that take them as
        arguments, for the sizes in use. Other threads run the old plans meanwhile, and later updates compile
        nothing. `like` is an engine of the same weights that has done this already.
        """
        with AtWork(), self._lock:
            # Making `steps` does all work that can fail or takes time or memory. `switch` only assigns, so an
            # error leaves the old weights in use.
            if self._compiler.weights == "constant":
                steps = [self._becoming_argument(typed, like._compiler if like else None)]
            else:
                steps = [self._compiler.updating(typed)]
            for device, (compiler, cache, _) in list(self._elsewhere.items()):
                if compiler.weights == "argument":
                    steps.append(compiler.updating(typed))
                else:
                    # Plans with constant weights cannot switch: they are dropped, and a call that needs one
                    # compiles it again.
                    steps.append(functools.partial(self._leave, device, cache))

            def switch() -> None:
                with self.switching:
                    # Odd until the end, so a call in several parts notices an update that is half done.
                    self.version |= 1
                    for step in steps:
                        step()
                    self.typed = typed
                    self.version = (self.version | 1) + 1

            self._journal.commit(switch)

    def _leave(self, device: jax.Device, cache: PlanCache) -> None:
        # In this order: a concurrent call finds no cache and makes a new one, instead of filling the old one.
        self._elsewhere.pop(device, None)
        cache.clear()

    def _becoming_argument(self, typed: TypedModel, like: PlanCompiler | None) -> Callable[[], None]:
        """Make plans with weight arguments for the sizes in use; the returned function puts them in place."""
        started, threads = time.perf_counter(), self._compiler.threads
        compiler = PlanCompiler(typed, self.device, "argument", self._precision, like=like, threads=threads)
        plans = {size: self._lower_with(compiler, size).compile() for size in self.cache.sizes()}
        log.info(
            "first update_params: weights become arguments; compiled %d plan(s) again in %.0f ms, later "
            "updates compile nothing (weights='argument' avoids this step)",
            len(plans),
            (time.perf_counter() - started) * 1e3,
        )

        def switch() -> None:
            self._compiler = compiler
            # The journal may repeat this step, and a second `replace` would count the old plans' calls again.
            if self.cache.plans() != list(plans.values()):
                self.cache.replace(plans)

        return switch

    def _lower(self, size: int) -> Lowered:
        compiler = self._compiler
        check_fits(compiler, self.cache, size)
        return self._lower_with(compiler, size).then(functools.partial(self._check_rows, compiler))

    def _lower_with(self, compiler: PlanCompiler, size: int) -> Lowered:
        """Lower a size for the remembered candidate, or for the default, which is tuned afterwards."""
        candidate, gain = self._remembered(compiler, size)
        try:
            lowered = self._load_or_lower(compiler, size, candidate)
        except CompileError:  # the helper compiles, too, so its errors come here
            if candidate == compiler.default:
                raise
            lowered, gain = self._load_or_lower(compiler, size, compiler.default), None
        # No process has tuned this size yet, so tuning follows the compile.
        if gain is None:
            return (
                lowered.then(lambda plan: self._tune(compiler, plan))
                if self._tuner.handles(compiler)
                else lowered
            )

        def compile_remembered() -> Plan:
            try:
                plan = lowered.compile()
                plan.gain = gain
            except CompileError as cause:
                log.debug(
                    "batch size %d: the remembered candidate %r does not compile: %s",
                    size,
                    candidate.name,
                    cause,
                )
                plan = self._load_or_lower(compiler, size, compiler.default).compile()
            return plan

        return Lowered(size, compile_remembered)

    def _tune(self, compiler: PlanCompiler, plan: Plan) -> None:
        """Tune a preloaded plan now; in mode "background", tune another plan once it is in use."""
        # Weak references: a plan that waits for tuning must not keep the engine of a dropped inferer alive.
        chosen = weakref.WeakMethod(self._chosen)

        def done(plan: Plan) -> None:
            if (method := chosen()) is not None:
                method(compiler, plan)

        # A preload may wait for tuning. A call in a loop must not, so the worker tunes its plan later.
        if self.cache.is_pinned(plan.size):
            self._tuner.now(compiler, plan, done)
        elif self._tuner.mode == "background":
            cache = weakref.ref(self.cache)
            self._tuner.when_hot(
                compiler,
                plan,
                lambda plan: (held := cache()) is not None and held.peek(plan.size) is plan,
                done,
            )

    def _remembered(self, compiler: PlanCompiler, size: int) -> tuple[Candidate, float | None]:
        """The candidate and gain that a process stored before; the default and None if no process did."""
        if self._choices is None or not self._tuner.handles(compiler):
            return compiler.default, None
        name, gain = self._choices.get(self._key(compiler, size, None)) or ("", None)
        # Another version may have stored a name that this one does not know.
        return (CANDIDATES[name], gain) if name in CANDIDATES else (compiler.default, None)

    def _chosen(self, compiler: PlanCompiler, plan: Plan) -> None:
        # Tuning may end after an update, whose compiler makes plans that are not tuned.
        if self._choices is not None and plan.gain is not None and compiler is self._compiler:
            self._choices.put(self._key(compiler, plan.size, None), plan.executable.candidate, plan.gain)
            self._write(
                plan, self._key(compiler, plan.size, CANDIDATES.get(plan.executable.candidate, DEFAULT))
            )

    def _load_or_lower(self, compiler: PlanCompiler, size: int, candidate: Candidate) -> Lowered:
        """Load a size from disk, ask the helper for it, or lower it here; a new plan is stored on disk."""
        as_arguments = compiler.weights == "argument"
        disk, helped = self._disk, wanted(self._compile_in)
        # Nothing stores or sends this plan, so it needs no key.
        if disk is None and not helped:
            return compiler.lower(size, candidate)
        # A plan with weight arguments needs the trace, which gives their order.
        started = time.perf_counter()
        residual = compiler.trace(size * candidate.rows) if as_arguments else None
        if disk is None:
            plan = self._helped(compiler, size, candidate, residual)
            return Lowered(size, lambda: plan) if plan else compiler.lower(size, candidate, residual)
        key = self._key(compiler, size, candidate, residual)
        payload = disk.get(key)
        if payload is not None:
            try:
                compiled = from_bytes(
                    payload, [compiler.device], functools.partial(stored_weights, disk, self._short_name)
                )
                plan = compiler.adopt(
                    size, compiled, (time.perf_counter() - started) * 1e3, candidate, residual
                )
            # A compile replaces an entry with any fault. The entry is deleted, or each start would try it
            # again.
            except Exception as cause:
                log.warning(
                    "a stored plan for batch size %d could not be loaded (%s), so it compiles again",
                    size,
                    cause,
                )
                disk.forget(key)
            else:
                plan.executable = replace(plan.executable, stored=key)
                self.disk_hits += 1
                return Lowered(size, lambda: plan)
        if helped and (plan := self._helped(compiler, size, candidate, residual, key)):
            return Lowered(size, lambda: plan)
        lowered = compiler.lower(size, candidate, residual)

        def compile_and_store() -> Plan:
            plan = lowered.compile()
            self._write(plan, key)
            return plan

        return Lowered(size, compile_and_store)

    def _helped(
        self,
        compiler: PlanCompiler,
        size: int,
        candidate: Candidate,
        residual: Residual | None,
        key: dict[str, Any] | None = None,
    ) -> Plan | None:
        """A plan from the helper process, stored on disk under `key`; None if this process must make it."""
        made = helper.make(compiler, size, candidate, self._undivided(size, candidate))
        # The executable must take the values that this process would give it, in this order.
        if made is None or made.origin != (residual.origin() if residual else None):
            return None
        if is_compile_worker():  # a caller's thread waits for its plan
            await_pause()
        started = time.perf_counter()
        try:
            compiled = from_bytes(made.payload, [compiler.device], lambda digest, _: made.weights[digest])
            plan = compiler.adopt(size, compiled, made.ms, CANDIDATES[made.candidate], residual)
        except Exception as cause:
            log.warning("batch size %d came from the helper process and does not load: %s", size, cause)
            return None
        plan.compile_ms += (time.perf_counter() - started) * 1e3
        if key is not None and self._disk is not None:
            store(self._disk, self._short_name, key, made.payload, made.weights)
            plan.executable = replace(plan.executable, stored=key)
        return plan

    def _undivided(self, size: int, candidate: Candidate) -> int:
        """A size of at least `size` whose plan XLA did not divide among cores; 0 if none is known."""
        alike = [plan for plan in self.cache.plans() if plan.executable.candidate == candidate.name]
        # Where the kernels run all of a size, XLA had nothing to divide.
        larger = [plan for plan in alike if plan.size >= size and plan.executable.made.program is None]
        plan = min(larger, key=attrgetter("size"), default=None)
        return 0 if plan is None or plan.executable.made.divided else plan.size

    def _write(self, plan: Plan, key: dict[str, Any]) -> None:
        if self._disk is None:
            return
        stored = plan.executable.stored
        try:
            if stored is None:
                store(self._disk, self._short_name, key, *as_bytes(plan.executable.made))
            elif stored != key and (payload := self._disk.get(stored)) is not None:
                # A loaded executable serializes incompletely and may not load again, so the bytes it came
                # from are copied.
                self._disk.put(key, payload)
        except Exception as cause:
            # A full disk costs the next start its speed, but this call has its plan.
            log.debug("batch size %d cannot be stored: %s", plan.size, cause)

    @property
    def _short_name(self) -> str:
        return (self.typed.name or "function").rsplit("/", 1)[-1]

    def _key(
        self,
        compiler: PlanCompiler,
        size: int,
        candidate: Candidate | None = DEFAULT,
        residual: Residual | None = None,
    ) -> dict[str, Any]:
        """The key of a plan on disk, see `plan_key`."""
        return plan_key(compiler, self._fingerprint, self._short_name, size, candidate, residual)
