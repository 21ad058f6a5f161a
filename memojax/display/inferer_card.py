"""The card of an inferer that runs a `TypedModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from ..kernels import available, why_not
from ..lowering.batch_axis import BatchedFunction
from ..lowering.typed_model import TypedModel
from ..plans.cache import CacheInfo
from ..plans.plan import Plan
from .card import Card, busiest


def model_card(
    kind: str,
    typed: TypedModel,
    *,
    device: str,
    options: Mapping[str, Any],
    cache: CacheInfo,
    plans: Sequence[tuple[Plan, str]],
    mixing: Sequence[str],
    why: str = "",
) -> Card:
    """The card of an inferer of class `kind` for `typed`.

    Args:
        kind: class of the inferer.
        typed: its model.
        device: the device on which it runs NumPy batches.
        why: the reason where `device="auto"` chose it.
        options: arguments of its constructor.
        cache: counts of hits and misses so far.
        plans: pairs of a plan and the kind of batches that it runs.
        mixing: outputs in which rows are known to influence each other; empty if they were not probed.
    """
    leaves = jax.tree.leaves(typed.params)
    weights = sum(int(np.size(leaf)) for leaf in leaves), sum(int(leaf.nbytes) for leaf in leaves)
    facts = [
        ("batch", typed.rule),
        ("device", f"{device} (auto: {why})" if why else device),
        *([("kernels", available() or f"XLA's own ({why_not()})")] if device == "cpu" else []),
        ("weights", f"{weights[0]:,} numbers, {weights[1]:,} bytes"),
        *([("options", given)] if (given := _options(options)) else []),
        ("calls", _calls(cache)),
    ]
    rows, hidden = busiest(plans)
    name = f" of {PurePath(typed.name).name}" if typed.name else ""
    return Card(f"{kind}{name}", facts, typed.api, rows, hidden, _warnings(typed, cache, mixing))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)


def _calls(cache: CacheInfo) -> str:
    parts = [f"{cache.hits:,} found their plan", f"{cache.misses:,} waited for it to be compiled"]
    if cache.padded_rows:
        parts.append(f"{cache.padded_rows:,} rows of padding")
    return ", ".join(parts)


def _warnings(typed: TypedModel, cache: CacheInfo, mixing: Sequence[str]) -> list[str]:
    found = []
    if mixing:
        found.append(
            f"rows influence each other (output {', '.join(mixing)}): batches run at their exact size only"
        )
    wide = [spec.name for spec in (*typed.api.inputs, *typed.api.outputs) if spec.dtype in _WIDE]
    if wide:
        found.append(
            f"64-bit numbers in {', '.join(wide)}: they stay 64 bits wide, even if jax_enable_x64 is off"
        )
    for name, labels in typed.fn.function.labels.items() if isinstance(typed.fn, BatchedFunction) else ():
        shown = ", ".join(map(repr, labels[:8])) + (", ..." if len(labels) > 8 else "")
        found.append(f"output {name} has positions in the labels {shown}; memojax.run returns the labels")
    if typed.random:
        found.append(
            "the model draws random numbers: two calls differ, and a new inferer with the same seed repeats "
            "them"
        )
    if cache.evictions:
        found.append(
            f"{cache.evictions:,} plans were dropped (maxsize={cache.maxsize}): a size that returns compiles "
            "again"
        )
    return found + list(typed.model.graph.notes if typed.model else ())


_WIDE = frozenset(map(np.dtype, ("int64", "uint64", "float64", "complex128")))
