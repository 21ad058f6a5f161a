"""Trace without JAX's inner jits, but keep loops and branches as XLA loops and branches.

`jax.numpy` jits nearly every function. JAX's global caches would keep the traces of these jits for good, half
a megabyte for each batch size of a small policy. Tracing would also take half as long again.
`jax.disable_jit` drops the inner jits, but also turns loops into Python loops. So operators use `scan`,
`cond`, `while_loop` and `fori_loop` from this file.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
from jax import lax

Function = TypeVar("Function", bound=Callable[..., Any])

_inlining: ContextVar[bool] = ContextVar("memojax_inlining", default=False)


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Trace the functions that JAX would jit as part of the function around them."""
    token = _inlining.set(True)
    try:
        with jax.disable_jit():
            yield
    finally:
        _inlining.reset(token)


def is_inlining() -> bool:
    """Whether the current trace is for an executable of memojax, and not for a JAX transformation."""
    return _inlining.get()


def _rolled(control_flow: Function) -> Function:
    @functools.wraps(control_flow)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _inlining.get():
            return control_flow(*args, **kwargs)
        with jax.disable_jit(False):
            return control_flow(*map(_inlined_body, args), **kwargs)

    return call  # pyright: ignore[reportReturnType]


def _inlined_body(given: Any) -> Any:
    if not callable(given):
        return given

    def body(*args: Any) -> Any:
        with jax.disable_jit():
            return given(*args)

    return body


scan = _rolled(lax.scan)
cond = _rolled(lax.cond)
while_loop = _rolled(lax.while_loop)
fori_loop = _rolled(lax.fori_loop)
