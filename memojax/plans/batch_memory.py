"""Whether a batch size fits in memory, before anything of that size is compiled."""

from __future__ import annotations

from ..errors import BatchMemoryError
from ..xla.memory import available_bytes, bytes_per_row, readable
from .cache import PlanCache
from .compiler import PlanCompiler

_SURELY_FITS = 64
"""Assumed upper bound of temporaries, as a multiple of input and output bytes."""

_PROBE = 8
"""Rows of the plan that is compiled to measure temporaries."""


def check_fits(compiler: PlanCompiler, cache: PlanCache, size: int) -> None:
    """Check that `size` rows fit in memory, judging by the next smaller plan or by a small new one.

    Raises:
        BatchMemoryError: the rows do not fit.
    """
    room = available_bytes(compiler.device)
    needed = size * compiler.row_bytes
    # Most sizes are far from the limit, so they skip the closer look below.
    if room is None or needed * _SURELY_FITS < room:
        return
    known = cache.next_smaller(size)
    plan = cache.peek(known) if known else None
    if plan is None and needed <= room:
        # Temporaries may be many times the inputs, so a small plan is compiled to measure them.
        plan = compiler.lower(_PROBE).compile() if size > _PROBE else None
    if plan is not None:
        needed = max(
            needed, size * (compiler.input_bytes + bytes_per_row(plan.executable.compiled, plan.size))
        )
    if needed > room:
        by = f"estimated from its plan for {plan.size}" if plan else "for inputs and outputs alone"
        raise BatchMemoryError(
            f"batch size {size} would need about {readable(needed)} ({by}), but {compiler.device} has "
            f"{readable(room)} left: use fewer rows, or max_batch_size=, which splits larger batches"
        )
