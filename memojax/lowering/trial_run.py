"""Runs a function of rows a few times, compiled quickly, to learn something about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..model.signature import TensorSpec
from ..xla.cpu_client import cpu_device
from ..xla.fork import check_not_forked
from ..xla.limits import ELEMENTS, for_one_executable
from ..xla.memory import check_memory
from ..xla.options import compiled
from ..xla.pieces import in_pieces
from ..xla.settings import own_settings

_KEY = np.zeros(2, np.uint32)
_FAST_COMPILE: Any = {"xla_backend_optimization_level": 0}


def trial_run(
    fn: Callable[[Any, Sequence[Any], Any], Sequence[Any]],
    params: Any,
    inputs: Sequence[TensorSpec],
    n: int,
    *,
    random: bool,
    limited: bool,
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """`fn` for `n` rows of `inputs` on the CPU: XLA optimises little, and every call draws alike.

    Raises:
        LimitError: a file, which is `limited`, needs too much memory at this size.
    """
    check_not_forked()
    device = cpu_device()

    def model(params: Any, rows: Any, key: Any) -> Any:
        return fn(params, rows, jax.random.wrap_key_data(key, impl="threefry2x32") if random else None)

    place = jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(spec.rows(n), spec.dtype) for spec in inputs]
    for spec, given in zip(inputs, shapes, strict=True):
        ELEMENTS.check(math.prod(given.shape), f"trying out {n} rows of input {spec.name!r}")
    with own_settings(), for_one_executable():
        lowered = jax.jit(in_pieces(model), in_shardings=place, out_shardings=place).lower(
            params, shapes, _KEY
        )
        executable = compiled(lowered, device, _FAST_COMPILE)
        if limited:
            check_memory(executable, n)

    def run(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        with own_settings():
            return [np.asarray(value) for value in executable(params, rows, _KEY)]

    return run
