"""How closely two runtimes can agree on an output: the narrowest floats on the way to it decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..model.graph import Graph, Node
from ..model.tensor import dtype_of

RTOL, ATOL = 1e-3, 1e-5

_STEPS = {np.dtype(np.float16): 2.0**-10, np.dtype(ml_dtypes.bfloat16): 2.0**-7}
"""Distance from 1 to the next number. Runtimes round to it at other places, between other operators."""


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that count as the same; `floats` names the narrow floats that decide them."""

    rtol: float = RTOL
    atol: float = ATOL
    floats: str = ""

    def close(self, mine: np.ndarray, theirs: np.ndarray) -> bool:
        """Whether arrays of one shape are the same; what is no number must be equal."""
        if not (is_number(mine.dtype) and is_number(theirs.dtype)):
            return bool((mine == theirs).all())
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        return bool(np.allclose(a, b, rtol=self.rtol, atol=self.atol, equal_nan=True))


def is_number(dtype: np.dtype) -> bool:
    """Whether values of `dtype` may differ by rounding."""
    return dtype.kind in "fiub" or dtype in _STEPS


def tolerances(graph: Graph) -> dict[str, Tolerance]:
    """The tolerance of each output of `graph`, by name.

    Float16 and bfloat16 allow 8 steps of the number, and 4 steps of 1 near zero. An output that no narrow
    float reaches has the usual tolerance.
    """
    widest: dict[str, float] = {value.name: _step(value.dtype) for value in graph.inputs}
    widest |= {name: _step(value.dtype) for name, value in graph.initializers.items()}
    for node in graph.nodes:
        step = max([_own(node), *(widest.get(name, 0.0) for name in node.reads())])
        widest |= dict.fromkeys(node.outputs, step)
    return {value.name: _of(widest.get(value.name, 0.0)) for value in graph.outputs}


def _of(step: float) -> Tolerance:
    names = [dtype.name for dtype, one in _STEPS.items() if one == step]
    return Tolerance(max(RTOL, 8 * step), max(ATOL, 4 * step), names[0]) if names else Tolerance()


def _own(node: Node) -> float:
    """The step of the numbers that the node makes by itself: constants, casts, and its subgraphs."""
    steps = [_of_attribute(node.attributes)]
    for body in node.bodies:
        steps += [_step(value.dtype) for value in body.initializers.values()]
        steps += [_of_attribute(inner.attributes) for inner in body.all_nodes()]
        steps += _of_bodies(inner.bodies for inner in body.all_nodes())
    return max(steps)


def _of_bodies(bodies: Iterable[tuple[Graph, ...]]) -> list[float]:
    return [_step(v.dtype) for some in bodies for body in some for v in body.initializers.values()]


def _of_attribute(attributes: Mapping[str, Any]) -> float:
    cast, value = attributes.get("to", attributes.get("dtype")), attributes.get("value")
    found = _step(value.dtype) if isinstance(value, np.ndarray) else 0.0
    return max(found, _step(dtype_of(cast))) if isinstance(cast, int) and cast else found


def _step(dtype: np.dtype | None) -> float:
    return _STEPS.get(dtype, 0.0) if dtype is not None else 0.0
