"""A call for the injector to interrupt, and the list of all such calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import memojax as mj

Check = Callable[[bool], None]
World = tuple[Callable[[], Any], Check]
Versions = Mapping[int, int]


@dataclass(frozen=True)
class Case:
    """`scenario` returns a call and its check.

    Lines of files that begin with `skip` are no points; the tests run at most `most` points.
    """

    scenario: Callable[[], World]
    skip: tuple[str, ...] = ()
    most: int = 300


CASES: dict[str, Case] = {}
COMPILING = (
    "lowering/",
    "ops/",
    "model/",
    "stablehlo/",
    "xla/",
    "plans/hoist",
    "plans/numpy_eval",
    "display/",
)
PLANNING = (
    "plans/compiler",
    "plans/candidates",
    "plans/packing",
    "plans/input_buffers",
    "plans/plan.py",
    "plans/dis",
)
"""Files that run while a plan is made, and hold nothing that outlives the call."""


def case(*given: Any, skip: tuple[str, ...] = (), name: str = "", most: int = 300) -> Callable[[Any], Any]:
    """Register a function that makes a scenario from `given`."""

    def register(make: Callable[..., World]) -> Callable[..., World]:
        CASES[name or make.__name__.replace("_", " ")] = Case(functools.partial(make, *given), skip, most)
        return make

    return register


@functools.cache
def policy() -> mj.MemoizingDynamicInferer:
    """out = 10 a + b, in batches of at most four; all plans are ready."""
    typed = mj.TypedModel.from_function(
        lambda _, x: {"out": 10 * x["a"] + x["b"]}, (), {"a": ((2,), np.float32), "b": ((2,), np.float32)}
    )
    return mj.MemoizingDynamicInferer(typed, range(1, 5), max_batch_size=4)
