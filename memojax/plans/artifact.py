"""Compiled plans as a value: bytes in memory that travel with a policy to other processes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, final

from .disk_cache import WEIGHTS


@final
class PlanArtifact:
    """Plans by key, in memory. Pass it as `cache_dir=`; it pickles together with the policy.

    An entry is machine code and a pickle, as in the cache folder, but without a signature. Anyone who can
    change these bytes can also change the other pickles that your processes exchange. Take such an object
    from your own processes only. A plan for another CPU, JAX version or kernel build has another key, so it
    is ignored and compiled again.

    >>> import pickle
    >>> policy = memojax.load("acrobot_ppo", preload=[4], cache_dir=memojax.PlanArtifact())
    >>> copy = pickle.loads(pickle.dumps(policy))
    >>> loaded = copy.preload([4])
    >>> copy.cache_info().disk_hits
    1
    """

    def __init__(self) -> None:
        """Start without plans; each plan that a policy with this artifact compiles is added."""
        self._entries: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: Mapping[str, Any]) -> bytes | None:
        """The payload stored for `key`, or None."""
        return self._entries.get(_name(key))

    def put(self, key: Mapping[str, Any], payload: bytes) -> None:
        """Store `payload`."""
        with self._lock:
            self._entries[_name(key)] = payload

    def touch(self, key: Mapping[str, Any]) -> bool:
        """Whether there is an entry for `key`."""
        return _name(key) in self._entries

    def forget(self, key: Mapping[str, Any]) -> None:
        """Remove the entry for `key`, if it exists."""
        with self._lock:
            self._entries.pop(_name(key), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(map(len, self._entries.values()))

    def __len__(self) -> int:
        """Number of plans."""
        return sum(not name.startswith(WEIGHTS) for name in self._entries)

    def __bool__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._entries)

    def __setstate__(self, entries: dict[str, bytes]) -> None:
        self.__init__()
        self._entries.update(entries)

    def __repr__(self) -> str:
        return f"PlanArtifact({len(self)} plans, {self.nbytes / 1e6:.1f} MB)"


def _name(key: Mapping[str, Any]) -> str:
    kind = WEIGHTS if key.get("size") == WEIGHTS else ""
    return kind + hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
