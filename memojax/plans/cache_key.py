"""The secret key that signs the entries of the plan cache: 32 bytes that only the user can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

ENVIRONMENT = "MEMOJAX_CACHE_KEY"
_BYTES = 32


def key_path() -> Path:
    """$MEMOJAX_CACHE_KEY, or `memojax/cache.key` in the user's state folder.

    Raises:
        OSError: the user has no home folder.
    """
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    home = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME")
    if home:
        return Path(home) / "memojax" / "cache.key"
    try:
        return Path.home() / ".local" / "state" / "memojax" / "cache.key"
    except RuntimeError as cause:
        raise OSError(f"the user has no home folder: set {ENVIRONMENT} to a file") from cause


def cache_key(path: Path | None = None) -> bytes:
    """The key in `path` (by default `key_path()`), made at the first use.

    Processes that race to make it get the same key.

    Raises:
        OSError: the key cannot be read or made, or others can read or replace it.
    """
    path = path or key_path()
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=open_plain) as file:
        status = os.fstat(file.fileno())
        if os.name == "posix":
            if status.st_mode & 0o077:
                raise OSError(
                    f"others can read or replace the key {path} (mode "
                    f"{stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}"
                )
            if status.st_uid != os.geteuid():
                raise OSError(
                    f"the key {path} belongs to user {status.st_uid}: set {ENVIRONMENT} to a file of your own"
                )
        key = file.read(_BYTES + 1)
    if len(key) != _BYTES:
        raise OSError(
            f"the key {path} has {len(key)} bytes, expected {_BYTES}: remove it, and a new one will be made"
        )
    return key


def _make(path: Path) -> None:
    """Write a new key under a temporary name, then link it to `path`, unless another process was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="memojax-", suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


def open_plain(path: str, flags: int) -> int:
    """An opener for plain files only: it follows no final link and never waits for the writer of a pipe.

    Raises:
        OSError: `path` is not a plain file.
    """
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a plain file")
    return handle
