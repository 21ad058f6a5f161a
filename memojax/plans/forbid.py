"""Forbid compiles for a while: the proof that a warmed-up loop never stalls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from ..errors import CompileForbiddenError

_forbidden: ContextVar[bool] = ContextVar("memojax_forbid_compile", default=False)


@contextlib.contextmanager
def forbid_compile() -> Iterator[None]:
    """Within the block, a call that would have to compile a plan raises instead; background compiles go on.

    It holds for the current thread (or task) only.

    >>> import memojax
    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1])
    >>> with memojax.forbid_compile():
    ...     action = policy.infer_single({"obs": [1, 0, 1, 0, 0, 0]})

    Raises:
        CompileForbiddenError: (inside) a batch size has no plan; the message names it and the nearest ones that do.
    """
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def check_allowed(size: int, ready: list[int]) -> None:
    """Raise if compiles are forbidden here.

    Raises:
        CompileForbiddenError: they are.
    """
    if _forbidden.get():
        raise CompileForbiddenError(size, ready, "within memojax.forbid_compile()")
