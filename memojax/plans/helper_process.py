"""The process that compiles for its parent: `python -m memojax.plans.helper_process`, started by `helper`.

It reads orders from its standard input and writes answers to its original standard output. It ends with its
parent, even during a compile, or after some minutes without an order. Ctrl-C does not reach it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import jax

from ..errors import CompileError, LoweringError
from ..lowering.typed_model import TypedModel
from ..xla.cpu_client import cpu_device
from .candidates import CANDIDATES, Candidate
from .compiler import PlanCompiler, Weights
from .helper_messages import LIMITS, Failed, Made, Order, packed, received, send, surroundings
from .hoist import Residual
from .plan import Plan
from .serialized import as_bytes

log: logging.Logger = logging.getLogger("memojax")

IDLE_SECONDS = 300
"""Seconds without an order after which the process ends; the next order starts another."""

_NICENESS = 10
_LAST_CORE = 36
"""Where `/proc/*/stat` has the core on which a thread ran last, counted behind the thread's name."""
_WATCH_SECONDS = 1.0


class _Cores:
    """Keeps this process off one core, which stays free for the loop, if there are several.

    Linux gives a time slice of some milliseconds to a thread of any priority. Meanwhile it does not always
    move the loop to an idle core, so this process moves: it leaves the core of the parent's main thread.
    """

    def __init__(self) -> None:
        self._all: list[int] = []
        with contextlib.suppress(AttributeError, OSError):  # a system without affinity
            self._all = sorted(os.sched_getaffinity(0))
        self._some: list[int] = []
        if len(self._all) > 1:
            # Helpers of different processes begin with different cores.
            self._leave(self._all[os.getppid() % len(self._all)])
            self.follow()

    def follow(self) -> None:
        """Leave the core on which the parent's main thread ran last."""
        parent = os.getppid()
        with contextlib.suppress(OSError, ValueError, IndexError):
            line = Path(f"/proc/{parent}/task/{parent}/stat").read_text()
            core = int(line.rpartition(")")[2].split()[_LAST_CORE])
            if core in self._some:
                self._leave(core)

    def _leave(self, left: int) -> None:
        self._some = [core for core in self._all if core != left]
        self._use(self._some)

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        """Give the process all cores: XLA divides the work of a plan by the cores of its threads."""
        self._use(self._all)
        try:
            yield
        finally:
            self._use(self._some)

    def _use(self, cores: list[int]) -> None:
        if self._some:
            for task in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                    os.sched_setaffinity(int(task), cores)


class _Workshop:
    """The models that were sent, and their compilers, which share values among all sizes."""

    def __init__(self, cores: _Cores) -> None:
        self._cores = cores
        self._programs: set[tuple[Any, ...]] = set()
        self._undivided: dict[tuple[Any, ...], int] = {}
        self._models: dict[int, TypedModel] = {}
        self._compilers: dict[tuple[int, Weights, str | None, int | None, int], PlanCompiler] = {}
        self._sent: dict[int, set[str]] = {}

    def learn(self, number: int, typed: TypedModel) -> None:
        self._models[number] = typed

    def forget(self, number: int) -> None:
        self._models.pop(number, None)
        self._sent.pop(number, None)
        for key in [key for key in self._compilers if key[0] == number]:
            del self._compilers[key]
        self._programs = {key for key in self._programs if key[0] != number}
        self._undivided = {key: size for key, size in self._undivided.items() if key[0] != number}

    def make(self, order: Order) -> Made:
        _take_limits(order)
        key = order.number, order.weights, order.precision, order.threads, order.cores
        if key not in self._compilers:
            self._compilers[key] = PlanCompiler(
                self._models[order.number],
                cpu_device(),
                order.weights,
                order.precision,
                threads=order.threads,
                cores=order.cores,
            )
        compiler, candidate = self._compilers[key], CANDIDATES[order.candidate]
        as_arguments = compiler.weights == "argument"
        residual = compiler.trace(order.size * candidate.rows) if as_arguments else None
        plan = self._compiled(
            compiler, order.size, candidate, residual, (*key, candidate.name), order.undivided
        )
        executable = plan.executable
        payload, weights = as_bytes(executable.made)
        sent = self._sent.setdefault(order.number, set())
        new = {digest: array for digest, array in weights.items() if digest not in sent}
        sent.update(new)
        return Made(
            payload, new, executable.candidate, plan.compile_ms, residual.origin() if residual else None
        )

    def _compiled(
        self,
        compiler: PlanCompiler,
        size: int,
        candidate: Candidate,
        residual: Residual | None,
        key: tuple[Any, ...],
        known: int,
    ) -> Plan:
        """The plan. XLA sees all cores, unless it makes no use of them.

        It makes no use of them where the kernels run all of a size, as they ran the earlier ones, and where
        it did not divide the work of a larger batch, here or in the parent (`known`).
        """
        self._cores.follow()
        undivided = size <= max(known, self._undivided.get(key, 0))
        if undivided or key in self._programs:
            plan = compiler.lower(size, candidate, residual).compile()
            if undivided or plan.executable.made.program is not None:
                return plan
            self._programs.discard(key)
        lowered = compiler.lower(size, candidate, residual)
        with self._cores.all():
            plan = lowered.compile()
        if plan.executable.made.program is not None:
            self._programs.add(key)
        elif not plan.executable.made.divided and plan.executable.made.beside is None:
            self._undivided[key] = size
        return plan


