"""Large weights of stored plans: one entry for each array, which all sizes of a model share."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from .artifact import PlanArtifact
from .disk_cache import WEIGHTS, DiskCache

Store = DiskCache | PlanArtifact


def store(
    plans: Store, model: str, key: Mapping[str, Any], payload: bytes, weights: Mapping[str, np.ndarray]
) -> None:
    """Store a plan of `model` under `key`, and its large weights, by digest, if they are not there yet."""
    # The weights first, so that a reader who finds the plan finds them, too.
    for digest, array in weights.items():
        place = _key(model, digest)
        if not plans.touch(place):
            plans.put(place, pickle.dumps(array, protocol=5))
    plans.put(key, payload)


def stored_weights(plans: Store, model: str, digest: str, held: np.ndarray | None) -> np.ndarray:
    """Large weights of a stored plan; `held` are the same if this process has them.

    Raises:
        LookupError: their entry is gone.
    """
    place = _key(model, digest)
    if held is not None:
        plans.touch(place)  # a use of the plan is a use of its weights
        return held
    payload = plans.get(place)
    if payload is None:
        raise LookupError("its weights were removed")
    return pickle.loads(payload)


def _key(model: str, digest: str) -> dict[str, Any]:
    return {"name": model, "size": WEIGHTS, "digest": digest}
