"""Models for the runtime's tests: a fake clock sets their cost, and tests control compiles and failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, final

import numpy as np

import memojax as mj

from .helpers import Fake, model_api


@final
class Clock:
    """Seconds that pass only when something costs them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Broken(Exception):
    """The error of a `Brain` that a test lets fail."""


@final
class Brain(Fake):
    """Gives `obs` back as `out`.

    Attributes:
        cost: count of rows -> seconds that pass.
        ready: sizes that have a plan; None: all.
        failing: whether to raise, from the call of number `fail_at_call` on.
        during: called while it runs.
        asked: sizes that `prepare` was called for -> its future; `finish` is the background compile.
        ran: sizes that ran.
        compiled_in_frame: sizes that had to be compiled by a run.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        cost: Callable[[int], float] | float = 0.0,
        *,
        ready: set[int] | None = None,
        compile_cost: float = 0.1,
        take: Callable[[int], int] = lambda count: count,
        width: int = 3,
    ):
        super().__init__(model_api({"obs": (width,)}, {"out": (width,)}), take)
        self._clock = clock or Clock()
        self.cost = cost if callable(cost) else lambda count: cost
        self.ready, self.compile_cost = ready, compile_cost
        self.failing = False
        self.fail_at_call = 0
        self.during: Callable[[], None] = lambda: None
        self.asked: dict[int, Future[None]] = {}
        self.ran: list[int] = []
        self.compiled_in_frame: list[int] = []
        self.agents: list[int] = []
        self._calls = 0

    def infer_raw(self, view: mj.ScratchPadView) -> None:
        size = len(view)
        if self.ready is not None and size not in self.ready:
            self.compiled_in_frame.append(size)
            self.ready.add(size)
            self._clock.now += self.compile_cost
        self.during()
        self._calls += 1
        if self.failing and self._calls > self.fail_at_call:
            raise Broken(f"told to fail at {size} rows")
        self._clock.now += self.cost(size)
        view.set_output(0, np.array(view.input_slot(0)))
        self.ran.append(size)

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> dict[str, Any]:
        return {"out": np.array(inputs["obs"])}

    def begin_agent(self, agent: int) -> None:
        self.agents.append(agent)

    def end_agent(self, agent: int) -> None:
        self.agents.remove(agent)

    def is_ready(self, count: int) -> bool:
        return self.ready is None or count in self.ready

    def prepare(self, count: int) -> Future[None]:
        future = self.asked[count] = Future()
        if self.is_ready(count):
            future.set_result(None)
        return future

    def finish(self, count: int, failure: Exception | None = None) -> None:
        """The compile for `count` is done."""
        future = self.asked[count]
        if not future.set_running_or_notify_cancel():
            return
        if failure is not None:
            future.set_exception(failure)
            return
        if self.ready is not None:
            self.ready.add(count)
        future.set_result(None)


def obs(*values: float) -> dict[str, np.ndarray]:
    """A state for a `Brain` of width 3, padded with zeros."""
    return {"obs": np.array((*values, 0, 0, 0)[:3], np.float32)}


class Stage:
    """A runtime over fakes that share one made-up clock."""

    def __init__(self, *costs, **options):
        self.clock = Clock()
        self.runtime = mj.Runtime(clock=self.clock, **options)
        self.fakes, self.ids = [], []
        for cost in costs:
            self.add(Brain(self.clock, cost))

    def add(self, fake):
        self.fakes.append(fake)
        self.ids.append(self.runtime.add_inferer(fake))
        return self.ids[-1]

    def push_all(self, agent=0, value=0.0):
        for brain in self.ids:
            self.runtime.push(brain, agent, obs(value))

    def hold(self, fake):
        """Let the batches of a fake last until `leave`; `entered` tells that one is running."""
        entered, leave = threading.Event(), threading.Event()

        def during():
            entered.set()
            leave.wait(10)

        fake.during = during
        return entered, leave

    def run_for(self, seconds):
        """Indices of the models that answered."""
        return sorted(map(self.ids.index, self.runtime.run_for(seconds)))
