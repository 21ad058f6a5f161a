"""Forbid compiles in a block, to prove that a warmed-up loop never stalls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from ..errors import CompileForbiddenError

_forbidden: ContextVar[bool] = ContextVar("memojax_forbid_compile", default=False)


@contextlib.contextmanager
def forbid_compile() -> Iterator[None]:
    """Make calls inside the block raise instead of compiling a plan; background compiles continue.

    The block concerns the current thread (or task) only.

    >>> import memojax
    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
    >>> with memojax.forbid_compile():
    ...     action = policy.infer_single({"obs": [1, 0, 1, 0, 0, 0]})

    Raises:
        CompileForbiddenError: a call inside has no plan for its batch size; the message names the size and
            the nearest plans.
    """
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def check_allowed(size: int, ready: list[int]) -> None:
    """Check that this thread may compile.

    Raises:
        CompileForbiddenError: the caller is inside `forbid_compile`.
    """
    if _forbidden.get():
        raise CompileForbiddenError(size, ready, "within memojax.forbid_compile()")


def is_forbidden() -> bool:
    """Whether the caller is inside of `forbid_compile`."""
    return _forbidden.get()
