"""The runtime: many policies in one frame, with a fair queue, a time budget, and swaps at run time."""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from operator import attrgetter
from typing import Any, final

from .._argument_checks import as_count
from ..display import Card, html_of, text_of
from ..errors import InputError, OrphanedDataError, RuntimeErrors, UnknownBrainError
from ..inferer.base import Inferer, Shapes, check_inferer
from ..inferer.pairs import States
from ..kernels.library import opened
from ..rows.states import Response
from ..xla.fork import check_not_forked
from ..xla.frames import frame_ended
from .brain import BrainId, BrainState, Verdict
from .pace import Pace
from .timing import CompileTimings, Timing
from .turns import Place, Turns

Responses = dict[BrainId, dict[int, Response]]
_EXPECTED, _NUMBER = attrgetter("expected"), attrgetter("number")


@final
class Runtime:
    """Runs many models, each for its own agents, within a time budget.

    Push states as they come. Once per frame call `run` (everything) or `run_for` (as much as fits the
    budget). An agent has one waiting state; a newer one replaces it. A state that does not run in a frame
    waits for the next frame and goes first there.

    - **Fair.** The model that has waited longest goes first, and runs even if it does not fit the budget. So
      each model gets its turn.
    - **In time.** A model starts if its usual time fits the rest of the budget. The usual time is mean plus
      deviation of past calls by batch size, interpolated between sizes.
    - **No compile in a frame.** A batch without a plan is set aside while the background compiles. It keeps
      its place in the queue. `run_for` compiles only if it could answer nothing else; `run` compiles as
      needed.
    - **Nothing is lost.** If a model raises, the others still answer; see `RuntimeErrors`. If an interrupt
      ends a frame, the next frame returns its responses.

    Threads may call all methods; a model runs one batch at a time.

    >>> runtime = memojax.Runtime()
    >>> brain = runtime.add_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo")))
    >>> runtime.push(brain, 7, {"obs": np.zeros(6)})
    >>> runtime.run()[brain][7]["logits"].shape
    (3,)
    """

    def __init__(self, *, threads: int | None = None, clock: Callable[[], float] = time.perf_counter):
        """Start without models.

        Args:
            threads: number of threads of `run_threaded`, including the caller's; by default one per core.
            clock: function that returns seconds; tests replace it.

        Raises:
            InputError: `threads` is less than 1.
        """
        given = None if threads is None else as_count("threads", threads, InputError)
        self._threads = given or os.cpu_count() or 1
        self._clock = clock
        self._compiles = CompileTimings(clock)
        self._brains: dict[BrainId, BrainState] = {}
        self._turns = Turns()
        self._frames: dict[int, _Frame] = {}
        self._pace = Pace()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """Number of models."""
        return len(self._brains)

    def __repr__(self) -> str:
        """The models, and the number of agents that wait for each."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        with self._lock:
            states = list(self._brains.items())
        models = [(str(brain), state) for brain, state in states]
        facts = [
            (brain, f"{type(state.inferer).__name__}, {len(state.waiting())} agents wait")
            for brain, state in models
        ]
        return Card(f"Runtime of {len(models)} models", facts)

    @property
    def brains(self) -> list[BrainId]:
        """The models, in the order they were added."""
        with self._lock:
            return list(self._brains)

    def add_inferer(self, inferer: Inferer) -> BrainId:
        """Add a model.

        Raises:
            IncompatibleModelError: `inferer` is not an Inferer (for example a path).
        """
        check_inferer(inferer)
        brain = BrainId.fresh()
        state = BrainState(brain, inferer, self._turns, self._clock, self._compiles)
        with self._lock:
            self._brains[brain] = state
        return brain

    def remove_inferer(self, brain: BrainId) -> Inferer:
        """Remove a model after its current batch, and return it.

        Raises:
            UnknownBrainError: this runtime does not have the brain.
            OrphanedDataError: agents waited for the model, which is removed nevertheless.
        """
        state = self._state(brain)
        with self._lock:
            self._brains.pop(brain, None)
        if orphans := state.remove():
            raise OrphanedDataError({brain: orphans})
        return state.inferer

    def replace_inferer(self, brain: BrainId, inferer: Inferer) -> Future[Inferer]:
        """Swap the model of a brain for another with the same inputs and outputs, without a stall.

        The background compiles `inferer` for the batch sizes in use; then it takes over between two batches.
        Agents, their hidden state and waiting states stay. If the brain has wrappers, pass `inferer` without
        them, because it replaces the model inside. The future returns the old model once it is out of use.
        Cancelling the future cancels the swap, and a second swap cancels the first.

        >>> runtime = memojax.Runtime()
        >>> brain = runtime.add_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo")))
        >>> newer = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
        >>> old = runtime.replace_inferer(brain, newer).result()
        >>> runtime.inferer(brain) is newer
        True

        Raises:
            UnknownBrainError: this runtime does not have the brain.
            IncompatibleModelError: `inferer` has other inputs or outputs; nothing changes.
        """
        return self._state(brain).replace_inferer(inferer)

    def inferer(self, brain: BrainId) -> Inferer:
        """The model of a brain."""
        return self._state(brain).inferer

    def push(self, brain: BrainId, agent: int, state: Mapping[str, Any]) -> None:
        """Queue a copy of the state of an agent; it replaces a waiting one.

        Raises:
            UnknownBrainError: this runtime does not have the brain.
            InputError: an unknown or missing input, or a wrong shape or dtype; nothing is queued.
        """
        self._state(brain).push(agent, state)

    def extend(self, brain: BrainId, states: States) -> None:
        """Queue the states of many agents: all of them or, on an error, none.

        Raises:
            UnknownBrainError, InputError: as for `push`.
            DuplicateIdError: an agent is twice in `states`.
        """
        self._state(brain).extend(states)

    def waiting(self, brain: BrainId) -> list[int]:
        """Agents of a brain with a waiting state."""
        return self._state(brain).waiting()

    def begin_agent(self, brain: BrainId, agent: int) -> None:
        """Tell the brain that an agent appears; see `Inferer.begin_agent`."""
        self._state(brain).begin_agent(agent)

    def end_agent(self, brain: BrainId, agent: int) -> None:
        """Tell the brain that an agent is gone, and drop its waiting state; see `Inferer.end_agent`."""
        self._state(brain).end_agent(agent)

    def infer_single(self, brain: BrainId, state: Mapping[str, Any], agent: int = 0) -> Response:
        """Run one agent now, outside of the queue.

        Raises:
            UnknownBrainError, InputError: as for `push`.
        """
        return self._state(brain).infer_single(agent, state)

    def run(self) -> Responses:
        """Run all waiting states: brain -> agent -> response, for brains with waiting agents.

        Raises:
            RuntimeErrors: models raised; the error carries the responses of the others.
        """
        return self._run(None, threaded=False)

    def run_for(self, seconds: float) -> Responses:
        """Run as many models as fit into `seconds`, but at least one; the longest waiting goes first.

        >>> runtime = memojax.Runtime()
        >>> brain = runtime.add_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1]))
        >>> runtime.push(brain, 7, {"obs": np.zeros(6)})
        >>> list(runtime.run_for(0.005)[brain])
        [7]

        Raises:
            RuntimeErrors: as for `run`.
        """
        return self._run(seconds, threaded=False)

    def run_threaded(self) -> Responses:
        """`run`, with the models on several threads if the first frames show that this is faster.

        Raises:
            RuntimeErrors: as for `run`.
        """
        return self._run(None, threaded=True)

    def run_for_threaded(self, seconds: float) -> Responses:
        """`run_for`, with the models on several threads.

        Raises:
            RuntimeErrors: as for `run`.
        """
        return self._run(seconds, threaded=True)

    def input_shapes(self, brain: BrainId) -> Shapes:
        """(name, element shape) of each input that `push` takes."""
        return self._state(brain).inferer.input_shapes()

    def output_shapes(self, brain: BrainId) -> Shapes:
        """(name, element shape) of each output in a response."""
        return self._state(brain).inferer.output_shapes()

    def timings(self, brain: BrainId) -> dict[int, Timing]:
        """Time per batch by batch size, without compiles."""
        return dict(self._state(brain).timings.items())

    def clear(self) -> None:
        """Remove all models.

        Raises:
            OrphanedDataError: agents waited; all models are removed nevertheless.
        """
        with self._lock:
            states = list(self._brains.values())
            self._brains.clear()
            self._frames.clear()
        orphans = {state.brain: waiting for state in states if (waiting := state.remove())}
        if orphans:
            raise OrphanedDataError(orphans)

    def _state(self, brain: BrainId) -> BrainState:
        state = self._brains.get(brain)
        if state is None:
            raise UnknownBrainError(
                f"{brain} is not in this runtime: it was removed, or belongs to another runtime"
            )
        return state

    def _run(self, seconds: float | None, threaded: bool) -> Responses:
        check_not_forked()  # First, because in a forked child the lock below may be held forever.
        deadline = None if seconds is None else self._clock() + seconds
        with self._lock:
            frame_number = self._turns.begin_frame()
            queue = self._queue()
        states = [state for _, state in queue]
        frame = _Frame(queue, frame_number, self._clock, deadline)
        with frame.active:
            self._register(frame)
            # A thread that waits for an accelerator uses no core, so such models overlap even in `run`.
            accelerated = any(state.on_accelerator for state in states)
            threads = min(self._threads, len(states)) if threaded or accelerated else 1
            if threads > 1 and seconds is None and not accelerated:
                self._work_as_it_pays(frame, states, threads)
            else:
                self._work(frame, threads)
            self._run_cold(frame, threads)
            responses = frame.all_responses()
            failure = RuntimeErrors(frame.failures, responses) if frame.failures else None
            frame_ended()
            frame.keeper = threading.current_thread()
        # `_delivered` is the last thing that may raise: an interrupt before it leaves the responses to the
        # next run of this thread.
        if failure is not None:
            raise failure if self._delivered(frame_number) is None else failure  # noqa: RUF034 (one step)
        return responses if self._delivered(frame_number) is None else {}

    # Under a lock, a loop with a condition has its own function; tests/contracts/test_locks.py says why.
    def _queue(self) -> list[tuple[Place, BrainState]]:
        return [entry for state in self._brains.values() if (entry := (state.place, state))[0][0]]

    def _abandoned(self) -> list[_Frame]:
        # Other threads deliver frames meanwhile, without the lock: hence the copy, and the second look.
        frames = list(self._frames.values())
        return [other for other in frames if other.abandoned and other.number in self._frames]

    def _delivered(self, frame_number: int) -> None:
        """Forget a frame whose responses are about to be returned."""
        if frame_number in self._frames:
            del self._frames[frame_number]

    def _run_cold(self, frame: _Frame, threads: int) -> None:
        """Run models that had no plan, as far as the budget has room."""
        while frame.cold and (frame.run_first_cold() or frame.await_cold(self._compiles)):
            self._work(frame, threads)

    def _register(self, frame: _Frame) -> None:
        """Register `frame`, which takes over the responses of interrupted frames."""
        with self._lock:
            abandoned = self._abandoned()
            for other in abandoned:
                frame.earlier = merged(frame.earlier, other.all_responses())
            self._frames[frame.number] = frame
            for other in abandoned:
                self._frames.pop(other.number, None)

    def _work_as_it_pays(self, frame: _Frame, states: list[BrainState], threads: int) -> None:
        """Work on one thread if that is no slower for these models and this number of agents."""
        # The agents as of the building of the queue: to count them again would take a percent of a frame.
        load = sum(map(_EXPECTED, states)).bit_length(), *map(_NUMBER, states)
        threaded = self._pace.threads_pay(load)
        started = time.perf_counter()
        self._work(frame, threads if threaded else 1)
        self._pace.note(load, threaded, time.perf_counter() - started)

    def _work(self, frame: _Frame, threads: int) -> None:
        if threads <= 1:
            frame.work()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="memojax-runtime")
        pool = self._pool
        helpers = [
            pool.submit(contextvars.copy_context().run, frame.help, threads) for _ in range(threads - 1)
        ]
        frame.work_beside(threads)
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def merged(earlier: Responses, later: Responses) -> Responses:
    """Both together; an agent in both gets its later response."""
    return {
        brain: {**earlier.get(brain, {}), **later.get(brain, {})}
        for brain in dict.fromkeys((*earlier, *later))
    }


class _Frame:
    """One run over the waiting models: the queue, responses, failures, and models that must compile first.

    Attributes:
        number: the frame's number, from 1.
        responses: responses of this frame.
        earlier: responses of interrupted frames, which their callers never received.
        failures: exceptions of models.
        cold: models that must compile first.
        helping: threads at work beside the caller's.
        active: locked while the caller waits for the responses; an interrupt releases it.
        keeper: the caller once it has all responses and is about to return them.
    """

    def __init__(
        self,
        queue: list[tuple[Place, BrainState]],
        number: int,
        clock: Callable[[], float],
        deadline: float | None,
    ):
        """Make a frame for `queue`; states queued after the beginning of frame `number` belong to the next
        frame."""
        self.number = number
        self.responses: Responses = {}
        self.earlier: Responses = {}
        self.helping: set[int] = set()
        self.active = threading.Lock()
        self.keeper: threading.Thread | None = None
        self.failures: dict[BrainId, Exception] = {}
        self.cold: list[BrainState] = []
        self._queue = queue
        heapq.heapify(queue)
        self._clock, self._deadline = clock, deadline
        self._least = (
            0.0 if deadline is None else min((state.timings.least for _, state in queue), default=0.0)
        )
        self._at_work = 0
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> bool:
        """Whether the caller is gone and no thread adds responses. A caller that is about to return was
        interrupted if it is here again, or is no more."""
        keeper = self.keeper
        gone = keeper is None or keeper is threading.current_thread() or not keeper.is_alive()
        return gone and not self.active.locked() and not self.helping

    def all_responses(self) -> Responses:
        """Responses of this frame and of interrupted ones."""
        return merged(self.earlier, self.responses) if self.earlier else self.responses

    def work(self) -> None:
        """Run models until none fits; several threads may call this at once."""
        while (chosen := self._next()) is not None:
            self._run(*chosen)

    def work_beside(self, threads: int) -> None:
        """`work` as one of several threads, which share the cores."""
        kernels = opened()
        with kernels.shared_among(threads) if kernels is not None else contextlib.nullcontext():
            self.work()

    def help(self, threads: int) -> None:
        """`work_beside` in a helping thread, while the caller waits."""
        thread = threading.get_ident()
        self.helping.add(thread)
        try:
            self.work_beside(threads)
        finally:
            self.helping.discard(thread)

    def run_first_cold(self) -> bool:
        """Run the first model without a plan, but only if nothing else answered in this frame."""
        if self.responses:
            return False
        self._at_work += 1
        self._run(self.cold.pop(0), self._clock())
        return True

    def await_cold(self, compiles: CompileTimings) -> bool:
        """Wait for compiles that should end in time, and queue their models; False if none ended."""
        remaining = self._remaining() or 0.0
        if remaining <= 0:
            return False
        hopeful = [
            state.compile for state in self.cold if (compiles.expected(state.brain) or 0.0) <= remaining
        ]
        done = wait([future for future in hopeful if future is not None], remaining, FIRST_COMPLETED).done
        ready = [state for state in self.cold if state.compile in done]
        self.cold = [state for state in self.cold if state.compile not in done]
        for state in ready:
            heapq.heappush(self._queue, (state.place, state))
        return bool(ready)

    def _next(self) -> tuple[BrainState, float] | None:
        """The next model to run, and the time when the search began, which counts as its cost."""
        with self._lock:
            return self._offered()

    def _offered(self) -> tuple[BrainState, float] | None:
        """The same, with the lock held. The loop needs a Python frame of its own; see test_locks.py."""
        while self._queue and self.active.locked():
            started = self._clock()
            if self._deadline is None:
                self._at_work += 1
                return heapq.heappop(self._queue)[1], started
            remaining, must = self._deadline - started, not self.responses and not self._at_work
            if not must and (remaining <= 0 or remaining < self._least):
                return None  # Asking the other models would only use up the rest of the budget.
            state = heapq.heappop(self._queue)[1]
            verdict = state.offer(remaining, must)
            if verdict is Verdict.COLD:
                self.cold.append(state)
            elif verdict is Verdict.RUN:
                self._at_work += 1
                return state, started
        return None

    def _run(self, state: BrainState, started: float) -> None:
        waiting = 0
        try:
            waiting = state.run(started, self.responses)
        except Exception as failure:
            self.failures[state.brain] = failure
        finally:
            with self._lock:
                self._at_work -= 1
                if 0 < waiting <= self.number:
                    heapq.heappush(self._queue, (state.place, state))

    def _remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - self._clock()
