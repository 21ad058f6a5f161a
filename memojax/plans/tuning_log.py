"""The log of autotuning: a JSON file of chosen candidates beside the stored plans, shared by processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cache_key import open_plain
from .disk_cache import is_of, write_whole

log: logging.Logger = logging.getLogger("memojax")

NAME = "autotune.json"
_MOST_BYTES = 4 << 20
"""Upper limit of the file's size; a longer file is not memojax's."""

_MOST_ENTRIES = 10_000


class Choices:
    """Candidates' names and gains by key. A damaged or foreign file is ignored."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Use `autotune.json` in `folder`."""
        self.path: Path = Path(folder).expanduser() / NAME
        self._lock = threading.Lock()
        self._writable = True

    def get(self, key: Mapping[str, Any]) -> tuple[str, float] | None:
        """The candidate and gain stored for `key`, or None."""
        entry: Any = self._read().get(_digest(key))
        with contextlib.suppress(TypeError, KeyError, ValueError, OverflowError):
            gain = float(entry["gain"])
            if math.isfinite(gain):
                return str(entry["candidate"]), gain
        return None

    def put(self, key: Mapping[str, Any], candidate: str, gain: float) -> None:
        """Store a choice; readers see the old file or the new one."""
        if not self._writable:
            return
        with self._lock:
            entries = self._read()
            label = f"{key.get('name', 'model')} x {key.get('size', '?')}"
            entries[_digest(key)] = {"candidate": candidate, "gain": round(gain, 3), "for": label}
            for oldest in list(entries)[:-_MOST_ENTRIES]:
                del entries[oldest]
            try:
                self._write(entries)
            except (OSError, RecursionError) as cause:
                self._writable = False
                log.warning(
                    "autotuning cannot write its choices to %s (%s), so other processes tune again",
                    self.path,
                    getattr(cause, "strerror", None) or cause,
                )

    def labels(self, model: str | None = None) -> list[str]:
        """Labels such as "policy.onnx x 8", of all choices or of `model`'s (a file name, suffix optional)."""
        return [
            entry["for"]
            for entry in self._read().values()
            if _is_choice(entry) and is_of(entry["for"], model)
        ]

    def clear(self, model: str | None = None) -> int:
        """Forget all choices, or those of `model`, and return their number; foreign content stays.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            entries = self._read()
            left = _without(entries, model)
            if len(left) < len(entries):
                self._write(left)
            return len(entries) - len(left)

    def _write(self, entries: Mapping[str, Any]) -> None:
        if not entries:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.path, [json.dumps(entries, indent=1).encode()])

    def _read(self) -> dict[str, Any]:
        # RecursionError: deeply nested brackets.
        with contextlib.suppress(OSError, ValueError, RecursionError):
            with open(self.path, "rb", opener=open_plain) as file:
                text = file.read(_MOST_BYTES + 1)
            entries = json.loads(text) if len(text) <= _MOST_BYTES else None
            if isinstance(entries, dict):
                return entries
        return {}


def _without(entries: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """`entries` without the choices for `model`, or without any choice if `model` is None."""
    return {
        key: entry
        for key, entry in entries.items()
        if not _is_choice(entry) or not is_of(entry["for"], model)
    }


def _is_choice(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("for"), str) and "candidate" in entry


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
