"""What an engine holds for `jax.Array`s on one device."""

from __future__ import annotations

from typing import NamedTuple

from .cache import PlanCache
from .compiler import PlanCompiler
from .row_assembly import RowJoin


class Elsewhere(NamedTuple):
    """The compiler of plans for a device, the plans, and what puts their results together."""

    compiler: PlanCompiler
    cache: PlanCache
    join: RowJoin
