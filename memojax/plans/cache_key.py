"""The key that makes entries of the plan cache one's own: 32 random bytes in a file that only its owner can
read."""

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
    """$MEMOJAX_CACHE_KEY, or `memojax/cache.key` in the user's folder for state.

    Raises:
        OSError: the user has no folder.
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
    """The key in `path` (or `key_path()`), which is made when there is none yet; processes that race for it
    get the same one.

    Raises:
        OSError: it can be neither read nor made, or others can read or replace it.
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
                    f"the key {path} can be read or replaced by others (mode "
                    f"{stat.S_IMODE(status.st_mode):04o}): "
                    f"chmod 600 {path}"
                )
            if status.st_uid != os.geteuid():
                raise OSError(
                    f"the key {path} belongs to user {status.st_uid}: set {ENVIRONMENT} to a file of your own"
                )
        key = file.read(_BYTES + 1)
    if len(key) != _BYTES:
        raise OSError(
            f"the key {path} has {len(key)} bytes, expected {_BYTES}: remove it, and a new one is made"
        )
    return key


def _make(path: Path) -> None:
    """Write a new key to a file of another name, then give it its name, unless another process was faster."""
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
    """An opener that follows no link at the end of `path`, and does not wait for the other end of a pipe.

    Raises:
        OSError: `path` is no plain file.
    """
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no plain file")
    return handle
