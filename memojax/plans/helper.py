"""The process that compiles for this one: one for all inferers, started when a compile in the background
first needs it.

Compiling in another process leaves Python's lock to the loop that calls policies. The helper sends
executables as the plan cache stores them. It runs a clean `python -m`, so it never imports the user's
`__main__`. What it finds wrong with a model is raised here; whatever goes wrong with the helper itself, this
process compiles the plan.
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
from pathlib import Path
from typing import Any, Literal, final

from ..lowering.batch_axis import BatchedFunction
from ..xla.background import before_exit, is_compile_worker
from ..xla.cpu_client import cpu_device
from ..xla.memory import available_bytes, readable
from .candidates import Candidate
from .compiler import PlanCompiler
from .disk_cache import environment_key
from .helper_messages import LIMITS, Failed, Made, Order, packed, received, send, surroundings

CompileIn = Literal["auto", "process", "thread"]

log: logging.Logger = logging.getLogger("memojax")

_ROOM = 1 << 30
"""Bytes that must be free before a helper is started, beside its copies of the weights: it takes a third of
that."""

_WEIGHT_COPIES = 6
_MOST_CRASHES = 3


@final
class Helper:
    """The helper of this process; threads take turns with it.

    Attributes:
        crashes: how many processes ended without being told to; after a few of them, no other is started.
        started: how many processes were started.
        plans: how many plans were made there.
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
        """The id of the process, if one runs."""
        running = self._running
        return None if running is None or running.process.poll() is not None else running.process.pid

    def make(self, compiler: PlanCompiler, size: int, candidate: Candidate) -> Made | None:
        """A plan of `compiler`'s model, made by the helper; None where this process has to make it.

        Raises:
            CancelledError: the interpreter exits.
            LoweringError, CompileError: the model cannot be compiled at this size, here as little as there.
        """
        why = self._refused or self._why_not(compiler)
        if not why:
            with self._lock:
                answer = self._ask(compiler, size, candidate)
            if isinstance(answer, Made):
                self.plans += 1
                return answer
            if isinstance(answer, Failed):
                raise answer.error
            why = answer
        log.debug("batch size %d is compiled in this process: %s", size, why)
        return None

    def stop(self) -> None:
        """End the process, if one runs; the next plan starts another."""
        running, self._running = self._running, None
        if running is not None:
            running.end()

    def exit(self) -> None:
        """End the process for good. It takes no lock: whoever holds that waits for the process."""
        self._exiting = True
        self.stop()

    def forked(self) -> None:
        """Forget the parent's process, in a forked child, and keep nothing open that it waits for."""
        if self._running is not None:
            self._running.let_go()
            _parents.append(self._running)
        self.__init__()

    def _why_not(self, compiler: PlanCompiler) -> str:
        """Why the helper is not asked for this plan; empty if it is."""
        if compiler.device != cpu_device() or not compiler.host:
            return "a helper makes plans of NumPy batches for the CPU only"
        if not isinstance(compiler.typed.fn, BatchedFunction):
            return "a helper makes plans of ONNX files only"
        if self._running is not None:
            return ""
        if os.name != "posix" or not sys.executable:
            return self._refuse("there is no Python that could be started here")
        processes = sys.modules.get("multiprocessing.process")
        if processes is not None and processes.current_process().daemon:
            return self._refuse("this process is a daemon of multiprocessing, which may have no children")
        room, needed = available_bytes(cpu_device()), _ROOM + _WEIGHT_COPIES * compiler.weight_bytes
        if room is not None and room < needed:
            return f"a helper would need up to {readable(needed)}, and {readable(room)} are free"
        return ""

    def _refuse(self, why: str) -> str:
        self._refused = why
        log.info("plans are compiled in this process from now on: %s", why)
        return why

    def _ask(self, compiler: PlanCompiler, size: int, candidate: Candidate) -> Made | Failed | str:
        """The answer of the process: a plan, or why there is none."""
        try:
            for _ in range(2):
                try:
                    running = self._running or self._start()
                    if running is None:
                        return self._refused
                    return running.make(compiler, size, candidate)
                except (EOFError, OSError, ValueError) as cause:  # ValueError: a pipe that `exit` has closed
                    if self._exiting:
                        raise CancelledError("the interpreter exits") from cause
                    if not self._was_idle():
                        return self._lost(cause)
            return "helpers do not stay"
        except BaseException:
            # An interrupt between order and answer: the next answer would be taken for that of another order.
            self.stop()
            raise

    def _start(self) -> _Running | None:
        self._running = running = _Running(_spawned())
        self.started += 1
        theirs, ours = received(running.answers), surroundings()
        if theirs != ours:
            self.stop()
            differing = [name for name in ours if theirs.get(name) != ours[name]]
            self._refuse(f"a helper process finds other {', '.join(differing)} than this process")
            return None
        return running

    def _was_idle(self) -> bool:
        """End what is left of the process; whether it had ended for want of work, so that another one may be
        asked."""
        running = self._running
        self.stop()
        return running is not None and running.process.returncode == 0

    def _lost(self, cause: Exception) -> str:
        self.crashes += 1
        log.warning("the process that compiles was lost (%s): this process compiles the plan", cause)
        if self.crashes >= _MOST_CRASHES:
            self._refuse(f"{self.crashes} helper processes were lost")
        return str(cause)


