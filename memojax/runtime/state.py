"""One brain of a runtime: its inferer, what waits for it, and what it costs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ..batcher import Batcher, States
from ..errors import IncompatibleModelError, UnknownBrainError
from ..inferer.base import Inferer, Response
from ..wrapper.base import LayeredInferer, check_compatible
from .timing import Timing, Timings

_numbers = itertools.count()
_RECENT = 32
"""Batch sizes remembered as in use; a new policy is compiled for them before it is swapped in."""


@dataclass(frozen=True, order=True)
class BrainId:
    """A model in a runtime; no two runtimes of a process ever give out the same one."""

    _number: int

    @classmethod
    def fresh(cls) -> BrainId:
        """One that was never given out."""
        return cls(next(_numbers))

    def __str__(self) -> str:
        return f"brain {self._number}"


class Verdict(Enum):
    """What a brain does in a frame."""

    IDLE = auto()
    """Nothing waits, or it runs in another thread already."""
    RUN = auto()
    LATE = auto()
    """It would take longer than what is left."""
    COLD = auto()
    """Its batch size has no plan yet; one is being compiled in the background."""


class BrainState:
    """One brain of a runtime.

    States that wait are in `_open`, which takes new ones; or in `_sealed`, a batch whose size is settled because it is being compiled
    for, runs now, or has failed. A new state of an agent takes the place of the one that waits, unless that one has run already.
    `_lock` guards the queue and is held for moments; `_running` is held while the inferer is at work.
    """

    def __init__(self, brain: BrainId, inferer: Inferer, ticket: Callable[[], int], clock: Callable[[], float], compiles: Timing):
        """`ticket` numbers events in time; `compiles` is shared by all brains of the runtime."""
        self.brain = brain
        self.inferer = inferer
        self.timings = Timings()
        self._ticket, self._clock, self._compiles = ticket, clock, compiles
        self._open, self._spare = Batcher(inferer), Batcher(inferer)
        self._sealed: Batcher | None = None
        self._since = self._open_since = 0
        self._busy = self._removed = False
        self._agents: set[int] = set()
        self._recent: dict[int, None] = {}
        self._preparing: tuple[Inferer, int, Future[None]] | None = None
        self._swap: Future[Inferer] | None = None
        self._lock = threading.Lock()
        self._running = threading.RLock()

    @property
    def since(self) -> int:
        """Ticket of the moment from which the next batch waits."""
        return self._since

    @property
    def on_accelerator(self) -> bool:
        """Whether the model runs on another device than the CPU."""
        inferer = _innermost(self.inferer)
        return getattr(getattr(inferer, "device", None), "platform", "cpu") != "cpu"

    @property
    def preparing(self) -> Future[None] | None:
        """The compile in the background, if there was one."""
        return self._preparing and self._preparing[2]

    def __len__(self) -> int:
        """Agents that wait."""
        with self._lock:
            return len(self._waiting())

    def push(self, agent: int, state: Mapping[str, Any]) -> None:
        """Queue the state of one agent."""
        with self._lock:
            self._check_alive()
            self._batch_for(agent).push(agent, state, replace=True)
            self._opened()

    def extend(self, states: States) -> None:
        """Queue the states of many agents; all or none."""
        pairs = list(states.items() if isinstance(states, Mapping) else states)
        with self._lock:
            self._check_alive()
            if not self._sealed and not len(self._open):
                self._open.extend(pairs)
            else:
                Batcher(self.inferer, len(pairs)).extend(pairs)
                for agent, state in pairs:
                    self._batch_for(agent).push(agent, state, replace=True)
            self._opened()

    def begin_agent(self, agent: int) -> None:
        """An agent appears."""
        with self._running:
            self._check_alive()
            self.inferer.begin_agent(agent)
            self._agents.add(agent)

    def end_agent(self, agent: int) -> None:
        """An agent is gone, and what waits of it."""
        with self._running:
            self._check_alive()
            with self._lock:
                self._open.discard(agent)
                if self._sealed is not None:
                    self._sealed.discard(agent)
                    if not len(self._sealed):
                        self._unseal()
            self._agents.discard(agent)
            self.inferer.end_agent(agent)

    def infer_single(self, agent: int, state: Mapping[str, Any]) -> Response:
        """Run one agent now, beside what waits."""
        with self._running:
            self._check_alive()
            ready = self._is_ready(1)
            started = self._clock()
            response = self.inferer.infer_batch({agent: state})[agent]
            self._note(1, self._clock() - started, ready)
            return response

    def offer(self, remaining: float | None, must: bool) -> Verdict:
        """What to do with `remaining` seconds (None: any time it takes); `must`: run whether it fits or not.

        A size without a plan is sealed, and its compile begins in the background.
        """
        with self._lock:
            batch = self._open if self._sealed is None else self._sealed
            count = len(batch)
            if not count or self._removed:
                return Verdict.IDLE
            if remaining is None:
                return Verdict.RUN
            if self._busy:
                return Verdict.IDLE
            if not self._is_ready(count) and not self._tried(count):
                self._seal()
                return Verdict.COLD
            cost = self.timings.estimate(count)
            return Verdict.RUN if must or (remaining > 0 and (cost is None or cost <= remaining)) else Verdict.LATE

    def run(self) -> dict[int, Response]:
        """Run the batch that has waited longest.

        Raises:
            Exception: what the model raises; the batch then waits at the end of the queue, and goes on where it stopped.
        """
        with self._running:
            with self._lock:
                self._seal()
                batch = self._sealed
                if batch is None or self._removed:
                    return {}
                count, whole, self._busy = len(batch), not batch.begun, True
            ready = self._is_ready(count)
            started = self._clock()
            try:
                responses = batch.execute(self.inferer)
            except BaseException:
                with self._lock:
                    self._busy = False
                    self._since = self._ticket()
                raise
            if whole:
                self._note(count, self._clock() - started, ready)
            with self._lock:
                self._busy = False
                self._unseal()
            return responses

    def remove(self) -> tuple[int, ...]:
        """Take the brain out of service, when it has finished what it is doing; the agents that still waited."""
        with self._running, self._lock:
            self._removed = True
            for future in (self._swap, self.preparing):
                if future is not None:
                    future.cancel()
            return tuple(self._waiting())

    def replace_inferer(self, new: Inferer) -> Future[Inferer]:
        """Compile `new` in the background for the sizes in use, then put it in the place of the present one, which the future gives.

        Raises:
            IncompatibleModelError: `new` has other inputs or outputs; nothing is changed.
        """
        with self._lock:
            self._check_alive()
            _check_swap(self.inferer, new)
            sizes = {*self._recent, len(self._open), len(self._sealed or ())} - {0}
            if self._swap is not None:
                self._swap.cancel()
            handle = self._swap = Future[Inferer]()
        compiles = [new.prepare(size) for size in sorted(sizes)]
        left = itertools.count(len(compiles) - 1, -1)

        def compiled(_: Future[None] | None) -> None:
            if next(left) <= 0 and handle.set_running_or_notify_cancel():
                try:
                    for compile in compiles:
                        compile.result()
                    handle.set_result(self._swap_in(new))
                except BaseException as failure:
                    handle.set_exception(failure)

        for compile in compiles:
            compile.add_done_callback(compiled)
        if not compiles:
            compiled(None)
        return handle

    def _swap_in(self, new: Inferer) -> Inferer:
        with self._running, self._lock:
            self._check_alive()
            layer = _innermost_layer(self.inferer)
            if layer is not None:
                old, layer.inferer = layer.inferer, new
            else:
                old, self.inferer = self.inferer, new
                for agent in self._agents:
                    new.begin_agent(agent)
            self.timings.age()
            self._preparing = None
            return old

    def _check_alive(self) -> None:
        if self._removed:
            raise UnknownBrainError(f"{self.brain} was removed from this runtime")

    def _waiting(self) -> dict[int, None]:
        return dict.fromkeys(agent for batch in (self._sealed, self._open) if batch is not None for agent in batch.agents)

    def _batch_for(self, agent: int) -> Batcher:
        settled = self._sealed is None or self._busy or agent in self._open or agent not in self._sealed
        return self._open if settled else self._sealed  # pyright: ignore[reportReturnType]

    def _opened(self) -> None:
        """Note since when `_open` waits."""
        if len(self._open) and not self._open_since:
            self._open_since = self._ticket()
            if self._sealed is None:
                self._since = self._open_since

    def _seal(self) -> None:
        """Settle the size of the next batch, if one waits; what is pushed from now on comes after it."""
        if self._sealed is None and len(self._open):
            self._sealed, self._open, self._open_since = self._open, self._spare, 0
        if self._sealed is None or self._busy:
            return

    def _unseal(self) -> None:
        """The sealed batch is done; the open one is next."""
        if self._sealed is not None:
            self._sealed.clear()
            self._spare, self._sealed = self._sealed, None
        self._since = self._open_since