def _take_limits(order: Order) -> None:
    """Take over the parent's present limits for files."""
    for name in [name for name in os.environ if name.startswith(LIMITS)]:
        del os.environ[name]
    os.environ.update(order.environment)


class _Orders:
    """The queue of orders; one thread fills it, another ends the process with its parent."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._waiting: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._idle_since: float | None = time.monotonic()
        self._parent = os.getppid()
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def next(self) -> tuple[Any, ...]:
        """The next order, waiting for it if necessary."""
        if self._waiting.empty():
            self._idle_since = time.monotonic()
        order = self._waiting.get()
        self._idle_since = None
        return order

    def _listen(self) -> None:
        try:
            while True:
                self._waiting.put(received(self._pipe))
        except (EOFError, OSError):
            _end()

    def _watch(self) -> None:
        """End with the parent, whose forks may keep the pipe open, or after a long time without work."""
        while os.getppid() == self._parent:
            idle = self._idle_since
            if idle is not None and self._waiting.empty() and time.monotonic() - idle > IDLE_SECONDS:
                break
            time.sleep(_WATCH_SECONDS)
        _end()


def _failure(cause: Exception) -> Failed | str:
    """The answer for a failed compile: `Failed` for an error of the model, else a text about this process.

    The parent compiles again after a text, but not after `Failed`.
    """
    if isinstance(cause, (CompileError, LoweringError)):
        with contextlib.suppress(Exception):
            if str(pickle.loads(pickle.dumps(cause))) == str(cause):
                return Failed(cause)
    return f"{type(cause).__name__}: {cause}"


def _end() -> NoReturn:
    """End at once: XLA's threads may be at work, and an orderly exit would wait for them."""
    os._exit(0)


def main() -> None:
    """Compile the orders, one after the other."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    # Libraries may print, which must not mix with the answers: those get a private copy of the handle.
    pipes = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1):
        os.dup2(silence, handle)
    orders, answers = _Orders(pipes[0]), pipes[1]
    # The parent stores the plans; JAX's own cache here would store them twice.
    jax.config.update("jax_enable_compilation_cache", False)
    cpu_device()
    send(answers, packed(surroundings()))
    workshop = _Workshop(_Cores())
    while True:
        kind, *given = orders.next()
        if kind == "make":
            try:
                answer: Any = workshop.make(*given)
            except Exception as cause:
                answer = _failure(cause)
            send(answers, packed(answer))
        else:
            (workshop.learn if kind == "model" else workshop.forget)(*given)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main()
    except OSError:
        _end()
