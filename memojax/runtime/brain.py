"""One brain of a runtime: its inferer, its queue of states, and its cost."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ..errors import IncompatibleModelError, UnknownBrainError
from ..inferer.base import Inferer, check_inferer
from ..inferer.batcher import Batcher, batcher_for
from ..inferer.pairs import States, pairs_of
from ..rows.states import Response
from ..wrapper.base import LayeredInferer, check_compatible
from .timing import CompileTimings, Timings

_numbers = itertools.count()
_RECENT = 32
"""Batch sizes remembered as in use; a new policy is compiled for them before it is swapped in."""

_ROUNDS = 8
"""Maximum rounds of compiling new sizes before a swap goes ahead anyway."""


@dataclass(frozen=True, order=True)
class BrainId:
    """The id of a policy in a runtime, unique in the process.

    >>> runtime = memojax.Runtime()
    >>> brain = runtime.add_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo")))
    >>> runtime.brains == [brain]
    True
    """

    _number: int

    @classmethod
    def fresh(cls) -> BrainId:
        """A new id."""
        return cls(next(_numbers))

    def __str__(self) -> str:
        return f"brain {self._number}"


class Verdict(Enum):
    """A brain's decision in a frame."""

    IDLE = auto()
    """Nothing waits, or another thread runs it."""
    RUN = auto()
    LATE = auto()
    """It would exceed the rest of the budget."""
    COLD = auto()
    """Its batch size has no plan yet; one compiles in the background."""


class Turns:
    """The clock of the queue: frames, and the order of service within them."""

    def __init__(self) -> None:
        self.frame = 1
        self._served = itertools.count(1)

    def begin_frame(self) -> int:
        """Begin a frame; states queued from now on belong to the next one."""
        self.frame += 1
        return self.frame - 1

    def served(self) -> int:
        """A number higher than any before."""
        return next(self._served)


@dataclass(frozen=True)
class _Compile:
    """A compile in the background, of `inferer` for `count` rows."""

    inferer: Inferer
    count: int
    future: Future[None]


