"""Compiled plans on disk: a folder of signed entries, each written atomically.

Trust boundary: an entry is machine code and a pickle, so a forged entry runs code as you. Each entry is
therefore signed (HMAC) with a key that only you can read (`cache_key`). An entry with another signature
counts as absent and is never unpickled. A folder that others can write to is refused unless you accept it,
because they could remove entries or restore old ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import logging
import os
import platform
import re
import stat
import struct
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from ..errors import CacheFolderError, InputError
from .cache_key import cache_key, open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log: logging.Logger = logging.getLogger("memojax")

_FAMILY = b"MEMOJAX"
_MAGIC = _FAMILY + b"\x02"
_HEADER = struct.Struct("<8s32s32sQ")
"""Magic, signed key, signature of key and payload, length of the payload."""

_MOST_DESCRIPTION = 200
_LEFTOVER_SECONDS = 3600
"""Age from which an unfinished file counts as a leftover, if no lock can tell whether its writer lives."""

_TRIES = 3

WEIGHTS = "weights"
"""The size of an entry that holds large weights, which the plans of a model share."""

DEFAULT_MAX_BYTES = 1 << 30
ENVIRONMENT = "MEMOJAX_CACHE_DIR"
SIZE_ENVIRONMENT = "MEMOJAX_CACHE_SIZE"
SHARED_ENVIRONMENT = "MEMOJAX_CACHE_SHARED"


@dataclass(frozen=True)
class Entry:
    """One entry of the cache, for listings."""

    path: Path
    bytes: int
    last_used: float
    description: str

    @property
    def model(self) -> str:
        """Name of the plan's model."""
        return self.description.rpartition(" x ")[0] or "?"

    @property
    def is_plan(self) -> bool:
        """Whether this is a plan, and not weights that plans share."""
        return not self.description.endswith(f" x {WEIGHTS}")

    @property
    def size(self) -> int | None:
        """Batch size of the plan."""
        number = self.description.rpartition(" x ")[2]
        return int(number) if number.isascii() and number.isdigit() else None


