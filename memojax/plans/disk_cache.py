"""Compiled plans on disk: a folder of checked, atomically written entries.

Trust boundary: loading an entry runs machine code and unpickles data, so whoever can write to the folder can run code as you. Use a
folder that only you can write to. Entries are checked for damage (checksum) and for fit (their key names the model, the size, the
jaxlib, the CPU and the options), not for malice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

log: logging.Logger = logging.getLogger("memojax")

_MAGIC = b"MEMOJAX\x01"
_HEADER = struct.Struct("<8s32s32sQ")
"""Magic, key, checksum of the payload, length of the payload."""

_MOST_DESCRIPTION = 200

DEFAULT_MAX_BYTES = 1 << 30
ENVIRONMENT = "MEMOJAX_CACHE_DIR"


@dataclass(frozen=True)
class Entry:
    """One file of the cache, as listings show it."""

    path: Path
    bytes: int
    last_used: float
    description: str

    @property
    def model(self) -> str:
        """Name of the plan's model."""
        return self.description.rpartition(" x ")[0] or "?"

    @property
    def size(self) -> int | None:
        """Batch size of the plan."""
        number = self.description.rpartition(" x ")[2]
        return int(number) if number.isascii() and number.isdigit() else None


class DiskCache:
    """Payloads by key, in one folder that several processes may share.

    A damaged, truncated or foreign entry counts as absent and is removed. A folder that cannot be written causes one warning and no
    further attempts. The least recently used entries are removed when the folder exceeds `max_bytes`.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES):
        """Use `folder`; the first stored entry makes it, readable by its owner only."""
        self.folder: Path = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._writable = True

    def get(self, key: Mapping[str, Any]) -> bytes | None:
        """The payload stored for `key`, or None."""
        digest = _digest(key)
        path = self._path(digest)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        payload = _checked(raw, digest)
        if payload is None:
            log.warning(
                "cache entry %s is damaged or foreign: it is removed, and the plan compiles again", path.name
            )
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: Mapping[str, Any], payload: bytes) -> None:
        """Store `payload` atomically."""
        if not self._writable:
            return
        digest = _digest(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(payload))
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_HEADER.pack(_MAGIC, digest, hashlib.sha256(payload).digest(), len(payload)))
                    file.write(payload)
                    file.write(_describe(key))
                os.replace(name, self._path(digest))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as cause:
            self._writable = False
            log.warning(
                "the cache folder %s cannot be written (%s): plans are kept in memory only",
                self.folder,
                cause.strerror or cause,
            )

    def forget(self, key: Mapping[str, Any]) -> None:
        """Remove the entry for `key`, if there is one."""
        with contextlib.suppress(OSError):
            self._path(_digest(key)).unlink()

    def entries(self, model: str | None = None) -> list[Entry]:
        """Entries of all models, or of `model` (a file name with or without suffix), most recently used first."""
        found = []
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append(Entry(path, status.st_size, status.st_mtime, _description(path)))
        return sorted(
            (entry for entry in found if is_of(entry.description, model)), key=lambda entry: -entry.last_used
        )

    def clear(self, model: str | None = None) -> int:
        """Remove all entries, or those of `model`, and return their number; other files in the folder stay."""
        removed = 0
        for entry in self.entries(model):
            with contextlib.suppress(OSError):
                entry.path.unlink()
                removed += 1
        return removed

    def _files(self) -> list[Path]:
        """Files whose names and headers are those of entries."""
        return (
            [path for path in self.folder.glob("*.plan") if _is_entry(path)] if self.folder.is_dir() else []
        )

    def _path(self, digest: bytes) -> Path:
        return self.folder / f"{digest.hex()}.plan"

    def _make_room(self, wanted: int) -> None:
        sizes = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                sizes[path] = (status.st_mtime, status.st_size)
        total = sum(size for _, size in sizes.values()) + wanted
        for path, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def is_of(description: str, model: str | None) -> bool:
    """Whether an entry belongs to `model` (a file name with or without suffix; None means any)."""
    name = description.rpartition(" x ")[0]
    return model is None or model in (name, name.rpartition(".")[0])


def disk_cache(folder: str | os.PathLike[str] | None) -> DiskCache | None:
    """The cache in `folder`, or else in $MEMOJAX_CACHE_DIR; None without both, because the cache is opt-in."""
    chosen = folder if folder is not None else os.environ.get(ENVIRONMENT)
    return DiskCache(chosen) if chosen else None


@functools.cache
def environment_key() -> dict[str, str]:
    """Everything but the model on which an executable depends: versions, the CPU and its features, flags."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "machine": f"{platform.system()} {platform.machine()} {platform.processor()}",
        "cpu": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16],
        "cores": str(os.cpu_count()),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _digest(key: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).digest()


def _checked(raw: bytes, digest: bytes) -> bytes | None:
    if len(raw) < _HEADER.size:
        return None
    magic, key, checksum, length = _HEADER.unpack_from(raw)
    payload = raw[_HEADER.size : _HEADER.size + length]
    if (
        magic != _MAGIC
        or key != digest
        or len(payload) != length
        or hashlib.sha256(payload).digest() != checksum
    ):
        return None
    return payload


def _describe(key: Mapping[str, Any]) -> bytes:
    text = f"{key.get('name', 'model')} x {key.get('size', '?')}".encode()[:_MOST_DESCRIPTION]
    return text + struct.pack("<B", len(text))


def _is_entry(path: Path) -> bool:
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
    except OSError:
        return False
    return (
        len(start) == _HEADER.size
        and start.startswith(_MAGIC)
        and _HEADER.unpack(start)[1].hex() == path.stem
    )


def _description(path: Path) -> str:
    """The text that `_describe` wrote behind the payload; "?" for a damaged entry."""
    try:
        with path.open("rb") as file:
            end = _HEADER.size + _HEADER.unpack(file.read(_HEADER.size))[3]
            file.seek(min(end, path.stat().st_size))
            text = file.read(_MOST_DESCRIPTION + 2)
    except (OSError, struct.error):
        return "?"
    if not text or text[-1] != len(text) - 1:
        return "?"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:-1].decode("utf-8", "replace"))
