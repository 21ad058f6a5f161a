"""Read untrusted files: whole, without blocking, and never half before and half after a change."""

from __future__ import annotations

import os
import re
import stat
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError

LARGEST = 1 << 31
"""Bytes; protobuf's own limit for one message."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def path_of(source: str | PathLike[str]) -> Path:
    """`source` as a path; `~` stands for the home folder.

    Raises:
        ModelLoadError: `source` is a URL, or cannot be a path.
    """
    text = fspath(source)
    if not isinstance(text, str):
        raise ModelLoadError(
            f"{text!r} is a path of bytes: give it as text (os.fsdecode), or give the file's content"
        )
    if "\0" in text:
        raise ModelLoadError(f"{text!r} is no path: it contains a NUL character")
    if _URL.match(text):
        raise ModelLoadError(
            f"{text} is a URL: download the file first (curl -L -O, or huggingface_hub.hf_hub_download) "
            "and give its path"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise ModelLoadError(f"{text}: {cause}") from cause


class OpenFile:
    """A regular file, open for reading.

    Raises:
        ModelLoadError: the path is a folder, a pipe, a device or a socket.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, what: str = ""):
        self.path = path
        self._what = what or str(path)
        _check_regular(os.stat(path).st_mode, self._what)
        # A pipe may have taken the file's place since, and opening it would wait for a writer.
        flags = (
            os.O_RDONLY
            | getattr(os, "O_NONBLOCK", 0)
            | getattr(os, "O_CLOEXEC", 0)
            | getattr(os, "O_BINARY", 0)
        )
        self._file = os.fdopen(os.open(path, flags), "rb", buffering=0)
        try:
            self._before = os.fstat(self._file.fileno())
            _check_regular(self._before.st_mode, self._what)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Size in bytes when the file was opened."""
        return self._before.st_size

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset` on; all bytes to the end if `length` is None.

        Raises:
            ModelLoadError: the file has fewer bytes, or changed since it was opened.
        """
        wanted = max(0, self.size - offset) if length is None else length
        self._file.seek(offset)
        parts: list[bytes] = []
        missing = wanted
        while missing and (part := self._file.read(min(missing, 1 << 26))):
            parts.append(part)
            missing -= len(part)
        self.check_unchanged()
        if missing:
            raise ModelLoadError(
                f"{self._what}: the last {missing:,} of {wanted:,} bytes at offset {offset:,} are missing"
            )
        return b"".join(parts)

    def check_unchanged(self) -> None:
        """Check that the file did not change since it was opened.

        Raises:
            ModelLoadError: the file changed.
        """
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise ModelLoadError(
                f"{self._what}: the file changed while it was read: load it again when its writer is done (a "
                "writer that renames a finished file avoids this)"
            )


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """The whole content of a regular file.

    Raises:
        ModelLoadError: the file cannot be read, is not a regular file, has more than `most` bytes, or changed
            while it was read.
    """
    try:
        with OpenFile(path) as file:
            if file.size > most:
                raise ModelLoadError(
                    f"{path}: {file.size:,} bytes, more than protobuf allows ({most:,}): save the model with "
                    "external data"
                )
            return file.read()
    except OSError as cause:
        raise ModelLoadError(f"{path}: cannot be read: {cause.strerror or cause}") from cause


def start_of(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file; empty if the file is not regular or cannot be read."""
    try:
        with OpenFile(path) as file:
            return file.read(0, min(count, file.size))
    except (OSError, ModelLoadError):
        return b""


def _check_regular(mode: int, what: str) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "not a regular file")
    step = "name the file in it" if stat.S_ISDIR(mode) else "read it yourself and give the bytes"
    raise ModelLoadError(f"{what} is {kind}: {step}")
