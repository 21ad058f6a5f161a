"""`checked=True`: an index out of range raises an error with node, index and agent, instead of giving NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..errors import IndexRangeError
from ..model.graph import Graph
from ..ops.inline import inlined
from ..xla.cpu_client import cpu_device
from ..xla.fork import check_not_forked
from ..xla.limits import for_one_executable
from ..xla.options import compiled
from ..xla.pieces import in_pieces
from ..xla.settings import own_settings
from .batch_axis import BatchedFunction
from .interpreter import IndexChecks


def check_indices(graph: Graph, checks: IndexChecks, agent: int | None = None) -> None:
    """Check that no index is out of range; `checks` come from a `GraphFunction`, as NumPy arrays.

    Raises:
        IndexRangeError: an index is out of range.
    """
    for node in graph.nodes if checks else ():
        indices, outside = checks.get(node.outputs[0], (None, False))
        places = np.argwhere(outside)
        if len(places):
            place = tuple(map(int, places[0]))
            raise IndexRangeError(
                f"node {node.name!r} ({node.op_type})", int(np.asarray(indices)[place]), place, agent
            )


class RowChecks:
    """Checks the indices that a model computes, one row after the other; compiled once, for one row."""

    def __init__(self, rows: BatchedFunction):
        """Checks for the function `rows`; nothing is traced yet."""
        self._rows = rows
        self._run: Any = None
        self._names: list[str] = []

    def __call__(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        agents: Sequence[int] | None = None,
        key: np.ndarray | None = None,
    ) -> None:
        """Check every row of a call.

        Args:
            params: the weights.
            rows: `[n, *element_shape]` for each input, in order.
            agents: the agent of each row; 0, 1, ... by default.
            key: data of the key that the call draws from, uint32[2]; for a model with random operators.

        Raises:
            IndexRangeError: an index is out of range; it names the first such agent.
            LoweringError: the function of a single run cannot be traced.
        """
        check_not_forked()
        count = len(rows[0]) if rows else 0
        key = np.zeros(2, np.uint32) if key is None else key
        with own_settings():
            for row in range(count):
                given = [np.asarray(values[row]) for values in rows]
                if self._run is None:
                    self._run = self._compile(params, given)
                if not self._names:
                    return
                found = self._run(params, given, key)
                checks = dict(zip(self._names, jax.device_get(found), strict=True))
                check_indices(self._rows.function.graph, checks, row if agents is None else agents[row])

    def _compile(self, params: Any, row: Sequence[np.ndarray]) -> Any:
        rows, names = self._rows, self._names

        def run(params: Any, row: Sequence[Any], key: Any) -> list[Any]:
            shapes = rows.rule.inputs
            inputs: dict[str, Any] = dict(rows.constants)
            for name, value in zip(rows.file_names[0], row, strict=True):
                inputs[name] = value.reshape(shapes[name][1])
            checks: IndexChecks = {}
            random = jax.random.wrap_key_data(key, impl="threefry2x32") if rows.function.random else None
            with inlined(), for_one_executable():
                rows.function(params, inputs, random, checks=checks)
            names[:] = checks
            return list(checks.values())

        place = jax.sharding.SingleDeviceSharding(cpu_device())
        lowered = jax.jit(in_pieces(run), in_shardings=place, out_shardings=place).lower(
            params, row, np.zeros(2, np.uint32)
        )
        return compiled(lowered, cpu_device())
