"""The process that compiles for this one, shared by all inferers; the first background compile starts it.

Compiling in another process leaves Python's lock to the loop that calls policies. The helper sends
executables in the form that the disk cache stores. It runs a clean `python -m`, so it never imports the
user's `__main__`. If the helper fails for any reason, this process compiles the plan itself; an error of the
model itself then appears here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from ..kernels.direct import shared
from ..lowering.batch_axis import BatchedFunction
from ..xla.background import before_exit, is_compile_worker
from ..xla.cpu_client import cpu_device
from ..xla.limits import limit_variables
from ..xla.memory import available_bytes, readable
from .candidates import Candidate
from .compiler import PlanCompiler
from .disk_cache import environment_key
from .helper_messages import Failed, Made, Order, broken_pipes_raise, packed, received, send, surroundings

CompileIn = Literal["auto", "process", "thread"]

log: logging.Logger = logging.getLogger("memojax")

_ROOM = 1 << 30
"""Bytes that must be free beside the helper's copies of the weights; it uses a third of that."""

_WEIGHT_COPIES = 6
_MOST_CRASHES = 3


@final
class Helper:
    """The helper of this process; threads take turns with it.

    Attributes:
        crashes: number of helper processes that ended unasked; after some of them, no other starts.
        started: number of helper processes started.
        plans: number of plans that helpers made.
    """

    def __init__(self) -> None:
        self.crashes: int = 0
        self.started: int = 0
        self.plans: int = 0
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._exiting = False
        self._refused = ""

    @property
    def pid(self) -> int | None:
        """The id of the process, or None if none runs."""
        running = self._running
        return None if running is None or running.process.poll() is not None else running.process.pid

    def make(
        self, compiler: PlanCompiler, size: int, candidate: Candidate, undivided: int = 0
    ) -> Made | None:
        """A plan of `compiler`'s model from the helper; None if this process must make it.

        `undivided` is as in `Order`.

        Raises:
            CancelledError: the interpreter exits.
            CompileError, LoweringError: the model does not allow this plan; a compile here would fail, too.
        """
        why = self._refused or self._why_not(compiler)
        if not why:
            with self._lock:
                answer = self._ask(compiler, size, candidate, undivided)
            if isinstance(answer, Made):
                self.plans += 1
                return answer
            if isinstance(answer, Failed):
                raise answer.error
            why = answer
        log.debug("batch size %d is compiled in this process: %s", size, why)
        return None

    def stop(self) -> None:
        """End the process if one runs; the next plan starts another."""
        running, self._running = self._running, None
        if running is not None:
            running.end()

    def exit(self) -> None:
        """End the process for good; no lock, because its holder waits for the process."""
        self._exiting = True
        self.stop()

    def forked(self) -> None:
        """In a forked child: forget the parent's process, and close all handles that it waits for."""
        if self._running is not None:
            self._running.let_go()
            _parents.append(self._running)
        self.__init__()

    def _why_not(self, compiler: PlanCompiler) -> str:
        """The reason not to ask the helper for this plan; empty if there is none."""
        if compiler.device != cpu_device() or not compiler.host:
            return "a helper makes only plans for NumPy batches on the CPU"
        if not isinstance(compiler.typed.fn, BatchedFunction):
            return "a helper makes only plans of ONNX files"
        if self._running is not None:
            return ""
        if os.name != "posix" or not sys.executable:
            return self._refuse("this system has no Python that could be started")
        processes = sys.modules.get("multiprocessing.process")
        if processes is not None and processes.current_process().daemon:
            return self._refuse("this process is a multiprocessing daemon, which may not have children")
        room, needed = available_bytes(cpu_device()), _ROOM + _WEIGHT_COPIES * compiler.weight_bytes
        if room is not None and room < needed:
            return f"a helper would need up to {readable(needed)}, but only {readable(room)} are free"
        return ""

    def _refuse(self, why: str) -> str:
        self._refused = why
        log.info("plans are compiled in this process from now on: %s", why)
        return why

    def _ask(
        self, compiler: PlanCompiler, size: int, candidate: Candidate, undivided: int
    ) -> Made | Failed | str:
        """The answer of the process: a plan, or the reason that there is none."""
        try:
            for _ in range(2):
                try:
                    running = self._running or self._start()
                    if running is None:
                        return self._refused
                    return running.make(compiler, size, candidate, undivided)
                except (EOFError, OSError, ValueError) as cause:  # ValueError: `exit` has closed a pipe.
                    if self._exiting:
                        raise CancelledError("the interpreter exits") from cause
                    if not self._was_idle():
                        return self._lost(cause)
            # A program that waits for all of its children takes the exit status of a crash.
            return self._lost(EOFError("two processes in a row ended"))
        except BaseException:
            # After an interrupt, the pending answer would be read as the answer to the next order.
            self.stop()
            raise

    def _start(self) -> _Running | None:
        self._running = running = _Running(_spawned())
        self.started += 1
        theirs, ours = received(running.answers), surroundings()
        if theirs != ours:
            self.stop()
            differing = [name for name in ours if theirs.get(name) != ours[name]]
            self._refuse(f"a helper process has other {', '.join(differing)} than this process")
            return None
        return running

    def _was_idle(self) -> bool:
        """End the rest of the process; True if it had ended for lack of work, so another may be started."""
        running = self._running
        self.stop()
        return running is not None and running.process.returncode == 0

    def _lost(self, cause: Exception) -> str:
        self.crashes += 1
        log.warning("the process that compiles was lost (%s), so this process compiles the plan", cause)
        if self.crashes >= _MOST_CRASHES:
            self._refuse(f"{self.crashes} helper processes were lost")
        return str(cause)