@final
class _Running:
    """A helper process, and the models that it knows."""

    def __init__(self, process: subprocess.Popen[bytes]):
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.orders, self.answers = process.stdin, process.stdout
        self._numbers = itertools.count()
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._gone: list[int] = []

    def make(self, compiler: PlanCompiler, size: int, candidate: Candidate) -> Made | Failed | str:
        """A plan, or why the process cannot make it.

        Raises:
            EOFError, OSError, ValueError: the process has ended.
        """
        while self._gone:
            send(self.orders, packed(("forget", self._gone.pop())))
        try:
            number = self._number_of(compiler)
        except (OSError, ValueError):
            raise
        except Exception as cause:  # a part of the model has no name that another process could find it by
            return f"the model cannot be sent: {cause}"
        limits = {name: value for name, value in os.environ.items() if name.startswith(LIMITS)}
        order = Order(number, size, compiler.weights, compiler.precision, candidate.name, limits)
        send(self.orders, packed(("make", order)))
        return received(self.answers)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.orders, self.answers):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    def let_go(self) -> None:
        """Close the pipes in a forked child, without a word to the process; the numbers of their handles stay
        taken."""
        silence = os.open(os.devnull, os.O_RDWR)
        for pipe in (self.orders, self.answers):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(silence, pipe.fileno())
        os.close(silence)

    def _number_of(self, compiler: PlanCompiler) -> int:
        """What the process knows a model by, which is sent once."""
        # Constants are part of a plan. Where weights are arguments their values do not matter, and a compiler
        # takes new ones.
        model: Any = compiler if compiler.weights == "argument" else compiler.typed
        key = id(model)
        if key not in self._known:
            number = next(self._numbers)
            send(self.orders, packed(("model", number, compiler.typed)))

            def gone(_: object) -> None:
                self._known.pop(key, None)
                self._gone.append(number)

            self._known[key] = weakref.ref(model, gone), number
        return self._known[key][1]


def _spawned() -> subprocess.Popen[bytes]:
    """A new helper process.

    It finds the modules that this process finds, XLA's flags as this process read them, no accelerator, and
    no terminal: Ctrl-C there is meant for the program.
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
    """Whether the calling thread asks the helper: always, never, or if it is the background worker."""
    return compile_in == "process" or (compile_in == "auto" and is_compile_worker())


helper: Helper = Helper()
"""The helper of this process."""

_parents: list[_Running] = []
"""Handles of a parent's process, which are never freed: that would close what took their numbers."""

before_exit(helper.exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helper.forked)
