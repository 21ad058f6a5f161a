"""Entries of the plan folder that are cut or changed anywhere, and errors of the system at each step."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from memojax.plans import disk_cache as disk
from memojax.plans.disk_cache import DiskCache

KEY = {"model": "abc", "size": 3, "name": "policy.onnx"}
OTHER = {**KEY, "size": 4}
PAYLOAD = b"the bytes of a plan"
STEPS = ["tempfile.mkstemp", "os.fdopen", "_lock", "os.replace", "os.unlink"]


@pytest.mark.parametrize("change", ["cut", "flipped"])
def test_an_entry_that_is_damaged_at_any_byte_gives_its_payload_or_nothing(
    tmp_path: Path, change: str
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, PAYLOAD)
    (path,) = tmp_path.iterdir()
    whole, found = path.read_bytes(), []
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        path.write_bytes(whole[:at] if change == "cut" else flipped)
        cache.entries()
        found.append(cache.get(KEY))
    signed = disk._HEADER.size + len(PAYLOAD)
    assert found == [None] * signed + [PAYLOAD] * (len(whole) - signed)  # the description is only shown
    cache.put(KEY, PAYLOAD)
    assert cache.get(KEY) == PAYLOAD


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOENT])
@pytest.mark.parametrize("step", STEPS)
def test_an_error_of_the_system_at_any_step_warns_once_and_loses_no_entry(
    tmp_path: Path, step: str, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, PAYLOAD)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, refuse) if "." not in step else patch.setattr(
            f"memojax.plans.disk_cache.{step}", refuse
        )
        for _ in range(3):
            cache.put(OTHER, PAYLOAD)
            cache.get(OTHER)
    assert caplog.text.count("cannot be used") <= 1
    disk.remove_leftovers(tmp_path)
    fresh = DiskCache(tmp_path)
    assert fresh.get(KEY) == PAYLOAD
    assert fresh.get(OTHER) in (None, PAYLOAD)
    fresh.put(OTHER, b"again")
    assert fresh.get(OTHER) == b"again"


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_was_set_anew_loses_no_entry(tmp_path: Path, years: int) -> None:
    cache = DiskCache(tmp_path, max_bytes=2000)
    cache.put(KEY, PAYLOAD)
    (path,) = tmp_path.iterdir()
    os.utime(path, (then := time.time() + years * 365 * 86400, then))
    assert cache.get(KEY) == PAYLOAD
    os.utime(path, (then, then))
    for size in range(20):  # more than the folder may hold
        cache.put({**KEY, "size": size}, bytes([size]) * 200)
        assert cache.get({**KEY, "size": size}) == bytes([size]) * 200
        assert sum(entry.bytes for entry in cache.entries()) <= 2000
