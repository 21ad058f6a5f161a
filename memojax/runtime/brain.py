"""One brain of a runtime: its inferer, its queue of states, and its cost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from ..errors import UnknownAgentError, UnknownBrainError
from ..inferer.base import Inferer
from ..inferer.batcher import Batcher, batcher_for
from ..inferer.layers import innermost
from ..inferer.loose_batcher import LooseBatcher
from ..inferer.pairs import States, pairs_of
from ..rows.journal import Journal
from ..rows.states import Response
from .brain_id import BrainId as BrainId
from .layers import check_swap, innermost_layer, is_ready, on_accelerator
from .timing import CompileTimings, Timings
from .turns import Place, Queue, Turns

_RECENT = 32
"""Number of recent batch sizes that count as in use: a new policy is compiled for them before its swap."""

_ROUNDS = 8
"""Maximum rounds of compiling new sizes before a swap goes ahead anyway."""


class Verdict(Enum):
    """A brain's decision in a frame."""

    IDLE = auto()
    """Nothing waits, or another thread runs it."""
    RUN = auto()
    LATE = auto()
    """It would exceed the rest of the budget."""
    COLD = auto()
    """Its batch size has no plan yet; one compiles in the background."""


@dataclass(frozen=True)
class _Compile:
    """A background compile of `inferer` for `count` rows."""

    inferer: Inferer
    count: int
    future: Future[None]


