"""The part of an engine for `jax.Array`s on one device."""

from __future__ import annotations

from typing import NamedTuple

from .cache import PlanCache
from .compiler import PlanCompiler
from .row_assembly import RowJoin


class Elsewhere(NamedTuple):
    """The compiler of plans for a device, the plans, and the join of their results."""

    compiler: PlanCompiler
    cache: PlanCache
    join: RowJoin
