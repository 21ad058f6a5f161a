"""One compiled batch size: rows in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..kernels.direct import Direct
from .dispatch import SAMPLE_EVERY, Answer, Meter, Rows, Run
from .hoist import Residual
from .row_assembly import RowAssembly

LINKED_NOW = 1 << 20
"""Input bytes up to which a new plan is called once, which saves its first user 1.5 ms for linking."""

_DIVIDED = '"outer_dimension_partitions":["'


@dataclass(frozen=True)
class PlanInfo:
    """Facts about a plan and its use.

    Attributes:
        size: batch size.
        compile_ms: milliseconds to trace, lower and compile.
        calls: number of calls.
        median_us: median microseconds of the last sampled calls; None before the first sample.
        bytes: memory that XLA reports for code, temporaries and outputs; None if it reports none.
        platform: "cpu", "gpu", ...
        candidate: name of the candidate, such as "kernels"; "default" is XLA's own code as it comes.
        dims: sizes of free dimensions and values of static inputs of this plan.
        mixing: outputs in which rows influence each other, so the plan runs only whole batches.
        arrays: owner of the batches that it runs: "NumPy", or the device of `jax.Array`s, such as "gpu:0".
        gain: time of the default divided by the candidate's; 1.0 for the default, None before tuning.
    """

    size: int
    compile_ms: float
    calls: int
    median_us: float | None
    bytes: int | None
    platform: str
    candidate: str = "default"
    gain: float | None = None
    dims: Mapping[str, Any] = field(default_factory=dict)
    mixing: tuple[str, ...] = ()
    arrays: str = "NumPy"


@dataclass(frozen=True)
class Compiled:
    """A size as XLA compiled it.

    Attributes:
        executable: JAX's compiled function.
        program: the same as one program of the kernels, which NumPy calls run without XLA's client; None
            where a part of the size is XLA's own code.
        beside: the executable again, on a second client, if both run half of the rows each; otherwise None.
    """

    executable: Any
    program: Direct | None = None
    beside: Any = None

    @cached_property
    def divided(self) -> bool:
        """Whether XLA divides a step of the executable among cores, or may do so."""
        try:
            return _DIVIDED in self.executable.as_text()
        except Exception:
            return True


@dataclass(frozen=True)
class Executable:
    """An executable of XLA for one size, with the closures that call it.

    Attributes:
        made: XLA's executable, and the program that stands for it.
        run: `run(rows)` takes one array per input (and the key of a random model), and gives one array per
            computed output.
        answer: `answer({name: array}, draw)` gives outputs by name, or None if an input has another type,
            shape or dtype.
        candidate: name of the candidate.
        stored: key of the disk entry that it was loaded from; None if it was compiled here.
    """

    made: Compiled
    run: Run
    answer: Answer
    candidate: str = "default"
    stored: Mapping[str, Any] | None = None

    @property
    def compiled(self) -> Any:
        """JAX's compiled function."""
        return self.made.executable

    def bytes(self) -> int | None:
        """Bytes of code, temporaries and outputs; None if XLA does not report them."""
        try:
            memory = self.compiled.memory_analysis()
            code, temporaries = memory.generated_code_size_in_bytes, memory.temp_size_in_bytes
            one = int(code + temporaries + memory.output_size_in_bytes)
            return one if self.made.beside is None else 2 * one
        except Exception:
            return None


class Plan:
    """An executable for one batch size; call it with one `[n, *element_shape]` array per input.

    A host plan takes and returns NumPy arrays, a device plan `jax.Array`s. Other threads may call the plan
    while `executable` is replaced.

    Attributes:
        answer: gives outputs by name for inputs by name; None, before anything runs, if an input is missing
            or is not a NumPy array of this plan's shape and dtype.
        traced: the trace, for autotuning; None if it was not kept.
        assembly: makes the rows of this plan from others on its device; None for a plan of NumPy rows.
    """

    __slots__ = (
        "__weakref__",
        "_executable",
        "_run",
        "_tick",
        "answer",
        "assembly",
        "compile_ms",
        "gain",
        "meter",
        "platform",
        "random",
        "size",
        "traced",
    )

    def __init__(
        self,
        size: int,
        executable: Executable,
        meter: Meter,
        platform: str,
        compile_ms: float,
        random: bool = False,
    ):
        self.size: int = size
        self.random: bool = random
        self.platform: str = platform
        self.compile_ms: float = compile_ms
        self.gain: float | None = None
        self.traced: Residual | None = None
        self.assembly: RowAssembly | None = None
        self.executable = executable
        self.meter: Meter = meter
        self._tick = meter.tick

    @property
    def executable(self) -> Executable:
        """The executable that runs."""
        return self._executable

    @executable.setter
    def executable(self, executable: Executable) -> None:
        self._executable = executable
        self._run = executable.run
        self.answer: Answer = executable.answer

    def __call__(self, rows: Rows, key: np.ndarray | None = None) -> list[Any]:
        """One array per computed output, in order; `key` is a uint32[2] for a random model.

        NumPy results are read-only.
        """
        if key is not None:
            rows = [*rows, key]
        return self._run(rows) if self._tick() % SAMPLE_EVERY else self.meter.timed(self._run, rows)

    @property
    def calls(self) -> int:
        """Number of calls."""
        return self.meter.calls

    def info(self) -> PlanInfo:
        """Size, costs and use so far."""
        # The first call runs with cold caches, so it is left out: among few samples it could be the median.
        seconds = list(self.meter.seconds)
        times = sorted(seconds[1:] or seconds)
        median = times[len(times) // 2] * 1e6 if times else None
        executable = self._executable
        return PlanInfo(
            self.size,
            self.compile_ms,
            self.calls,
            median,
            executable.bytes(),
            self.platform,
            executable.candidate,
            self.gain,
        )