class BrainState:
    """One brain of a runtime.

    Two batches wait. The open batch takes new states. The sealed batch runs before it and takes no new
    agents: it runs, has failed, or waits for a compile of its size. A new state replaces the agent's waiting
    state, unless that one has run. `_lock` guards the queue and is held briefly. `_running` is held while the
    inferer runs.
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
        self.number: int = hash(brain)  # a number of its own, which is quicker to hash
        self.inferer: Inferer = inferer
        self.on_accelerator: bool = on_accelerator(inferer)
        self.timings: Timings = Timings()
        self.expected: int = 0  # agents in the next batch, as of the last look at `place`
        self._turns, self._clock, self._compiles = turns, clock, compiles
        self._served = 0
        self._queue = Queue(batcher_for(inferer), batcher_for(inferer))
        self._journal = Journal()
        self._executing = self._removed = False
        self._ending: tuple[int] | None = None
        self._agents: set[int] = set()
        self._recent: dict[int, None] = {}
        self._compile: _Compile | None = None
        self._swap: Future[Inferer] | None = None
        self._lock = threading.Lock()
        self._running = threading.Lock()

    @property
    def place(self) -> Place:
        """Place in the queue, lowest first: by the frame in which waiting began (0 if nothing waits), then by
        the last service."""
        if self._journal.owed is not None:
            with self._lock:
                self._journal.finish()
        since, self.expected = self._queue.next
        return since, self._served, self.brain

    @property
    def compile(self) -> Future[None] | None:
        """The most recent background compile."""
        return self._compile and self._compile.future

    def waiting(self) -> list[int]:
        """Agents with a waiting state."""
        with self._lock:
            self._journal.finish()
            return self._waiting()

    def push(self, agent: int, state: Mapping[str, Any]) -> None:
        """Queue the state of one agent."""
        with self._lock:
            self._check_alive()
            self._journal.finish()
            self._note_arrival()
            self._batch_of(agent).push(agent, state, replace=True)
            if self._ending is not None:
                self._lives_on(agent)

    def extend(self, states: States) -> None:
        """Queue the states of many agents: all of them or, on an error, none."""
        # Another iterable may run any code, which must not happen under the lock.
        given = states if type(states) in (list, dict) else pairs_of(states)
        with self._lock:
            if self._removed or self._journal.owed is not None:
                self._check_alive()
                self._journal.finish()
            self._note_arrival()
            queue = self._queue
            if self._ending is None and not len(queue.sealed):
                queue.open.extend(given, replace=True)
                return
            pairs = pairs_of(given)
            sealed = self._sealed_among(pairs)
            if not sealed:
                self._queue.open.extend(pairs, replace=True)
                if self._ending is not None:
                    self._lives_on(*(agent for agent, _ in pairs))
                return
            # The states go to two batches. From checked copies, both batches can take them again after an
            # interrupt in between.
            copies = batcher_for(self.inferer, len(pairs))
            copies.extend(pairs)
            parts = [], []
            for agent, state in copies.states():
                parts[agent in sealed].append((agent, state))
            self._journal.commit(partial(_extend_both, self._queue, *parts))
            self._lives_on(*(agent for agent, _ in pairs))

    def _sealed_among(self, pairs: Sequence[tuple[int, Any]]) -> set[int]:
        """Agents of `pairs` whose states wait in the sealed batch."""
        sealed = self._queue.sealed
        return {agent for agent, _ in pairs if self._batch_of(agent) is sealed} if len(sealed) else set()

    def begin_agent(self, agent: int) -> None:
        """Tell the inferer that an agent appears."""
        with self._running:
            self._check_alive()
            self._finish_ending()
            self._begin(agent)

    def end_agent(self, agent: int) -> None:
        """Tell the inferer that an agent is gone, and drop its waiting state."""
        with self._running:
            self._check_alive()
            again = self._ending == (agent,)
            self._finish_ending()
            if not again:
                self._end(agent)

    def _begin(self, agent: int) -> None:
        known = agent in self._agents
        # Noted before the agent begins: a swap may begin one agent too many, but must not leave one out.
        self._agents.add(agent)
        try:
            self.inferer.begin_agent(agent)
        except Exception:
            if not known:
                self._agents.discard(agent)
            raise

    def _end(self, agent: int) -> None:
        self._ending = (agent,)
        try:
            self.inferer.end_agent(agent)
        except Exception as failure:
            if not isinstance(failure, MemoryError):  # A refusal, so nothing has changed.
                self._ending = None
            raise
        self._forget(agent)

    def _finish_ending(self) -> None:
        """Repeat the end of an agent that an interrupt cut short.

        The inferer may no longer know the agent, so its error is ignored.
        """
        if self._ending is not None:
            (agent,) = self._ending
            with contextlib.suppress(UnknownAgentError):
                self.inferer.end_agent(agent)
            self._forget(agent)

    def _lives_on(self, *agents: int) -> None:
        """Cancel an interrupted end of `agents`, because they have new states."""
        if self._ending is not None and self._ending[0] in agents:
            self._ending = None

    def _forget(self, agent: int) -> None:
        with self._lock:
            self._journal.finish()
            self._queue.open.discard(agent)
            self._queue.sealed.discard(agent)
        self._agents.discard(agent)
        self._ending = None

    def infer_single(self, agent: int, state: Mapping[str, Any]) -> Response:
        """Run one agent now, outside of the queue."""
        with self._running:
            self._check_alive()
            self._executing = False
            self._finish_ending()
            ready = self._is_ready(1)
            started = self._clock()
            response = self.inferer.infer_batch({agent: state})[agent]
            with self._lock:
                self._note_cost(1, self._clock() - started, ready)
            return response

    def offer(self, remaining: float | None, must: bool) -> Verdict:
        """Decide about `remaining` seconds (None: no limit); `must` runs the batch even if it does not fit.

        RUN and COLD seal the batch. COLD starts a background compile. Once that has ended, or failed, the
        batch is no longer COLD.
        """
        with self._lock:
            self._journal.finish()
            count = len(self._queue.sealed) or len(self._queue.open)
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

    def run(self, started: float, answers: dict[BrainId, dict[int, Response]]) -> int:
        """Run the batch that has waited longest, and add its responses to `answers`.

        The cost of the batch counts from `started`.

        Returns:
            the frame in which the next batch began to wait; 0 if nothing has run, or nothing waits any more.

        Raises:
            Exception: the model raised. The batch then waits at the end of the queue, and continues where it
                stopped.
        """
        elsewhere = self._running.locked()
        with self._running:
            if elsewhere:
                started = self._clock()  # The wait for another thread is not the model's cost.
            if self._ending is not None:
                self._finish_ending()
            with self._lock:
                if self._journal.owed is not None:
                    self._journal.finish()
                self._executing = True
                batch, count = self._seal()
                if not count or self._removed:
                    return 0
            whole, ready = self._execute(batch, count, answers)
            with self._lock:
                self._executing = False
                self._served = self._turns.served()
                if whole:
                    self._note_cost(count, self._clock() - started, ready)
                if self._journal.owed is not None:
                    self._journal.finish()
                return self._queue.next[0]

    def _execute(
        self, batch: Batcher | LooseBatcher, count: int, answers: dict[BrainId, dict[int, Response]]
    ) -> tuple[bool, bool]:
        """Run `batch`, and clear it once its responses are stored.

        Returns whether the whole batch ran, and whether that needed no compile.
        """
        try:
            whole = ready = True
            responses = batch.run_quickly(self.inferer)
            if responses is None:
                whole, ready = not batch.begun, self._is_ready(count)
                responses = batch.run(self.inferer)
            if responses and (earlier := answers.setdefault(self.brain, responses)) is not responses:
                answers[self.brain] = {**earlier, **responses}
            batch.clear()
            return whole, ready
        except BaseException:
            with self._lock:
                self._queue = self._queue._replace(sealed_since=self._turns.frame + 1)
                self._served = self._turns.served()
            raise

    def remove(self) -> list[int]:
        """Take the brain out of service after its current batch, and return the agents that still waited."""
        with self._running, self._lock:
            self._journal.finish()
            self._removed = True
            orphans = self._waiting()
        for future in (self._swap, self.compile):
            if future is not None:
                future.cancel()
        return orphans

    def replace_inferer(self, new: Inferer) -> Future[Inferer]:
        """Compile `new` in the background for the sizes in use, then swap it in; the future gives the old
        one.

        Raises:
            IncompatibleModelError: `new` has other inputs or outputs; nothing changes.
        """
        with self._lock:
            self._check_alive()
            check_swap(self.inferer, new)
            handle = Future[Inferer]()
            if self._swap is not None:
                self._swap.cancel()
            self._swap = handle
        self._prepare_swap(new, handle, _ROUNDS)
        return handle

    def _prepare_swap(self, new: Inferer, handle: Future[Inferer], rounds: int) -> None:
        """Compile `new` for the sizes in use, repeat that for newer sizes, then swap it in."""
        try:
            with self._lock:
                sizes = {*self._recent, len(self._queue.open), len(self._queue.sealed)} - {0}
            compiles = (
                [new.prepare(size) for size in sorted(sizes) if not is_ready(new, size)] if rounds else []
            )
            if not compiles and handle.set_running_or_notify_cancel():
                handle.set_result(self._swap_in(new))
        except BaseException as failure:
            _fail(handle, failure)
            return
        # The last compile to end continues here, on its own thread, so the caller need not wait.
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
            self.on_accelerator = on_accelerator(new)
            self.timings.age()
            layer = innermost_layer(self.inferer)
            if layer is not None:
                old, layer.inferer = layer.inferer, new
            else:
                old, self.inferer = self.inferer, new
            return old

    def _check_alive(self) -> None:
        if self._removed:
            raise UnknownBrainError(f"{self.brain} was removed from this runtime")

    @property
    def _busy(self) -> bool:
        """Whether the sealed batch runs; after an interrupt the flag may be stale, but the lock is free."""
        return self._executing and self._running.locked()

    def _waiting(self) -> list[int]:
        return list(dict.fromkeys((*self._queue.sealed.agents, *self._queue.open.agents)))

    def _batch_of(self, agent: int) -> Batcher | LooseBatcher:
        """The batch that takes a new state of `agent`."""
        queue = self._queue
        if not len(queue.sealed) or self._busy or agent in queue.open or agent not in queue.sealed:
            return queue.open
        return queue.sealed

    def _note_arrival(self) -> None:
        """Note the frame in which the open batch begins to wait, before its first state arrives."""
        queue = self._queue
        if not len(queue.open):
            self._queue = Queue(queue.open, queue.sealed, self._turns.frame, queue.sealed_since)

    def _seal(self) -> tuple[Batcher | LooseBatcher, int]:
        """Seal the open batch if no other is sealed; return the sealed batch, and its number of agents."""
        queue = self._queue
        count = len(queue.sealed)
        if count or not (count := len(queue.open)):
            return queue.sealed, count
        self._queue = Queue(queue.sealed, queue.open, 0, queue.open_since)
        return queue.open, count

    def _is_ready(self, count: int) -> bool:
        return is_ready(self.inferer, count)

    def _asked_for(self, count: int) -> bool:
        """Whether the compile for `count` has ended; starts one if none was started."""
        inferer, last = innermost(self.inferer), self._compile
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
        recent = self._recent
        recent.pop(count, None)
        recent[count] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        if ready:
            self.timings.add(count, seconds)
        else:
            self._compiles.add(self.brain, max(0.0, seconds - (self.timings.estimate(count) or 0.0)))


def _extend_both(
    queue: Queue, open: list[tuple[int, Mapping[str, Any]]], sealed: list[tuple[int, Mapping[str, Any]]]
) -> None:
    queue.sealed.extend(sealed, replace=True)
    queue.open.extend(open, replace=True)


def _fail(handle: Future[Inferer], failure: BaseException | None) -> None:
    """Fail a swap, unless it was cancelled or has already failed."""
    with contextlib.suppress(InvalidStateError, RuntimeError):  # RuntimeError: another thread was faster.
        if not handle.done() and (handle.running() or handle.set_running_or_notify_cancel()):
            handle.set_exception(failure)