class DiskCache:
    """Payloads by key in one folder, which several processes of one user may share.

    A damaged, truncated or foreign entry counts as absent and is removed. If the folder or the key is
    unusable, one warning says so, and nothing is stored. If the folder exceeds `max_bytes`, the least
    recently used entries are removed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES, *, shared: bool = False
    ):
        """Use `folder`, which the first entry creates for its owner alone; `shared` accepts other writers.

        Raises:
            CacheFolderError: `folder` belongs to somebody else, or others can write to it.
        """
        self.folder: Path = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._shared = shared
        self._usable = True
        self._cleaned = False
        if reason := self._refusal():
            raise CacheFolderError(reason)

    def get(self, key: Mapping[str, Any]) -> bytes | None:
        """The payload stored for `key`, or None."""
        if not self._usable or not self.folder.is_dir():
            return None
        try:
            signer = self._signer()
            path = self._path(signer.name(key))
            try:
                with open(path, "rb", opener=open_plain) as file:
                    raw = file.read()
            except OSError:
                return None
        except OSError as cause:
            self._give_up(cause)
            return None
        payload = signer.payload(raw, key)
        if payload is None:
            log.warning(
                "cache entry %s is damaged or foreign, so it is removed and compiled again", path.name
            )
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: Mapping[str, Any], payload: bytes) -> None:
        """Store `payload`; readers see the whole entry or none."""
        if not self._usable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            signer = self._signer()
            parts = [*signer.header(key, payload), _describe(key)]
            wanted = sum(map(len, parts))
            if wanted > self.max_bytes:
                log.debug("a plan of %d bytes is larger than the cache, %d bytes", wanted, self.max_bytes)
                return
            if not self._cleaned:
                remove_leftovers(self.folder)
                self._cleaned = True
            self._make_room(wanted)
            write_whole(self._path(signer.name(key)), parts)
        except OSError as cause:
            self._give_up(cause)

    def touch(self, key: Mapping[str, Any]) -> bool:
        """Note a use of the entry for `key`; False if there is none."""
        if not self._usable:
            return False
        try:
            os.utime(self._path(self._signer().name(key)), follow_symlinks=False)
        except OSError:
            return False
        return True

    def forget(self, key: Mapping[str, Any]) -> None:
        """Remove the entry for `key`, if it exists."""
        with contextlib.suppress(OSError):
            self._path(self._signer().name(key)).unlink()

    def entries(self, model: str | None = None) -> list[Entry]:
        """Entries of all models or of `model` (a file name, suffix optional), most recently used first."""
        found = []
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append(Entry(path, status.st_size, status.st_mtime, _description(path)))
        return sorted(
            (entry for entry in found if is_of(entry.description, model)), key=lambda entry: -entry.last_used
        )

    def clear(self, model: str | None = None) -> int:
        """Remove all entries, or those of `model`, and return their number; other files stay."""
        removed = 0
        for entry in self.entries(model):
            with contextlib.suppress(OSError):
                entry.path.unlink()
                removed += 1
        remove_leftovers(self.folder)
        return removed

    def _signer(self) -> _Signer:
        """The signer of entries, after a check of the folder.

        Raises:
            OSError: the folder or the key is unusable.
        """
        if reason := self._refusal():
            raise OSError(reason)
        return _Signer(cache_key())

    def _refusal(self) -> str | None:
        """The reason to refuse the folder, because others can change it; None if it is safe or absent."""
        if self._shared or os.name != "posix":
            return None
        try:
            status = self.folder.stat()
        except OSError:
            return None
        accept = f"or set {SHARED_ENVIRONMENT}=1 to accept it"
        if status.st_uid not in (os.geteuid(), 0):
            return (
                f"the cache folder {self.folder} belongs to user {status.st_uid}, but this process runs as "
                f"user {os.geteuid()}: use a folder of your own, {accept}"
            )
        if status.st_mode & 0o022:
            return (
                f"others can write to the cache folder {self.folder} (mode "
                f"{stat.S_IMODE(status.st_mode):04o}): chmod 700 {self.folder}, {accept}"
            )
        return None

    def _give_up(self, cause: OSError) -> None:
        self._usable = False
        log.warning(
            "the cache folder %s cannot be used (%s): plans are kept in memory only",
            self.folder,
            cause.strerror or cause,
        )

    def _files(self) -> list[Path]:
        """Files whose names and headers mark them as entries."""
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


class _Signer:
    """Names, signs and checks entries with one key."""

    def __init__(self, secret: bytes):
        self._secret = secret

    def name(self, key: Mapping[str, Any]) -> bytes:
        """Name of the entry for `key`; each user's secret gives other names."""
        return self._sign(b"name", json.dumps(key, sort_keys=True, default=str).encode())

    def header(self, key: Mapping[str, Any], payload: bytes) -> tuple[bytes, bytes]:
        """Header and payload of an entry; its description follows them."""
        name = self.name(key)
        return _HEADER.pack(_MAGIC, name, self._sign(b"entry", name, payload), len(payload)), payload

    def payload(self, raw: bytes, key: Mapping[str, Any]) -> bytes | None:
        """The payload of the entry `raw` for `key`; None if it is damaged or has a foreign signature."""
        if len(raw) < _HEADER.size:
            return None
        magic, name, signature, length = _HEADER.unpack_from(raw)
        payload = raw[_HEADER.size : _HEADER.size + length]
        if magic != _MAGIC or name != self.name(key) or len(payload) != length:
            return None
        return payload if hmac.compare_digest(signature, self._sign(b"entry", name, payload)) else None

    def _sign(self, *parts: bytes) -> bytes:
        signed = hmac.new(self._secret, digestmod="sha256")
        for part in parts:
            signed.update(part)
        return signed.digest()


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers see the old or the new content.

    Raises:
        OSError: the file cannot be written; the partial file is removed.
    """
    for left in reversed(range(_TRIES)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="memojax-", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                _lock(file.fileno())
                for part in parts:
                    file.write(part)
                file.flush()
                os.replace(name, path)
            return
        except (FileNotFoundError, BlockingIOError):
            # Another process took the file for a leftover before it was locked, or removed the folder.
            if not left:
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed writers; a living writer holds a lock on its file."""
    for path in folder.glob("memojax-*.tmp"):
        with contextlib.suppress(OSError), open(path, "r+b", opener=open_plain) as file:
            status = os.fstat(file.fileno())
            # A writer locks its file before it writes. Until then, nothing tells the file from a leftover.
            could_live = fcntl is None or not status.st_size
            if could_live and time.time() - status.st_mtime < _LEFTOVER_SECONDS:
                continue
            _lock(file.fileno())
            path.unlink()


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_of(description: str, model: str | None) -> bool:
    """Whether an entry belongs to `model` (a file name with or without suffix; None means any)."""
    name = description.rpartition(" x ")[0]
    return model is None or model in (name, name.rpartition(".")[0])


def disk_cache(folder: str | os.PathLike[str] | None, *, shared: bool = False) -> DiskCache | None:
    """The opt-in cache in `folder`, else in $MEMOJAX_CACHE_DIR, else None; $MEMOJAX_CACHE_SIZE limits it.

    Raises:
        CacheFolderError: others can change the folder, and neither `shared` nor $MEMOJAX_CACHE_SHARED accepts
            that.
        InputError: $MEMOJAX_CACHE_SIZE is not a size.
    """
    chosen = folder if folder is not None else os.environ.get(ENVIRONMENT)
    if not chosen:
        return None
    size = os.environ.get(SIZE_ENVIRONMENT)
    return DiskCache(
        chosen,
        DEFAULT_MAX_BYTES if not size else bytes_of(size),
        shared=shared
        or os.environ.get(SHARED_ENVIRONMENT, "").strip().casefold() in ("1", "true", "yes", "on"),
    )


def bytes_of(text: str) -> int:
    """A size such as "500M", "2GiB" or "1000000" in bytes; K, M, G and T are powers of 1024.

    Raises:
        InputError: `text` is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE | re.ASCII)
    if match is None or len(match[1]) > 20:
        raise InputError(f"{SIZE_ENVIRONMENT} is {text[:80]!r}, expected bytes or a size such as 500M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


@functools.cache
def environment_key() -> dict[str, str]:
    """Everything except the model that an executable depends on: versions, the CPU, its features, flags."""
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
        and start.startswith(_FAMILY)
        and _HEADER.unpack(start)[1].hex() == path.stem
    )


def _description(path: Path) -> str:
    """The text that `_describe` wrote after the payload; "?" for a damaged entry."""
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