class BrainState:
    """One brain of a runtime.

    Two batches wait. The open batch takes new states. The sealed batch comes before it and takes no new agents: it runs, has failed, or
    waits for a compile of its size. A new state of an agent replaces its waiting state, unless that one has run. `_lock` guards the queue
    and is held briefly; `_running` is held while the inferer runs.
    """

    def __init__(
        self,
        brain: BrainId,
        inferer: Inferer,
        turns: Turns,
        clock: Callable[[], float],
        compiles: CompileTimings,
    ):
        """All brains of a runtime share `turns` and `compiles`."""
        self.brain = brain
        self.inferer = inferer
        self.on_accelerator = _on_accelerator(inferer)
        self.timings = Timings()
        self._turns, self._clock, self._compiles = turns, clock, compiles
        self._since = self._served = 0
        self._open, self._spare = batcher_for(inferer), batcher_for(inferer)
        self._open_since = 0
        self._sealed: Batcher | None = None
        self._busy = self._removed = False
        self._agents: set[int] = set()
        self._recent: dict[int, None] = {}
        self._compile: _Compile | None = None
        self._swap: Future[Inferer] | None = None
        self._lock = threading.Lock()
        self._running = threading.Lock()

    @property
    def since(self) -> int:
        """Frame in which the next batch began to wait; 0 if nothing waits."""
        return self._since

    @property
    def place(self) -> tuple[int, int, BrainId]:
        """Place in the queue, lowest first: by the frame in which waiting began, then by the last service."""
        return self._since, self._served, self.brain

    @property
    def compile(self) -> Future[None] | None:
        """The most recent compile in the background."""
        return self._compile and self._compile.future

    def waiting(self) -> list[int]:
        """Agents with a waiting state."""
        with self._lock:
            return self._waiting()

    def push(self, agent: int, state: Mapping[str, Any]) -> None:
        """Queue the state of one agent."""
        with self._lock:
            self._check_alive()
            self._batch_of(agent).push(agent, state, replace=True)
            self._note_open()

    def extend(self, states: States) -> None:
        """Queue the states of many agents, all or none."""
        pairs = pairs_of(states)
        with self._lock:
            self._check_alive()
            fixed = [
                (agent, state)
                for agent, state in pairs
                if self._sealed and self._batch_of(agent) is self._sealed
            ]
            if fixed and self._sealed is not None:
                batcher_for(self.inferer, len(pairs)).extend(pairs)
                self._sealed.extend(fixed, replace=True)
                pairs = [(agent, state) for agent, state in pairs if self._batch_of(agent) is self._open]
            self._open.extend(pairs, replace=True)
            self._note_open()

    def begin_agent(self, agent: int) -> None:
        """Tell the inferer that an agent appears."""
        with self._running:
            self._check_alive()
            self.inferer.begin_agent(agent)
            self._agents.add(agent)

    def end_agent(self, agent: int) -> None:
        """Tell the inferer that an agent is gone, and drop its waiting state."""
        with self._running:
            self._check_alive()
            self.inferer.end_agent(agent)
            self._agents.discard(agent)
            with self._lock:
                self._open.discard(agent)
                if not len(self._open):
                    self._open_since = 0
                if self._sealed is not None and self._sealed.discard(agent) and not len(self._sealed):
                    self._unseal()

    def infer_single(self, agent: int, state: Mapping[str, Any]) -> Response:
        """Run one agent now, outside of the queue."""
        with self._running:
            self._check_alive()
            ready = self._is_ready(1)
            started = self._clock()
            response = self.inferer.infer_batch({agent: state})[agent]
            with self._lock:
                self._note_cost(1, self._clock() - started, ready)
            return response

    def offer(self, remaining: float | None, must: bool) -> Verdict:
        """Decide what to do within `remaining` seconds (None: no limit); with `must`, run even if it does not fit.

        RUN and COLD seal the batch. COLD starts a compile in the background. Once that has ended, also by a failure, the batch is not
        COLD again.
        """
        with self._lock:
            count = len(self._sealed or self._open)
            if not count or self._removed or (self._busy and remaining is not None):
                return Verdict.IDLE
            if remaining is not None and not self._is_ready(count) and not self._asked_for(count):
                self._seal()
                return Verdict.COLD
            if (
                remaining is None
                or must
                or (remaining > 0 and (self.timings.estimate(count) or 0.0) <= remaining)
            ):
                self._seal()
                return Verdict.RUN
            return Verdict.LATE

    def run(self, started: float) -> dict[int, Response]:
        """Run the batch that has waited longest; its cost counts from `started` on.

        Raises:
            Exception: the model raised; the batch then waits at the end of the queue, and continues where it stopped.
        """
        elsewhere = self._running.locked()
        with self._running:
            if elsewhere:
                started = self._clock()  # the wait for another thread is not the model's cost
            with self._lock:
                self._seal()
                batch = self._sealed
                if batch is None or self._removed:
                    return {}
                self._busy = True
            count, whole, ready = len(batch), not batch.begun, self._is_ready(len(batch))
            try:
                responses = batch.execute(self.inferer)
            except BaseException:
                with self._lock:
                    self._busy = False
                    self._since, self._served = self._turns.frame + 1, self._turns.served()
                raise
            with self._lock:
                self._busy = False
                self._unseal()
                self._served = self._turns.served()
                if whole:
                    self._note_cost(count, self._clock() - started, ready)
            return responses

    def remove(self) -> list[int]:
        """Take the brain out of service after its current batch; returns the agents that still waited."""
        with self._running, self._lock:
            self._removed = True
            orphans = self._waiting()
        for future in (self._swap, self.compile):
            if future is not None:
                future.cancel()
        return orphans

    def replace_inferer(self, new: Inferer) -> Future[Inferer]:
        """Compile `new` in the background for the sizes in use, then swap it in; the future gives the old inferer.

        Raises:
            IncompatibleModelError: `new` has other inputs or outputs; nothing is changed.
        """
        with self._lock:
            self._check_alive()
            _check_swap(self.inferer, new)
            before, handle = self._swap, Future[Inferer]()
            self._swap = handle
        if before is not None:
            before.cancel()
        self._prepare_swap(new, handle, _ROUNDS)
        return handle

    def _prepare_swap(self, new: Inferer, handle: Future[Inferer], rounds: int) -> None:
        """Compile `new` for the sizes in use, repeat for sizes that came into use meanwhile, and swap it in."""
        try:
            with self._lock:
                sizes = {*self._recent, len(self._open), len(self._sealed or ())} - {0}
            compiles = (
                [new.prepare(size) for size in sorted(sizes) if not _is_ready(new, size)] if rounds else []
            )
            if not compiles and handle.set_running_or_notify_cancel():
                handle.set_result(self._swap_in(new))
        except BaseException as failure:
            _fail(handle, failure)
            return
        # The last compile to end continues here, on its own thread: waiting would hold up the caller.
        left, lock = len(compiles), threading.Lock()

        def done(compile: Future[None]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if compile.cancelled() or compile.exception() is not None:
                _fail(handle, CancelledError() if compile.cancelled() else compile.exception())
            elif last and not handle.done():
                self._prepare_swap(new, handle, rounds - 1)

        for compile in compiles:
            compile.add_done_callback(done)

    def _swap_in(self, new: Inferer) -> Inferer:
        with self._running, self._lock:
            self._check_alive()
            for agent in self._agents:
                new.begin_agent(agent)
            layer = _innermost_layer(self.inferer)
            if layer is not None:
                old, layer.inferer = layer.inferer, new
            else:
                old, self.inferer = self.inferer, new
            self.on_accelerator = _on_accelerator(self.inferer)
            self.timings.age()
            return old

    def _check_alive(self) -> None:
        if self._removed:
            raise UnknownBrainError(f"{self.brain} was removed from this runtime")

    def _waiting(self) -> list[int]:
        return list(dict.fromkeys((*(self._sealed.agents if self._sealed else ()), *self._open.agents)))

    def _batch_of(self, agent: int) -> Batcher:
        """The batch that takes a new state of `agent`."""
        if self._sealed is None or self._busy or agent in self._open or agent not in self._sealed:
            return self._open
        return self._sealed

    def _note_open(self) -> None:
        if len(self._open) and not self._open_since:
            self._open_since = self._turns.frame
            if self._sealed is None:
                self._since = self._open_since

    def _seal(self) -> None:
        if self._sealed is None and len(self._open):
            self._sealed, self._open, self._open_since = self._open, self._spare, 0

    def _unseal(self) -> None:
        if self._sealed is not None:
            self._sealed.clear()
            self._spare, self._sealed = self._sealed, None
        self._since = self._open_since

    def _is_ready(self, count: int) -> bool:
        return _is_ready(self.inferer, count)

    def _asked_for(self, count: int) -> bool:
        """Whether the compile for `count` has ended; starts one if none was started."""
        inferer, last = _model(self.inferer), self._compile
        if last is None or last.inferer is not inferer or last.count != count:
            if last is not None:
                last.future.cancel()
            try:
                future = self.inferer.prepare(count)
            except Exception as failure:
                future = Future[None]()
                future.set_exception(failure)
            self._compile = last = _Compile(inferer, count, future)
            self._compiles.watch(self.brain, future)
        return last.future.done()

    def _note_cost(self, count: int, seconds: float, ready: bool) -> None:
        self._recent.pop(count, None)
        self._recent[count] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        if ready:
            self.timings.add(count, seconds)
        else:
            self._compiles.add(self.brain, max(0.0, seconds - (self.timings.estimate(count) or 0.0)))


def _is_ready(inferer: Inferer, count: int) -> bool:
    try:
        return inferer.is_ready(count)
    except Exception:
        return True  # the run will raise the same error, and its caller will see it


def _fail(handle: Future[Inferer], failure: BaseException | None) -> None:
    """Fail a swap, unless it was cancelled or has failed already."""
    with contextlib.suppress(InvalidStateError):
        if handle.running() or handle.set_running_or_notify_cancel():
            handle.set_exception(failure)


def _innermost_layer(inferer: Inferer) -> LayeredInferer | None:
    """The layer of wrappers next to the model; None without wrappers."""
    layer = None
    while isinstance(inferer, LayeredInferer):
        layer, inferer = inferer, inferer.inferer
    return layer


def _model(inferer: Inferer) -> Inferer:
    """The inferer inside of all wrappers."""
    layer = _innermost_layer(inferer)
    return inferer if layer is None else layer.inferer


def _on_accelerator(inferer: Inferer) -> bool:
    return getattr(getattr(_model(inferer), "device", None), "platform", "cpu") != "cpu"


def _check_swap(old: Inferer, new: Inferer) -> None:
    check_inferer(new)
    layer = _innermost_layer(old)
    if layer is None:
        check_compatible(old, new)
        if old.api != new.api:
            raise IncompatibleModelError(
                f"the brain takes and gives {old.api}, the new inferer {new.api}: wrap it as the old one is"
            )
        return
    if isinstance(new, LayeredInferer):
        raise IncompatibleModelError(
            f"the brain keeps its own {type(old).__name__} and the state of its agents: give the inferer without wrappers"
        )
    check_compatible(layer.inferer, new)
