"""Messages between a process and its compile helper, over two pipes that only these two hold."""

from __future__ import annotations

import contextlib
import pickle
import signal
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ..errors import CompileError, LoweringError
from ..kernels.library import kernels_key
from ..ops.registry import definitions
from .compiler import Weights
from .disk_cache import environment_key

LIMITS = "MEMOJAX_MAX_"
"""Prefix of the environment variables that limit a trace."""

_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Order:
    """One plan to compile.

    Attributes:
        number: names a model that was sent before.
        cores: number of cores that run the plan.
        undivided: a size whose plan XLA did not divide among cores, so it divides no smaller one; 0 if none
            is known.
    """

    number: int
    size: int
    weights: Weights
    precision: str | None
    threads: int | None
    cores: int
    candidate: str
    undivided: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Made:
    """A compiled plan.

    Attributes:
        payload: the executable, as the plan cache stores it on disk.
        weights: its large weights by digest; on the way, only the ones that were not sent before.
        candidate: the candidate that it became.
        ms: milliseconds to trace, lower and compile.
        origin: origin of the weight arguments (`Residual.origin`); None if weights are constants.
    """

    payload: bytes
    weights: Mapping[str, np.ndarray]
    candidate: str
    ms: float
    origin: str | None


@dataclass(frozen=True)
class Failed:
    """The answer for a plan that the model does not allow, with the error of its compile."""

    error: CompileError | LoweringError


def surroundings() -> dict[str, Any]:
    """Facts that must be equal in both processes, or the plan of one may be wrong in the other."""
    operators = sorted(
        (d.domain, d.op_type, d.since, d.until or 0, *_name_of(d.fn), sorted(d.static), sorted(d.host))
        for d in definitions()
    )
    return {
        "machine": environment_key(),
        "kernels": kernels_key(),
        "operators": zlib.crc32(repr(operators).encode()),
    }


def _name_of(function: Any) -> tuple[str, str]:
    return str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", ""))


def packed(message: Any) -> list[Any]:
    """A message as the parts for `send`; arrays are not copied."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    return [body, *(array.raw() for array in arrays)]


def send(pipe: IO[bytes], parts: Sequence[Any]) -> None:
    """Send a packed message.

    Raises:
        OSError: the other side is gone.
    """
    with broken_pipes_raise():
        pipe.write(_COUNT.pack(len(parts)))
        for part in parts:
            pipe.write(_LENGTH.pack(memoryview(part).nbytes))
            pipe.write(part)
        pipe.flush()


@contextlib.contextmanager
def broken_pipes_raise() -> Iterator[None]:
    """Within the block, a pipe without a reader raises, as Python has it.

    Command line programs often give SIGPIPE its default action back, which would end them here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            if signal.SIGPIPE in signal.sigpending():
                signal.sigwait({signal.SIGPIPE})
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def received(pipe: IO[bytes]) -> Any:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    (count,) = _COUNT.unpack(_exactly(pipe, _COUNT.size))
    body, *arrays = [_exactly(pipe, _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0]) for _ in range(count)]
    return pickle.loads(body, buffers=arrays)


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    found = pipe.read(count)
    if len(found) < count:
        raise EOFError("the other side is gone")
    return found