@final
class _Running:
    """A helper process and the models that were sent to it."""

    def __init__(self, process: subprocess.Popen[bytes]):
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.orders, self.answers = process.stdin, process.stdout
        self._numbers = itertools.count()
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._weights: dict[int, dict[str, np.ndarray]] = {}
        self._gone: list[int] = []

    def make(
        self, compiler: PlanCompiler, size: int, candidate: Candidate, undivided: int
    ) -> Made | Failed | str:
        """A plan, the error of its compile, or the reason that the process cannot make it.

        Raises:
            EOFError, OSError, ValueError: the process has ended.
        """
        while self._gone:
            send(self.orders, packed(("forget", self._gone.pop())))
        try:
            number = self._number_of(compiler)
        except (OSError, ValueError):
            raise
        except Exception as cause:  # For example a part of the model that pickle cannot find by its name.
            return f"the model cannot be pickled: {cause}"
        limits = {name: os.environ[name] for name in limit_variables() if name in os.environ}
        order = Order(
            number,
            size,
            compiler.weights,
            compiler.precision,
            compiler.threads,
            compiler.cores,
            candidate.name,
            undivided,
            limits,
        )
        send(self.orders, packed(("make", order)))
        answer = received(self.answers)
        return self._with_weights(number, answer) if isinstance(answer, Made) else answer

    def _with_weights(self, number: int, made: Made) -> Made:
        """`made` with the weights that came with this model's plans so far; its other plans share them."""
        known = self._weights.setdefault(number, {})
        known.update((digest, shared(digest, array)) for digest, array in made.weights.items())
        return replace(made, weights=known.copy())

    def end(self) -> None:
        """Kill the process, even at work."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.orders, self.answers):
            with contextlib.suppress(OSError, ValueError), broken_pipes_raise():
                pipe.close()

    def let_go(self) -> None:
        """Detach the pipes in a forked child without a message to the process; their handles stay open."""
        silence = os.open(os.devnull, os.O_RDWR)
        for pipe in (self.orders, self.answers):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(silence, pipe.fileno())
        os.close(silence)

    def _number_of(self, compiler: PlanCompiler) -> int:
        """The number by which the process knows a model; the first call sends the model."""
        # Constants are part of a plan, so new weights are a new model. If weights are arguments, their values
        # do not matter, and one compiler keeps its number through updates.
        model: Any = compiler if compiler.weights == "argument" else compiler.typed
        key = id(model)
        if key not in self._known:
            number = next(self._numbers)
            send(self.orders, packed(("model", number, compiler.typed)))

            def gone(_: object) -> None:
                self._known.pop(key, None)
                self._weights.pop(number, None)
                self._gone.append(number)

            self._known[key] = weakref.ref(model, gone), number
        return self._known[key][1]


def _spawned() -> subprocess.Popen[bytes]:
    """A new helper process.

    It finds the same modules and XLA flags as this process. It has no accelerator, and no terminal, because
    Ctrl-C is meant for the program.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [path for path in dict.fromkeys([*sys.path, package]) if path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_FLAGS": environment_key()["flags"],
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "memojax.plans.helper_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def wanted(compile_in: CompileIn) -> bool:
    """Whether the calling thread should ask the helper: always, never, or if it is the background worker."""
    return compile_in == "process" or (compile_in == "auto" and is_compile_worker())


helper: Helper = Helper()
"""The helper of this process."""

_parents: list[_Running] = []
"""The parent's processes in a forked child: freeing a handle could close a file that reuses its number."""

before_exit(helper.exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helper.forked)
