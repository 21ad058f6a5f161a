"""What autotuning chose, remembered in a JSON file that several processes may share; opt-in, beside the compiled plans."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .disk_cache import is_of

log = logging.getLogger("memojax")

NAME = "autotune.json"


class Choices:
    """Names of candidates, and their gains, by key. The file holds names only: one that is damaged or foreign is ignored."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Use `autotune.json` in `folder`."""
        self.path = Path(folder).expanduser() / NAME
        self._lock = threading.Lock()
        self._writable = True

    def get(self, key: Mapping[str, Any]) -> tuple[str, float] | None:
        """The candidate and gain stored for `key`, or None."""
        entry: Any = self._read().get(_digest(key))
        with contextlib.suppress(TypeError, KeyError, ValueError):
            return str(entry["candidate"]), float(entry["gain"])
        return None

    def put(self, key: Mapping[str, Any], candidate: str, gain: float) -> None:
        """Store a choice; readers see the whole file, old or new."""
        if not self._writable:
            return
        with self._lock:
            entries = self._read()
            label = f"{key.get('name', 'model')} x {key.get('size', '?')}"
            entries[_digest(key)] = {"candidate": candidate, "gain": round(gain, 3), "for": label}
            try:
                self._write(entries)
            except OSError as cause:
                self._writable = False
                log.warning(
                    "autotuning's choices cannot be written to %s (%s): they are found anew",
                    self.path,
                    cause.strerror or cause,
                )

    def labels(self, model: str | None = None) -> list[str]:
        """What there are choices for (of `model`, a file's name with or without its suffix), as "policy.onnx x 8"."""
        return [
            entry["for"]
            for entry in self._read().values()
            if _is_choice(entry) and is_of(entry["for"], model)
        ]

    def clear(self, model: str | None = None) -> int:
        """Forget all choices, or those of `model`; gives their number. A file that holds something else is left alone.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            entries = self._read()
            left = {
                key: entry
                for key, entry in entries.items()
                if not _is_choice(entry) or not is_of(entry["for"], model)
            }
            if len(left) < len(entries):
                self._write(left)
            return len(entries) - len(left)

    def _write(self, entries: Mapping[str, Any]) -> None:
        if not entries:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file, indent=1)
        os.replace(name, self.path)

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            entries = json.loads(self.path.read_text())
            if isinstance(entries, dict):
                return entries
        return {}


def _is_choice(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("for"), str) and "candidate" in entry


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
